"""Multipliers sum to the target's difference whatever a network is made of."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interpret_server.errors import FailedPrecondition
from interpret_server.models.classifier import Classifier
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.multipliers import Multipliers, multipliers
from interpret_server.models.targets import Targets
from interpret_server.testing import classifier

_RAGGED = torch.tensor([True, False, False])


def _pairs(h: Tensor) -> Tensor:
    return h.reshape(-1, 2, 3)


def _image(h: Tensor) -> Tensor:
    return h.reshape(-1, 1, 2, 3)


def _attend(h: Tensor, **settings: bool) -> Tensor:
    parts = h.reshape(-1, 1, 3, 2)
    return F.scaled_dot_product_attention(parts, parts.flip(3), parts, **settings)


def _written(h: Tensor) -> Tensor:
    h = h.clone()
    h[:, 4] += h[:, 0]
    h[:, :2].mul_(3).relu_()
    return h


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "relu6": lambda h: F.relu6(8 * h),
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": lambda h: F.hardswish(4 * h),
    "hardsigmoid": lambda h: F.hardsigmoid(4 * h),
    "softplus": F.softplus,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "sigmoid": torch.sigmoid,
    "clamp": lambda h: h.clamp(-0.1, 0.2),
    "sine": torch.sin,
    "error_function": torch.erf,
    "logarithm": lambda h: torch.log1p(h * h),
    "square": lambda h: h**2,
    "cube": lambda h: h**3,
    "prelu": lambda h: F.prelu(h, torch.tensor([0.2], dtype=h.dtype)),
    "glu": F.glu,
    "softmax": lambda h: F.softmax(3 * h, 1),
    "softmax_of_large_values": lambda h: F.softmax(400 * h, 1),
    "log_softmax": lambda h: F.log_softmax(h, 1),
    "log_sum_exp": lambda h: torch.logsumexp(_pairs(h), 2),
    "softmax_of_masked_values": lambda h: F.softmax(_pairs(h).masked_fill(_RAGGED, -math.inf), 2),
    "layer_norm": lambda h: F.layer_norm(h, (6,)),
    "rms_norm": lambda h: F.rms_norm(h, (6,)),
    "group_norm": lambda h: F.group_norm(h.reshape(-1, 3, 2), 1),
    "instance_norm": lambda h: F.instance_norm(_pairs(h)),
    "unit_length": lambda h: F.normalize(h, dim=1),
    "cosine": lambda h: F.cosine_similarity(_pairs(h)[:, :1], _pairs(h)[:, 1:], dim=2),
    "deviation": lambda h: torch.cat([h.std(1, keepdim=True), h.var(1, keepdim=True)], 1),
    "distances": lambda h: torch.cdist(h.reshape(-1, 3, 2), 0.3 - h.reshape(-1, 3, 2)),
    "max_pool1d": lambda h: F.max_pool1d(_pairs(h), 2),
    "max_pool2d": lambda h: F.max_pool2d(_image(h), 2, 1, 1),
    "max_pool3d": lambda h: F.max_pool3d(_image(h)[:, None], (1, 2, 2), 1),
    "adaptive_max_pool2d": lambda h: F.adaptive_max_pool2d(_image(h), (1, 2)),
    "max_of_axis": lambda h: _pairs(h).max(1).values,
    "max_of_axes": lambda h: _pairs(h).amax((1, 2), keepdim=True),
    "min_of_axis": lambda h: _pairs(h).amin(2),
    "larger": lambda h: torch.maximum(h, h.flip(1)),
    "smaller": lambda h: torch.min(h, h.flip(1)),
    "gate": lambda h: h * torch.sigmoid(h.flip(1)),
    "square_of_one_value": lambda h: h * h,
    "three_factors": lambda h: torch.einsum("ni,nj,nk->nijk", h, h, h),
    "quotient": lambda h: h / (1 + h.flip(1) ** 2),
    "power": lambda h: torch.pow(h.abs() + 0.1, h.flip(1)),
    "angle": lambda h: torch.atan2(h, 3 + h.flip(1)),
    "addcmul": lambda h: torch.addcmul(h, h.flip(1), h.sin()),
    "lerp": lambda h: torch.lerp(h, h.flip(1), h.sigmoid()),
    "matrix_product": lambda h: _pairs(h) @ _pairs(h).mT,
    "attention": _attend,
    "causal_attention": lambda h: _attend(h, is_causal=True),
    "convolution_with_its_own_values": lambda h: F.conv1d(
        h[None], h[:, :2, None].mT, groups=h.shape[0]
    )[0],
    "choice": lambda h: torch.where(h > h.flip(1), 2 * h, h - 1),
    "mask": lambda h: (h > 0) * h.cos(),
    "masks": lambda h: ((h > 0) & (h < 0.3) | (h > 0.9)).to(h.dtype) + h,
    "masked_fill": lambda h: h.masked_fill(h > 0.2, -4.0),
    "rounding": lambda h: torch.round(4 * h),
    "whole_numbers": lambda h: (4 * h).to(torch.int64).to(h.dtype) / 4,
    "running_product": lambda h: h.cumprod(1),
    "product": lambda h: h.prod(1, keepdim=True),
    "sorted": lambda h: h.sort(1).values,
    "strongest": lambda h: h.topk(2, 1).values,
    "running_maximum": lambda h: _pairs(h).cummax(2).values,
    "spectrum": lambda h: torch.fft.rfft(h).abs(),
    "resized": lambda h: F.interpolate(_image(h), scale_factor=2, mode="bilinear"),
    "unfolded": lambda h: F.unfold(_image(h), 2),
    "concatenated": lambda h: torch.cat([h.relu(), h.tanh(), h], 1),
    "written_in_place": _written,
}


class Around(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        torch.manual_seed(5)
        self.first = nn.Linear(5, 6).double()
        values = function(torch.rand(2, 6, dtype=torch.float64)).flatten(1)
        self.last = nn.Linear(values.shape[1], 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(2 * self.first(x)).flatten(1))


def assert_complete(found: Multipliers, x: Tensor, baseline: Tensor, tolerance: float) -> None:
    difference = found.objective - found.start
    assert float(difference.abs().max()) > 1e-3
    total = (found.inputs * (x - baseline)).flatten(1).sum(1)
    torch.testing.assert_close(total, difference, rtol=0, atol=tolerance)
    assert not found.unruled


@pytest.mark.parametrize("name", FUNCTIONS)
def test_multipliers_are_complete(name: str) -> None:
    module = Around(FUNCTIONS[name])
    model = classifier(module, (5,)) if name != "written_in_place" else _untraced(module)
    x = torch.randn(6, 5, dtype=torch.float64)
    baseline = torch.randn(6, 5, dtype=torch.float64)
    baseline[0] = 0
    baseline[1, :3] = x[1, :3]
    targets = Targets.classes(torch.tensor([0, 1, 2, 0, 1, 2]))
    found = multipliers(model, x, baseline, targets)
    assert_complete(found, x, baseline, 1e-12)
    alone = multipliers(model, x[2:3], baseline[2:3], targets.take(slice(2, 3)))
    torch.testing.assert_close(alone.inputs, found.inputs[2:3], rtol=1e-9, atol=1e-11)


def _untraced(module: nn.Module) -> Classifier:
    """A classifier that runs a module as it is, without a graph."""
    model = classifier(nn.Linear(5, 3).double(), (5,))
    model.module.body = module.requires_grad_(False)
    return model


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_ends_give_the_gradient(name: str) -> None:
    if name in ("rounding", "whole_numbers", "masks", "mask", "choice", "masked_fill"):
        return  # the gradient says nothing of a step
    module = Around(FUNCTIONS[name])
    x = torch.randn(4, 5, dtype=torch.float64)
    targets = Targets.classes(torch.tensor([0, 1, 2, 0]))
    found = multipliers(_untraced(module), x, x, targets)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(targets.select(module(leaf)).sum(), leaf)
    torch.testing.assert_close(found.inputs, expected, rtol=1e-8, atol=1e-10)


def test_values_that_are_hardly_apart_get_the_gradient() -> None:
    module = Around(lambda h: torch.sigmoid(h) * torch.tanh(h.flip(1)))
    x = torch.randn(3, 5, dtype=torch.float64)
    apart = 1e-12 * torch.randn(3, 5, dtype=torch.float64)
    targets = Targets.classes(torch.tensor([0, 1, 2]))
    model = classifier(module, (5,))
    near, same = (multipliers(model, x, x + step, targets) for step in (apart, 0 * apart))
    torch.testing.assert_close(near.inputs, same.inputs, rtol=1e-6, atol=1e-8)


def test_rectifiers_that_meet_in_a_product_have_a_closed_form() -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = F.relu(x[:, 0] - 1), F.relu(x[:, 1] + 2)
            return torch.stack([a * b, a - b], 1)

    x = torch.tensor([[3.0, 1.0]])
    baseline = torch.tensor([[0.0, -3.0]])  # a: 0 to 2 over 3; b: 0 to 3 over 4
    model = classifier(Product(), (2,))
    found = multipliers(model, x, baseline, Targets.classes(torch.tensor([0])))
    torch.testing.assert_close(found.inputs, torch.tensor([[2 / 3 * 1.5, 3 / 4 * 1.0]]))
    other = multipliers(model, x, baseline, Targets.classes(torch.tensor([1])))
    torch.testing.assert_close(other.inputs, torch.tensor([[2 / 3, -3 / 4]]))


def test_max_pooling_gives_the_rise_to_the_new_place_and_the_fall_to_the_old_one() -> None:
    module = nn.Sequential(nn.MaxPool1d(3), nn.Flatten(), nn.Linear(1, 2))
    nn.init.ones_(module[2].weight)
    model = classifier(module, (1, 3))
    x = torch.tensor([[[5.0, 1, 0]], [[0.0, 1, 2]], [[4.0, 1, 0]]])
    baseline = torch.tensor([[[1.0, 3, 0]], [[0.0, 5, 1]], [[4.0, 0, 0]]])
    found = multipliers(model, x, baseline, Targets.classes(torch.tensor([0, 0, 0])))
    expected = torch.tensor([[[2 / 4, 0, 0]], [[0, 3 / 4, 0]], [[1.0, 0, 0]]])
    torch.testing.assert_close(found.inputs, expected)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **settings: bool | int) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.layer = kind(4, 5, batch_first=True, **settings)
        self.last = nn.Linear(10 if settings.get("bidirectional") else 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x)[0][:, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "module",
    [
        Recurrent(nn.LSTM),
        Recurrent(nn.LSTM, bidirectional=True, num_layers=2),
        Recurrent(nn.LSTM, bias=False),
        Recurrent(nn.GRU, bidirectional=True),
        Recurrent(nn.RNN),
    ],
    ids=["lstm", "lstm_of_two_levels", "lstm_without_bias", "gru", "rnn"],
)
def test_recurrent_layers_are_complete(module: nn.Module, dtype: torch.dtype) -> None:
    model = classifier(module.to(dtype), (6, 4))
    x, baseline = torch.randn(2, 3, 6, 4).to(dtype)
    found = multipliers(model, x, baseline, Targets.classes(torch.tensor([0, 1, 2])))
    torch.testing.assert_close(found.logits, model(x))
    assert_complete(found, x, baseline, 2e-6 if dtype is torch.float32 else 1e-13)


class Turning(nn.Module):
    """Doubles what it gives where the first value of its rows is large."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        if float(x[0, 0]) > 2:
            y = torch.tanh(y)
        return self.last(y)


def test_an_archive_without_a_graph_is_followed_as_it_runs(tmp_path: Path) -> None:
    torch.manual_seed(7)
    module = Turning().eval()
    torch.jit.script(module).save(str(tmp_path / "model.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manifest = Manifest.model_validate({"shape": (4,), "bounds": (0, 4)})
        loaded = load_classifier(
            "turning", tmp_path / "model.pt", manifest, device=torch.device("cpu")
        )
    model = loaded.classifier
    assert model.plans.graph is None
    x, baseline = torch.rand(2, 3, 4)
    targets = Targets.classes(torch.tensor([0, 1, 2]))
    found = multipliers(model, x, baseline, targets)
    assert_complete(found, x, baseline, 1e-6)
    with pytest.raises(FailedPrecondition, match="turning takes other steps at the baseline"):
        multipliers(model, x + 3, baseline, targets)


def test_values_chosen_by_position_are_told() -> None:
    module = Around(lambda h: h.gather(1, h.argmax(1, keepdim=True)))
    x = torch.randn(8, 5, dtype=torch.float64)
    targets = Targets.classes(torch.zeros(8, dtype=torch.int64))
    model = classifier(module, (5,))
    assert multipliers(model, x, -x, targets).unruled == ("gather",)
    assert not multipliers(model, x, 1.0001 * x, targets).unruled
    counted = classifier(Around(lambda h: h.argsort(1).to(h.dtype) + h), (5,))
    assert multipliers(counted, x, -x, targets).unruled == ("sort",)


def test_an_operator_without_a_derivative_is_named() -> None:
    model = _untraced(Around(lambda h: torch.histc(h.detach(), 4).expand(len(h), 4)))
    x = torch.rand(2, 5, dtype=torch.float64)
    targets = Targets.classes(torch.tensor([0, 1]))
    with pytest.raises(FailedPrecondition, match="operator histc has no derivative"):
        multipliers(model, x, 0 * x, targets)
