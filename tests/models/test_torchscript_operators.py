"""Operators in their canonical form, and archives as files."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpret_server.errors import InvalidModel, ModelRejected
from interpret_server.models.lowered import Lowered
from interpret_server.models.relu_rules import ReluRule, count_rectifiers, relu_rule
from interpret_server.models.torchscript import lower, open_archive

SIGNAL = (2, 4, 9)
IMAGE = (2, 4, 7, 7)
VOLUME = (2, 4, 5, 5, 5)


class Apply(nn.Module):
    """A function as a module that can be traced."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def example(shape: tuple[int, ...], rows: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return 2 * torch.randn(rows, *shape[1:], generator=generator, dtype=torch.float64)


def opened(module: nn.Module, path: Path, x: Tensor) -> torch.jit.ScriptModule:
    torch.jit.save(torch.jit.trace(module.double().eval(), x), path)
    return open_archive(path)


def kinds(result: Lowered) -> list[str]:
    return [
        node.meta["kind"]
        for node in result.graph.graph.nodes
        if node.op in ("call_module", "call_function") and "kind" in node.meta
    ]


def agrees(module: nn.Module, shape: tuple[int, ...], path: Path) -> Lowered:
    result = lower(opened(module, path, example(shape)), [example(shape)])
    for rows in (1, 2, 5):
        x = example(shape, rows)
        values, gradients = [], []
        for forward in (result.graph, module):
            leaf = x.clone().requires_grad_()
            values.append(forward(leaf * 1.0))
            (gradient,) = torch.autograd.grad(values[-1].square().sum(), leaf)
            gradients.append(gradient)
        torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-11, atol=1e-11)
    return result


LAYERS = [
    (nn.ReLU(), SIGNAL, "relu"),
    (nn.ReLU(inplace=True), SIGNAL, "relu"),
    (nn.ReLU6(), SIGNAL, "relu6"),
    (nn.Hardtanh(0.0, 6.0, inplace=True), SIGNAL, "relu6"),
    (nn.Hardtanh(-0.5, 1.5), SIGNAL, "hardtanh"),
    (nn.LeakyReLU(0.2), SIGNAL, "leaky_relu"),
    (nn.PReLU(4, init=0.3), SIGNAL, "prelu"),
    (nn.PReLU(), SIGNAL, "prelu"),
    (nn.RReLU(), SIGNAL, "rrelu"),
    (nn.ELU(0.7, inplace=True), SIGNAL, "elu"),
    (nn.SELU(), SIGNAL, "selu"),
    (nn.CELU(1.3), SIGNAL, "celu"),
    (nn.GELU(), SIGNAL, "gelu"),
    (nn.GELU("tanh"), SIGNAL, "gelu"),
    (nn.SiLU(inplace=True), SIGNAL, "silu"),
    (nn.Mish(), SIGNAL, "mish"),
    (nn.Sigmoid(), SIGNAL, "sigmoid"),
    (nn.LogSigmoid(), SIGNAL, "log_sigmoid"),
    (nn.Tanh(), SIGNAL, "tanh"),
    (nn.Hardswish(inplace=True), SIGNAL, "hardswish"),
    (nn.Hardsigmoid(), SIGNAL, "hardsigmoid"),
    (nn.Softplus(2.0, 10.0), SIGNAL, "softplus"),
    (nn.Threshold(0.1, -3.0), SIGNAL, "threshold"),
    (nn.Hardshrink(0.4), SIGNAL, "hardshrink"),
    (nn.Softshrink(0.4), SIGNAL, "softshrink"),
    (nn.GLU(1), SIGNAL, "glu"),
    (nn.Softmax(1), SIGNAL, "softmax"),
    (nn.LogSoftmax(-1), SIGNAL, "log_softmax"),
    (nn.Dropout(0.3), SIGNAL, "dropout"),
    (nn.Dropout2d(0.3), IMAGE, "dropout"),
    (nn.AlphaDropout(0.3), SIGNAL, "dropout"),
    (nn.Flatten(), IMAGE, "flatten"),
    (nn.Flatten(1, 2), IMAGE, "flatten"),
    (nn.Conv1d(4, 6, 3, 2, 1, 2, groups=2), SIGNAL, "conv1d"),
    (nn.Conv2d(4, 6, (3, 1), padding="same", bias=False), IMAGE, "conv2d"),
    (nn.Conv2d(4, 4, 3, padding=1, groups=4), IMAGE, "conv2d"),
    (nn.Conv3d(4, 2, 3, padding=(1, 0, 1)), VOLUME, "conv3d"),
    (nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2), SIGNAL, "conv_transpose1d"),
    (nn.ConvTranspose2d(4, 6, 3, 2, (1, 0), dilation=2), IMAGE, "conv_transpose2d"),
    (nn.ConvTranspose3d(4, 2, 2, bias=False), VOLUME, "conv_transpose3d"),
    (nn.Linear(9, 5), SIGNAL, "linear"),
    (nn.BatchNorm1d(4), SIGNAL, "batch_norm"),
    (nn.BatchNorm2d(4, affine=False), IMAGE, "batch_norm"),
    (nn.BatchNorm3d(4, eps=0.1), VOLUME, "batch_norm"),
    (nn.BatchNorm2d(4, track_running_stats=False), IMAGE, "batch_norm"),
    (nn.LayerNorm((7, 7)), IMAGE, "layer_norm"),
    (nn.LayerNorm(9, elementwise_affine=False), SIGNAL, "layer_norm"),
    (nn.GroupNorm(2, 4), IMAGE, "group_norm"),
    (nn.InstanceNorm1d(4, affine=True), SIGNAL, "instance_norm"),
    (nn.InstanceNorm2d(4, track_running_stats=True), IMAGE, "instance_norm"),
    (nn.MaxPool1d(3, ceil_mode=True), SIGNAL, "max_pool1d"),
    (nn.MaxPool2d(3, 2, 1), IMAGE, "max_pool2d"),
    (nn.MaxPool3d((1, 2, 2), dilation=(1, 2, 1)), VOLUME, "max_pool3d"),
    (nn.AvgPool1d(3, padding=1), SIGNAL, "avg_pool1d"),
    (nn.AvgPool2d(3, 2, 1, True, False), IMAGE, "avg_pool2d"),
    (nn.AvgPool3d(2, divisor_override=3), VOLUME, "avg_pool3d"),
    (nn.AdaptiveAvgPool1d(3), SIGNAL, "adaptive_avg_pool1d"),
    (nn.AdaptiveAvgPool2d((3, None)), IMAGE, "adaptive_avg_pool2d"),
    (nn.AdaptiveAvgPool3d(1), VOLUME, "adaptive_avg_pool3d"),
    (nn.AdaptiveMaxPool1d(3), SIGNAL, "adaptive_max_pool1d"),
    (nn.AdaptiveMaxPool2d(3), IMAGE, "adaptive_max_pool2d"),
]


@pytest.mark.parametrize(
    ("module", "shape", "kind"), LAYERS, ids=[f"{kind}{i}" for i, (*_, kind) in enumerate(LAYERS)]
)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_layer_is_one_module_of_its_kind(module, shape, kind, tmp_path):
    for name, tensor in module.named_buffers():
        if name == "running_var":
            nn.init.uniform_(tensor, 0.5, 2)
    result = agrees(nn.Sequential(module), shape, tmp_path / "model.pt")
    used = [node for node in result.graph.graph.nodes if node.op == "call_module"]
    assert [node.meta["kind"] for node in used] == [kind]
    assert "0" in result.layers
    assert isinstance(result.graph.get_submodule(str(used[0].target)), type(module) | nn.ReLU6)


weight = torch.linspace(-1, 1, 9 * 5, dtype=torch.float64).reshape(9, 5)
bias = torch.linspace(-1, 1, 5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("function", "shape", "expected"),
    [
        (lambda x: torch.addmm(bias, x.sum(1), weight), SIGNAL, ["sum", "linear"]),
        (lambda x: x @ weight + bias, SIGNAL, ["linear", "add"]),
        (lambda x: torch.mm(x.sum(1), weight), SIGNAL, ["sum", "linear"]),
        (lambda x: F.linear(x, weight.t().contiguous(), bias), SIGNAL, ["linear"]),
        (lambda x: torch.bmm(x, x.transpose(1, 2)), SIGNAL, ["transpose", "bmm"]),
        (lambda x: F.conv1d(x, x[:1, :, :3]), SIGNAL, None),
        (lambda x: x.clamp(min=0), SIGNAL, ["relu"]),
        (lambda x: x.clamp(0.0, 1.0), SIGNAL, ["clamp"]),
        (lambda x: torch.maximum(x, torch.zeros(9).to(x)), SIGNAL, ["relu"]),
        (lambda x: x * (x > 0), SIGNAL, ["relu"]),
        (lambda x: x * (x > 0).to(x.dtype), SIGNAL, ["relu"]),
        (lambda x: torch.clamp_max(x, 0.5), SIGNAL, ["clamp"]),
        (lambda x: x.clamp(-0.5, 0.7), SIGNAL, ["clamp"]),
        (lambda x: torch.max(x, torch.zeros_like(x)), SIGNAL, ["relu"]),
        (lambda x: x.contiguous().clone(), SIGNAL, ["identity", "identity"]),
        (lambda x: x.reshape(x.shape[0], -1).unsqueeze(1).squeeze(1), SIGNAL, None),
        (lambda x: x.permute(0, 2, 1).float().double(), SIGNAL, ["permute", "cast", "cast"]),
        (lambda x: torch.stack(x.chunk(3, 2), 1).sum(1), SIGNAL, None),
        (lambda x: F.pad(x, (1, 2), mode="reflect"), SIGNAL, ["pad"]),
        (lambda x: F.pixel_shuffle(x, 2), IMAGE, ["pixel_shuffle"]),
        (lambda x: torch.where(x > 0, x, x.exp() - 1), SIGNAL, None),
        (lambda x: x[:, torch.tensor([2, 0])] * x[x > 0].mean(), SIGNAL, None),
        (lambda x: x.topk(3, -1)[0], SIGNAL, None),
        (lambda x: torch.softmax(x.float(), 1, dtype=torch.float64), SIGNAL, None),
        (lambda x: F.normalize(x, dim=1), SIGNAL, None),
        (lambda x: F.scaled_dot_product_attention(x, x, x), SIGNAL, None),
        (lambda x: torch.einsum("nct,ncs->nts", x, x), SIGNAL, None),
        (lambda x: F.embedding((x > 0).long(), weight) * x[..., None], SIGNAL, None),
    ],
)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_functions_are_exact_at_any_batch_size(function, shape, expected, tmp_path):
    result = agrees(Apply(function), shape, tmp_path / "model.pt")
    if expected is not None:
        assert kinds(result) == expected


RECTIFIERS = {
    "relu": torch.relu,
    "clamp": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: torch.clamp_min(x, 0.0),
    "maximum": lambda x: torch.maximum(x, torch.zeros((), dtype=x.dtype)),
    "max": lambda x: torch.max(torch.zeros(1, dtype=x.dtype), x),
    "gate": lambda x: (x > 0) * x,
}


@pytest.mark.parametrize("name", RECTIFIERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_rectifier_keeps_its_values_and_its_own_derivative_at_zero(name, dtype, tmp_path):
    module = Apply(RECTIFIERS[name])
    edge = torch.finfo(dtype).smallest_normal
    x = torch.tensor([[-1.0, -0.0, 0.0], [-edge, edge, 2.0]], dtype=dtype)
    torch.jit.save(torch.jit.trace(module, x), tmp_path / "model.pt")
    graph = lower(open_archive(tmp_path / "model.pt"), [x]).graph
    values, gradients = [], []
    for forward in (graph, module):
        leaf = x.clone().requires_grad_()
        values.append(forward(leaf * 1))
        gradients.append(torch.autograd.grad(values[-1].sum(), leaf)[0])
    assert torch.equal(*values)
    assert torch.equal(*gradients)
    assert count_rectifiers(graph, x) >= 1
    assert any(isinstance(part, nn.ReLU) for part in graph.modules())


def test_a_rectifier_in_other_words_follows_the_rules(tmp_path):
    for name, function in RECTIFIERS.items():
        module = nn.Sequential(nn.Linear(9, 5), Apply(function), nn.Linear(5, 3)).double()
        graph = lower(opened(module, tmp_path / f"{name}.pt", example(SIGNAL)), [example(SIGNAL)])
        twin = nn.Sequential(module[0], nn.ReLU(), module[2])
        for rule in (ReluRule.GUIDED, ReluRule.DECONVNET):
            gradients = []
            for forward in (graph.graph, twin):
                leaf = example(SIGNAL).requires_grad_()
                with relu_rule(rule):
                    gradients.append(torch.autograd.grad(forward(leaf)[..., 1].sum(), leaf)[0])
            torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)


def test_one_parameter_used_twice_stays_one_memory(tmp_path):
    layer = nn.Linear(9, 9)
    result = agrees(nn.Sequential(layer, nn.ReLU(), layer), SIGNAL, tmp_path / "model.pt")
    linears = [m for m in result.graph.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == 2
    assert linears[0].weight.data_ptr() == linears[1].weight.data_ptr()
    assert not any(parameter.requires_grad for parameter in result.graph.parameters())


def test_inputs_of_another_type_than_float_are_taken(tmp_path):
    module = nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), nn.Linear(24, 3)).double()
    tokens = torch.arange(8).reshape(2, 4)
    torch.jit.save(torch.jit.script(module), tmp_path / "model.pt")
    graph = lower(open_archive(tmp_path / "model.pt"), [tokens]).graph
    assert torch.equal(graph(tokens[:1]), module(tokens[:1]))


# Files


def test_an_opened_archive_is_frozen_and_in_evaluation_mode(tmp_path):
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Conv1d(4, 2, 3))
    torch.jit.save(torch.jit.script(module.train()), tmp_path / "model.pt")
    archive = open_archive(tmp_path / "model.pt")
    assert not archive.training
    assert not any(parameter.requires_grad for parameter in archive.parameters())


def saved(path: Path) -> bytes:
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(64, 64))), path)
    return path.read_bytes()


def truncated(path: Path) -> None:
    path.write_bytes(saved(path)[:-200])


def corrupt(path: Path) -> None:
    saved(path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content[: len(content) // 2] if name.endswith(".py") else content)


def checkpoint(path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), path)


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "nothing")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (truncated, "is truncated"),
        (corrupt, "corrupt or truncated"),
        (checkpoint, "a checkpoint of torch.save"),
        (other_zip, "a zip file of another kind"),
        (
            lambda path: path.write_bytes(b"\x08\x07\x12\x07pytorch" * 9),
            "not a TorchScript archive",
        ),
        (lambda path: path.write_bytes(b""), "not a TorchScript archive"),
    ],
)
def test_a_file_that_is_no_archive_is_refused_in_one_sentence(write, message, tmp_path):
    path = tmp_path / "secret-name.pt"
    write(path)
    with pytest.raises(InvalidModel, match=message) as refused:
        open_archive(path)
    assert "secret-name" not in refused.value.message
    assert "\n" not in refused.value.message
    assert refused.value.message.endswith(".")


def test_an_operator_that_is_not_installed_is_named(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(nn.Sequential(nn.ReLU())), path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            changed = content.replace(b"torch.relu(", b"ops.vision.nms(")
            file.writestr(name, changed if name.endswith(".py") else content)
    with pytest.raises(ModelRejected, match="vision::nms"):
        open_archive(path)


# Real archives

ROWS = {"cifar10": (3, 32, 32), "imagenet": (3, 224, 224), "mnist": (1, 28, 28)}


@pytest.mark.shared_data
def test_every_real_archive_is_lowered_exactly(shared_data):
    paths = sorted((shared_data / "models").rglob("*.pt"))
    assert len(paths) >= 10
    for path in paths:
        archive = open_archive(path)
        if path.parent.name == "text":
            x = torch.randint(32, 127, (3, 20), dtype=torch.uint8)
        else:
            x = torch.rand(3, *ROWS[path.parent.name])
        result = lower(archive, [x[:2]])
        with torch.no_grad():
            torch.testing.assert_close(result.graph(x), archive(x), rtol=1e-5, atol=1e-5)
        assert len(result.layers) > 5
