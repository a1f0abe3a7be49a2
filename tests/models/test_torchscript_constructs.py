"""What archives are written in: containers, shapes, in-place operations, constants, dtypes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torchscript_zoo import IMAGES, X, agrees, batches, kinds, same, script, trace

from interpret_server.models.torchscript import ArchiveBody, lower, training_modules
from interpret_server.models.torchscript.scalars import truncated

# Containers, classes, arithmetic on shapes


@torch.jit.script
class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def apply(self, x: Tensor) -> Tensor:
        return x * self.factor


class Containers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({"a": nn.Linear(8, 3), "b": nn.Linear(8, 2)}).double()

    def encode(self, x: Tensor) -> Tensor:
        return Scale(3).apply(x)

    def forward(self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None):
        if mask is not None:
            x = x * mask
        outputs: dict[str, Tensor] = {}
        for name, head in self.heads.items():
            outputs[name] = head(self.encode(x).mean(1)) * scale
        pairs = [(x.amax(1), len(outputs))]
        pairs.append((x.amin(1), 1))
        first, rest = torch.split(x, [1, x.size(1) - 1], 1)
        outputs["c"] = pairs[-1][0] - pairs[0][0] + first.mean(1) + rest.sum(1)
        index = torch.tensor([0, x.size(2) - 1])
        if "c" in outputs:
            outputs["d"] = outputs["c"][:, index]
        return outputs


def test_containers_classes_methods_and_defaults_are_followed(tmp_path):
    result = agrees(script(Containers(), tmp_path / "model.pt"), X)
    assert result.output_names == ("a", "b", "c", "d")
    assert result.input_names == ("x",)
    assert {"heads.a", "heads.b"} <= set(result.layers)


class Shapes(nn.Module):
    def forward(self, x):
        half = int(x.shape[2] * 0.5)
        parts = x[:, :, :half].reshape(x.size(0), -1).sum(1, keepdim=True)
        up = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        down = F.interpolate(x, size=[x.size(2) // 2, x.size(3) // 2])
        pooled = F.avg_pool2d(x, x.size(2)).view(x.size(0), x.size(1) * 1)
        rows = torch.zeros(x.size(0), 1, dtype=x.dtype)
        return parts / (x.size(2) * x.size(3)) + up.mean((2, 3)) + down.mean((2, 3)) + pooled + rows


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_arithmetic_on_shapes_stays_symbolic(traced, tmp_path):
    path = tmp_path / "model.pt"
    archive = trace(Shapes(), path, IMAGES) if traced else script(Shapes(), path)
    agrees(archive, IMAGES)


def test_a_traced_quotient_of_sizes_is_a_number(tmp_path):
    class Halves(nn.Module):
        def forward(self, x):
            width = x.shape[3]  # a tensor while it is traced
            half = width.div(2, rounding_mode="trunc") if isinstance(width, Tensor) else width // 2
            return x.reshape(x.shape[0], -1, half).sum(1)

    result = agrees(trace(Halves(), tmp_path / "model.pt", IMAGES), IMAGES)
    assert not any("tensor" in str(node.target) for node in result.graph.graph.nodes)


@pytest.mark.parametrize(
    ("dividend", "divisor", "quotient"), [(7, 2, 3), (-7, 2, -3), (7, -2, -3), (-7, -2, 3)]
)
def test_a_truncated_quotient_is_rounded_towards_zero(dividend, divisor, quotient):
    assert truncated(dividend, divisor) == quotient
    expected = torch.div(torch.tensor(dividend), divisor, rounding_mode="trunc")
    assert expected.item() == quotient


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.fc(self.layer(x)[:, 0])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 5, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(10, 4, batch_first=True)

    def forward(self, x):
        sequence, _ = self.lstm(x)
        _, state = self.gru(sequence)
        return state[0]


@pytest.mark.parametrize("module", [Encoder, Recurrent])
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_attention_and_recurrence_keep_their_gradients(module, traced, tmp_path):
    network = module().double().eval()
    path = tmp_path / "model.pt"
    archive = trace(network, path, X) if traced else script(network, path)
    result = lower(archive, [X])
    for batch in batches(X):
        torch.testing.assert_close(result.graph(batch), network(batch), rtol=1e-12, atol=1e-12)
        gradients = []
        for forward in (result.graph, network):
            leaf = batch.clone().requires_grad_()
            gradients.append(torch.autograd.grad(forward(leaf)[:, 1].sum(), leaf)[0])
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


class WithoutGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fixed, self.fc = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3)

    def forward(self, x):
        with torch.no_grad():
            gate = self.fixed(x).sigmoid()
        return self.fc(x * gate)


def test_no_gradient_passes_where_the_code_forbids_it(tmp_path):
    module = WithoutGradient().double()
    result = agrees(script(module, tmp_path / "model.pt"), X)
    gradients = []
    for forward in (result.graph, module):
        leaf = X.clone().requires_grad_()
        gradients.append(torch.autograd.grad(forward(leaf).square().sum(), leaf)[0])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


class Sentence(nn.Module):
    """Several inputs: tokens, their count and numbers beside."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.lstm = nn.LSTM(8, 5, batch_first=True)
        self.fc = nn.Linear(9, 3)

    def forward(self, tokens: Tensor, lengths: Tensor, table: Tensor):
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, (hidden, _) = self.lstm(packed)
        return self.fc(torch.cat([hidden[-1], table], 1))


@pytest.mark.parametrize("traced", [False, True])
def test_inputs_may_be_several_and_of_several_types(traced, tmp_path):
    module, path = Sentence().double(), tmp_path / "model.pt"
    noise = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 11, (5, 7), generator=noise)
    inputs = (tokens, torch.tensor([3, 7, 1, 6, 2]), X[:1, 0, :4].expand(5, -1) * 1.5)
    archive = trace(module, path, *inputs) if traced else script(module, path)
    result = lower(archive, [value[:2] for value in inputs])
    assert result.input_names == ("tokens", "lengths", "table")
    for rows in (1, 5):
        given = [value[:rows] for value in inputs]
        same(result.graph(*given), module(*given))
    longer = [torch.cat([tokens, tokens], 1), inputs[1] + 7, inputs[2]]
    same(result.graph(*longer), module(*longer))


# In-place operations, constants, devices, dtypes


class Aliases(nn.Module):
    def forward(self, x: Tensor):
        y = x
        listed = [x]
        y.add_(1.0)
        z = F.dropout(F.leaky_relu_(y * 2), 0.5, False, inplace=True)
        z += x
        z *= 2
        z.unsqueeze_(1)
        z.transpose_(0, 1)
        return x * 2 + listed[0], z.transpose(0, 1), y


class EditsConstants(nn.Module):
    def forward(self, x: Tensor):
        mask = torch.zeros(8, dtype=torch.float64)
        before = x * mask
        part = mask[:4]
        part.add_(1.0)
        between = x * mask
        mask.mul_(3.0)
        return before + between + x * mask + x * part.sum()


class KeepsItsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(1, dtype=torch.float64)

    def forward(self, x: Tensor):
        self.last = torch.relu(x)
        return self.last * 2


class WritesToParts(nn.Module):
    """Writes through every kind of view, read again through others."""

    def forward(self, x: Tensor):
        x = x * 1.0
        rows = x.view(x.size(0), -1)
        last = x[:, -1]
        column = x.transpose(1, 2)[:, 3]
        x[:, 0] = 0.5
        x[:, 1:3, ::2] *= 2.0
        x[:, 2:4] = x[:, 0:2]
        last.sub_(x[:, 1])
        column += last[:, :1]
        first, second = x.chunk(2, 1)
        second.transpose(1, 2)[:, 1:4].relu_()
        parts = torch.unbind(first, 2)
        parts[5].copy_(parts[4])
        x[x > 1.5] = 1.0
        rows[:, -3:] = torch.ones(3, dtype=x.dtype)
        x.diagonal(0, 1, 2).neg_()
        return rows, x.sum(1), column, first * 1.0, last


class BuildsFromParts(nn.Module):
    def forward(self, x: Tensor):
        table = torch.zeros(x.size(0), 6, 8, dtype=x.dtype)
        table[:, :3] = x[:, 3:]
        table[:, 4, 0] = x[:, 0].sum(1)
        shifted = torch.zeros_like(x)
        shifted[:, :, 1:] = x[:, :, :-1]
        shifted.index_fill_(1, torch.tensor([0]), 2.0)
        shifted.unsqueeze_(1).squeeze_(1).masked_fill_(shifted > 1, 0.0)
        shifted[:, torch.tensor([1, 2]), 0] = 4.0
        table.zero_() if x.size(1) == 5 else table.add_(shifted)
        return table


@pytest.mark.parametrize(
    "module", [Aliases, EditsConstants, KeepsItsLast, WritesToParts, BuildsFromParts]
)
def test_writes_are_seen_through_every_alias(module, tmp_path):
    result = agrees(script(module(), tmp_path / "model.pt"), X)
    targets = [str(node.target) for node in result.graph.graph.nodes]
    assert not [target for target in targets if "_." in target]


class OnCuda(nn.Module):
    def forward(self, x: Tensor):
        cuda = torch.device("cuda:0")
        ones = torch.ones(x.size(0), 8, dtype=x.dtype, device=cuda)
        return x.to(cuda).sum(1) + ones.cuda() + torch.arange(8, device=cuda).to(cuda, x.dtype)


def test_device_constants_follow_the_input(tmp_path):
    result = lower(script(OnCuda(), tmp_path / "model.pt"), [X])
    for batch in batches(X):
        same(result.graph(batch), batch.sum(1) + 1 + torch.arange(8))
    assert not any(
        isinstance(value, torch.device)
        for node in result.graph.graph.nodes
        for value in (*node.args, *node.kwargs.values())
    )


class Casts(nn.Module):
    def forward(self, x: Tensor):
        return x.float().double().to(torch.float64) + x.to(torch.float32).type_as(x)


def test_casts_that_change_nothing_vanish(tmp_path):
    result = agrees(script(Casts(), tmp_path / "model.pt"), X)
    assert kinds(result).count("cast") == 4


class Copies(nn.Module):
    def forward(self, x: Tensor):
        y = x.to(x.dtype, copy=True)
        y.relu_()
        z = x.to(device=torch.device("cpu"))
        z.add_(1.0)
        return x - y


def test_a_copy_is_none_and_a_move_is_an_alias(tmp_path):
    agrees(script(Copies(), tmp_path / "model.pt"), X)


class ComputedScale(nn.Module):
    def forward(self, x: Tensor):
        x = x / x.abs().max().item()
        return F.avg_pool1d(x, x.size(2))


def test_a_number_computed_from_data_leaves_shapes_known(tmp_path):
    result = agrees(script(ComputedScale(), tmp_path / "model.pt"), X)
    assert kinds(result)[-1] == "avg_pool1d"


class Noisy(nn.Module):
    def forward(self, x: Tensor):
        return x + torch.randn(8, dtype=torch.float64)


def test_noise_is_not_frozen(tmp_path):
    graph = lower(script(Noisy(), tmp_path / "model.pt"), [X]).graph
    assert not torch.equal(graph(X), graph(X))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_training_forms_become_inference_forms_with_a_note(tmp_path):
    module = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5)).double().train()
    nn.init.uniform_(module[0].running_var, 1, 2)
    archive = trace(module, tmp_path / "model.pt", X)
    result = lower(archive, [X])
    same(result.graph(X), module.eval()(X))
    same(ArchiveBody(archive)(X), module(X))
    found = ("0: aten::batch_norm", "1: aten::dropout")
    assert training_modules(archive) == found
    assert result.notes == [
        f"The file was in training mode ({', '.join(found)}); it is served in its inference form."
    ]
