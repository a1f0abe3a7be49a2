"""LRP through recurrent layers: by hand, conservation, packed sequences, file forms."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from interpret_plugins.attribution.lrp import LRP
from interpret_server.models.relevance import Epsilon
from interpret_server.models.relevance.recurrence import RecurrentRules, recurrent
from interpret_server.models.targets import Targets
from interpret_server.testing import classifier
from tests.plugins.attribution.maps import run
from tests.plugins.attribution.relevance_by_hand import by_formula
from tests.plugins.attribution.transformers import FORMS, load

Array = NDArray[np.float64]
STEPS, WIDTH, HIDDEN = 4, 3, 2
LABELS = torch.tensor([0, 2, 1])


class Reader(nn.Module):
    """The last state of a recurrent layer decides."""

    def __init__(self, kind: type[nn.RNNBase], **settings: object) -> None:
        super().__init__()
        self.layer = kind(WIDTH, HIDDEN, batch_first=True, **settings)  # type: ignore[arg-type]
        both = 2 if settings.get("bidirectional") else 1
        size = int(str(settings.get("proj_size", HIDDEN))) * both
        self.last = nn.Linear(size, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.layer(x)
        return self.last(y[:, -1] + y[:, 0])


def reader(kind: type[nn.RNNBase], **settings: object) -> Reader:
    torch.manual_seed(8)
    module = Reader(kind, **settings).double().eval().requires_grad_(False)
    for weight in module.parameters():
        weight.mul_(2)
    return module


def linear(relevance: Array, w: Array, b: Array, values: Array) -> Array:
    """LRP-0 of a linear layer."""
    tensors = (torch.from_numpy(np.ascontiguousarray(item)) for item in (w, b, values, relevance))
    return by_formula("zero", *tensors).numpy()


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def by_hand(module: Reader, x: Array, label: int) -> Array:
    """Forward and back through an LSTM or GRU step by step; `(steps, width)`."""
    w, u, b, v = (weight.numpy() for weight in module.layer._flat_weights)
    lstm = isinstance(module.layer, nn.LSTM)
    rows = [slice(gate * HIDDEN, (gate + 1) * HIDDEN) for gate in range(4 if lstm else 3)]
    h, c, kept, outputs = np.zeros(HIDDEN), np.zeros(HIDDEN), [], []
    for step in x:
        of_x, of_h = w @ step + b, u @ h + v
        if lstm:
            i, f, o = (sigmoid((of_x + of_h)[rows[gate]]) for gate in (0, 1, 3))
            g = np.tanh((of_x + of_h)[rows[2]])
            kept.append((h, c, i * g, f * c, g, o))
            c = f * c + i * g
            h = o * np.tanh(c)
        else:
            r, z = (sigmoid((of_x + of_h)[rows[gate]]) for gate in (0, 1))
            a, q = of_x[rows[2]], r * of_h[rows[2]]
            n = np.tanh(a + q)
            kept.append((h, a, q, (1 - z) * n, z * h, n))
            h = (1 - z) * n + z * h
        outputs.append(h)

    total = outputs[-1] + outputs[0]
    slope = module.last.weight[label].numpy()
    relevance = np.zeros_like(x)
    at_h, at_c = outputs[-1] / total * (slope * total), np.zeros(HIDDEN)
    at_first = outputs[0] / total * (slope * total)
    for t in reversed(range(len(x))):
        if t == 0:
            at_h = at_h + at_first
        if lstm:
            h, c, new, old, _, _ = kept[t]
            at_c = at_c + at_h
            at_g, at_c = new / (new + old) * at_c, old / (new + old) * at_c
            wide = np.concatenate([w[rows[2]], u[rows[2]]], 1)
            both = linear(at_g, wide, (b + v)[rows[2]], np.concatenate([x[t], h]))
            relevance[t], at_h = both[:WIDTH], both[WIDTH:]
        else:
            h, a, q, new, old, _ = kept[t]
            at_n, kept_h = new / (new + old) * at_h, old / (new + old) * at_h
            at_a, at_q = a / (a + q) * at_n, q / (a + q) * at_n
            relevance[t] = linear(at_a, w[rows[2]], b[rows[2]], x[t])
            at_h = kept_h + linear(at_q, u[rows[2]], v[rows[2]], h)
    return relevance


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_layer_equals_the_rules_by_hand(kind: type[nn.RNNBase]) -> None:
    module = reader(kind)
    x = torch.randn(3, STEPS, WIDTH, dtype=torch.float64)
    found = run(LRP, classifier(module, (STEPS, WIDTH)), x, Targets.classes(LABELS), rule="zero")
    rows = zip(x.numpy(), LABELS.tolist(), strict=True)
    expected = np.stack([by_hand(module, one, label) for one, label in rows])
    np.testing.assert_allclose(found.attributions.numpy(), expected, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(found.logits, module(x))


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 2, "bidirectional": True}],
    ids=["one", "two", "both", "two_both"],
)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_without_biases_relevance_is_conserved(
    kind: type[nn.RNNBase], settings: dict[str, object]
) -> None:
    module = reader(kind, bias=False, **settings)
    x = torch.randn(3, STEPS, WIDTH, dtype=torch.float64)
    found = run(LRP, classifier(module, (STEPS, WIDTH)), x, Targets.classes(LABELS), rule="zero")
    torch.testing.assert_close(found.logits, module(x))
    values = module(x).gather(1, LABELS[:, None])[:, 0]
    torch.testing.assert_close(found.attributions.flatten(1).sum(1), values)


def test_a_projected_state_is_a_linear_layer() -> None:
    module = reader(nn.LSTM, bias=False, proj_size=1, bidirectional=True)
    x = torch.randn(3, STEPS, WIDTH, dtype=torch.float64)
    found = run(LRP, classifier(module, (STEPS, WIDTH)), x, Targets.classes(LABELS), rule="zero")
    torch.testing.assert_close(found.logits, module(x))
    values = module(x).gather(1, LABELS[:, None])[:, 0]
    torch.testing.assert_close(found.attributions.flatten(1).sum(1), values)


@pytest.mark.parametrize(
    ("kind", "form"), [*((nn.LSTM, form) for form in FORMS), (nn.GRU, "traced"), (nn.GRU, "onnx")]
)
def test_files_equal_the_eager_module(form: str, kind: type[nn.RNNBase], tmp_path: Path) -> None:
    module = reader(kind, num_layers=2, bidirectional=True)
    x, targets = torch.rand(3, STEPS, WIDTH), Targets.classes(LABELS)
    eager = classifier(module, (STEPS, WIDTH))
    expected = run(LRP, eager, x.double(), targets, epsilon=1e-3).attributions
    model = load(
        reader(kind, num_layers=2, bidirectional=True).float(), form, tmp_path, (STEPS, WIDTH)
    )
    found = run(LRP, model, x, targets, epsilon=1e-3).attributions
    largest = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4 * largest)


def test_steps_of_packed_sequences_equal_those_of_sequences_alone() -> None:
    torch.manual_seed(9)
    layer = nn.LSTM(WIDTH, HIDDEN, num_layers=2, bidirectional=True).double().requires_grad_(False)
    lengths = torch.tensor([4, 2, 1])
    x = torch.randn(3, 4, WIDTH, dtype=torch.float64)
    weights = layer._flat_weights
    rules = RecurrentRules(Epsilon(), 0.0)

    def outputs(rows: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        leaf = rows.clone().requires_grad_()
        packed = pack_padded_sequence(leaf, sizes, batch_first=True)
        zeros = rows.new_zeros(4, len(rows), HIDDEN)
        settings = (weights, True, 2, 0.0, False, True)
        y, h, c = recurrent(
            rules, "lstm", "data", packed.data, packed.batch_sizes, (zeros, zeros), *settings
        )
        expected, last = layer(packed._replace(data=packed.data.detach()))
        torch.testing.assert_close(y.detach(), expected.data)
        torch.testing.assert_close((h.detach(), c.detach()), last)
        (relevance,) = torch.autograd.grad(h, leaf, h.detach())
        return relevance, h.detach()

    together, states = outputs(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, state = outputs(x[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(together[row, :length], alone[0])
        torch.testing.assert_close(states[:, row], state[:, 0])
        assert not together[row, length:].any()
