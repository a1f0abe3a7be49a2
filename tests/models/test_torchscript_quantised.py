"""Quantised archives: forward only as they are, or graphs with straight-through gradients."""

import copy
import io
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.nn.quantized import FloatFunctional

from interpret_server.models.lowered import Unlowerable
from interpret_server.models.relu_rules import ReluRule, count_rectifiers, relu_rule
from interpret_server.models.torchscript import ArchiveBody, lower, open_archive

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:.*quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:.*reduce_range"),
]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.act = nn.Hardswish()
        self.gate = nn.Sigmoid()
        self.join = FloatFunctional()
        self.scale = FloatFunctional()
        self.both = FloatFunctional()
        self.pool = nn.MaxPool2d(2)
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 6)

    def forward(self, x):
        x = self.pool(self.relu1(self.bn1(self.conv1(self.quant(x)))))
        y = self.act(self.join.add_relu(x, self.conv2(x)))
        y = self.scale.mul(y, self.gate(self.squeeze(y)))
        y = torch.flatten(self.squeeze(self.both.cat([x, y], 1)), 1)
        return self.dequant(self.fc(y))


def converted() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(5)
    module = Residual().eval()
    quantised = quantization.fuse_modules(copy.deepcopy(module), [["conv1", "bn1", "relu1"]])
    quantised.qconfig = quantization.get_default_qconfig("x86")
    quantization.prepare(quantised, inplace=True)
    for seed in range(4):
        quantised(images(16, seed))
    return module, quantization.convert(quantised)


def images(rows: int, seed: int = 9) -> Tensor:
    return torch.rand(rows, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def opened(module: nn.Module, form: str, x: Tensor, path: Path) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive = torch.jit.trace(module, x) if form == "trace" else torch.jit.script(module)
    buffer = io.BytesIO()
    torch.jit.save(archive, buffer)
    path.write_bytes(buffer.getvalue())
    return open_archive(path)


@pytest.mark.parametrize("form", ["script", "trace"])
def test_static_quantisation_is_lowered_to_within_a_step(form, tmp_path):
    module, quantised = converted()
    archive = opened(quantised, form, images(2), tmp_path / "model.pt")
    result = lower(archive, [images(2)], straight_through=True)
    for rows in (1, 5, 40):
        x = images(rows, rows)
        with torch.no_grad():
            gap = (result.graph(x) - ArchiveBody(archive)(x)).abs()
        assert float(gap.max()) <= 1.01 * quantised.fc.scale
        assert float((gap > 0.5 * quantised.fc.scale).float().mean()) < 0.1
    assert {"conv1", "conv2", "act", "squeeze", "fc"} <= set(result.layers)
    x = images(3).requires_grad_()
    gradients = [torch.autograd.grad(net(x)[:, 1].sum(), x)[0] for net in (result.graph, module)]
    cosine = nn.functional.cosine_similarity(*(g.flatten(1) for g in gradients))
    assert float(cosine.min()) > 0.8


def test_straight_through_rectifiers_follow_the_rules(tmp_path):
    _, quantised = converted()
    archive = opened(quantised, "trace", images(2), tmp_path / "model.pt")
    graph = lower(archive, [images(2)], straight_through=True).graph
    x = images(2).requires_grad_()
    assert count_rectifiers(graph, x) >= 2
    (plain,) = torch.autograd.grad(graph(x)[:, 0].sum(), x)
    with relu_rule(ReluRule.GUIDED):
        (guided,) = torch.autograd.grad(graph(x)[:, 0].sum(), x)
    assert not torch.equal(plain, guided)


@pytest.mark.parametrize("form", ["script", "trace"])
def test_without_being_asked_a_quantised_archive_only_predicts(form, tmp_path):
    _, quantised = converted()
    archive = opened(quantised, form, images(2), tmp_path / "model.pt")
    with pytest.raises(Unlowerable, match="quantised tensors, which carry no gradient"):
        lower(archive, [images(2)])
    assert not ArchiveBody(archive)(images(2).requires_grad_()).requires_grad


class Skips(nn.Module):
    """A gradient could pass beside the quantised layer, and would be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.fc(x)


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 4, batch_first=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.lstm(x)[0][:, -1])


@pytest.mark.parametrize(
    ("build", "shape", "operator"),
    [(Skips, (2, 8), "quantized::linear_dynamic"), (Sequences, (2, 5, 8), "quantized|_dynamic")],
)
@pytest.mark.parametrize("straight_through", [False, True])
def test_dynamic_quantisation_only_predicts(build, shape, operator, straight_through, tmp_path):
    module = quantization.quantize_dynamic(build().eval(), {nn.Linear, nn.LSTM})
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    archive = opened(module, "script", x, tmp_path / "model.pt")
    with pytest.raises(Unlowerable, match=operator):
        lower(archive, [x], straight_through=straight_through)
    body = ArchiveBody(archive)
    values = body(x.requires_grad_())
    assert not values.requires_grad
    assert torch.equal(values, module(x))
