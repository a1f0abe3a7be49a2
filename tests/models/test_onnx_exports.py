"""A zoo of small classifiers, exported to ONNX in several ways, against the eager modules."""

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from captum.attr import Deconvolution, GuidedBackprop
from torch import Tensor, nn

from interpret_server.models.lowered import Lowered
from interpret_server.models.onnx import import_model
from interpret_server.models.relu_rules import ReluRule, relu_rule

CLASSES = 5


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu2 = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.head = nn.Linear(8, CLASSES)
        for norm in (self.bn1, self.bn2):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        a = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(a + self.bn2(self.conv2(a)))
        return self.head(F.adaptive_avg_pool2d(self.pool(y), 1).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3)
        self.relu1 = nn.ReLU()
        self.reduce = nn.Conv2d(6, 2, 1)
        self.relu2 = nn.ReLU()
        self.expand = nn.Conv2d(2, 6, 1)
        self.pointwise = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.relu1(self.depthwise(x))
        gate = self.expand(self.relu2(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        x = F.hardswish(self.pointwise(x * F.hardsigmoid(gate)))
        return self.head(F.silu(x).mean((2, 3)))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 4, k, padding=k // 2), nn.ReLU()) for k in (1, 3, 5)
        )
        self.head = nn.Linear(11 * 16, CLASSES)

    def forward(self, x):
        values = [branch(x) for branch in self.branches]
        y = torch.cat([*values, F.avg_pool2d(x, 3, 1, 1)], 1)[:, :11]
        y = F.max_pool2d(F.interpolate(y, scale_factor=2), 8, 8, ceil_mode=True)
        return F.log_softmax(self.head(y.reshape(y.shape[0], -1)), 1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = (
            part.reshape(n, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        weights = (q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, length, width))


class VisionTransformer(nn.Module):
    def __init__(self, width: int = 16, builtin: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 4)
        self.builtin = nn.MultiheadAttention(width, 4) if builtin else None
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        y = self.norm1(x)
        if self.builtin is None:
            x = x + self.attention(y)
        else:
            y = y.transpose(0, 1)
            x = x + self.builtin(y, y, y, need_weights=False)[0].transpose(0, 1)
        return self.head((x + self.mlp(self.norm2(x)))[:, 0])


@dataclass(frozen=True)
class Entry:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rectified: bool = False  # has rectifiers that Captum hooks, and no batch norm


ZOO = {
    "plain": Entry(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 36, CLASSES),
        ),
        (3, 16, 16),
        rectified=True,
    ),
    "residual": Entry(Residual, (3, 16, 16)),
    "squeeze_excite": Entry(SqueezeExcite, (3, 16, 16), rectified=True),
    "inception": Entry(Inception, (3, 16, 16), rectified=True),
    "relu6": Entry(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, 2),
            nn.ReLU6(),
            nn.Dropout(0.5),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
            nn.Softmax(1),
        ),
        (3, 16, 16),
    ),
    "mlp": Entry(
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(12, 9),
            nn.ReLU(),
            nn.Linear(9, 7),
            nn.Tanh(),
            nn.Linear(7, CLASSES),
        ),
        (3, 4),
        rectified=True,
    ),
    "conv1d": Entry(
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 5, padding=2),
            nn.PReLU(4),
            nn.MaxPool1d(2),
            nn.Conv1d(4, 6, 3),
            nn.ELU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(6, CLASSES),
        ),
        (2, 20),
    ),
    "vision_transformer": Entry(VisionTransformer, (3, 16, 16)),
    "multihead_attention": Entry(lambda: VisionTransformer(builtin=True), (3, 16, 16)),
}


@dataclass(frozen=True)
class Exporter:
    """How a file is written."""

    opset: int
    dynamo: bool = False
    dynamic: bool = True  # the batch size is left open, rather than fixed to 1

    def __str__(self) -> str:
        how = "dynamo" if self.dynamo else "torchscript"
        return f"{how}-{self.opset}-{'open' if self.dynamic else 'fixed'}"

    def __call__(self, module: nn.Module, x: Tensor, path: Path) -> None:
        options: dict[str, object] = {}
        if self.dynamo:
            options = {"external_data": False, "verbose": False}
            if self.dynamic:
                options["dynamic_shapes"] = ({0: torch.export.Dim("n")},)
        elif self.dynamic:
            options["dynamic_axes"] = {"x": {0: "n"}, "y": {0: "n"}}
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (x,),
                path,
                dynamo=self.dynamo,
                opset_version=self.opset,
                input_names=["x"],
                output_names=["y"],
                **options,
            )


OLD = (Exporter(13), Exporter(17), Exporter(17, dynamic=False))
NEW = (Exporter(18, dynamo=True), Exporter(20, dynamo=True, dynamic=False))
EXPORTS = [(name, exporter) for name in ZOO for exporter in OLD if name != "multihead_attention"]
EXPORTS += [
    (name, exporter)
    for name in ("plain", "residual", "inception", "vision_transformer", "multihead_attention")
    for exporter in NEW
]
RECTIFIED = [(name, exporter) for name, exporter in EXPORTS if ZOO[name].rectified]


@cache
def eager(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return ZOO[name].build().eval().requires_grad_(False)


@cache
def imported(name: str, exporter: Exporter) -> Lowered:
    rows = 2 if exporter.dynamic else 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        exporter(eager(name), torch.zeros(rows, *ZOO[name].shape), path)
        return import_model(path)


def gradient(module: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    return y.detach(), torch.autograd.grad(y[:, 1].sum(), leaf)[0]


def distance(ours: Tensor, reference: Tensor) -> float:
    """The largest difference over the largest value."""
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize(("name", "exporter"), EXPORTS, ids=str)
def test_export_computes_what_the_eager_module_does_at_any_batch_size(name, exporter):
    graph = imported(name, exporter).graph
    for rows in (1, 2, 5):
        x = torch.randn(rows, *ZOO[name].shape)
        (y, dx), (expected, slope) = gradient(graph, x), gradient(eager(name), x)
        assert distance(y, expected) <= 1e-5
        assert distance(dx, slope) <= 1e-5


@pytest.mark.parametrize(("name", "exporter"), RECTIFIED, ids=str)
@pytest.mark.parametrize(
    ("rule", "method"),
    [(ReluRule.GUIDED, GuidedBackprop), (ReluRule.DECONVNET, Deconvolution)],
)
def test_rectifier_rules_equal_captum_on_the_eager_module(name, exporter, rule, method):
    graph, shape = imported(name, exporter).graph, ZOO[name].shape
    x = torch.randn(3, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = method(eager(name)).attribute(x.clone().requires_grad_(), target=1).detach()
        hooked = method(graph).attribute(x.clone().requires_grad_(), target=1).detach()
    assert distance(hooked, expected) <= 1e-6
    for call in range(10):
        with relu_rule(rule):
            _, ours = gradient(graph, x)
        assert distance(ours, expected) <= 1e-6, f"call {call + 1}"


@pytest.mark.parametrize(("name", "exporter"), EXPORTS, ids=str)
def test_layers_have_kinds_and_frozen_modules_of_their_own(name, exporter):
    lowered = imported(name, exporter)
    nodes = {node.name: node for node in lowered.graph.graph.nodes}
    for layer in lowered.layers.values():
        kind = nodes[layer].meta["kind"]
        assert kind == kind.lower()
        assert kind.isidentifier()
    called = [node.target for node in nodes.values() if node.op == "call_module"]
    assert len(called) == len(set(called))
    assert not any(parameter.requires_grad for parameter in lowered.graph.parameters())
    assert not any(module.training for module in lowered.graph.modules())


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("plain", "conv2d relu max_pool2d conv2d relu flatten linear"),
        ("mlp", "flatten linear relu linear tanh linear"),
        ("relu6", "conv2d relu6 conv2d relu6 adaptive_avg_pool2d flatten linear softmax"),
        ("conv1d", "conv1d prelu max_pool1d conv1d elu adaptive_avg_pool1d flatten linear"),
    ],
)
def test_layers_come_in_order_of_execution_in_canonical_form(name, kinds):
    lowered = imported(name, Exporter(17))
    nodes = {node.name: node for node in lowered.graph.graph.nodes}
    assert [nodes[layer].meta["kind"] for layer in lowered.layers.values()] == kinds.split()
    assert all(nodes[layer].op == "call_module" for layer in lowered.layers.values())


def test_layers_are_named_after_modules():
    lowered = imported("plain", Exporter(17))
    assert list(lowered.layers)[:3] == ["0", "1", "2"]
    assert lowered.input_names == ("x",)
    assert lowered.output_names == ("y",)


def test_batch_norm_remains_a_layer_where_the_exporter_kept_it():
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "model.onnx")
        torch.onnx.export(
            eager("residual"),
            (torch.zeros(1, 3, 16, 16),),
            path,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
        lowered = import_model(path)
    norms = [m for m in lowered.graph.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2
    x = torch.randn(3, 3, 16, 16)
    assert distance(lowered.graph(x), eager("residual")(x)) <= 1e-6


def test_a_freed_batch_size_is_noted():
    fixed = imported("plain", Exporter(20, dynamo=True, dynamic=False))
    assert any("fixes the batch size to 1" in note for note in fixed.notes)
    assert imported("plain", Exporter(18, dynamo=True)).notes == []
