"""TorchScript archives and torch.export programs as training codes really save them."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from styles import close, load
from torch import Tensor, nn
from torch.export import Dim
from wild import quiet

from interpret_server.errors import InvalidModel, InvalidRequest, ModelRejected
from interpret_server.models.relu_rules import ReluRule, relu_rule
from interpret_server.models.targets import Targets

SHAPE = (3, 12, 12)


class Net(nn.Module):
    __constants__ = ("scale",)

    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(inplace=True),
            nn.Conv2d(8, 8, 3, 1, 1),
            nn.ReLU(inplace=True),
        )
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.features(x).mean((2, 3)) * self.scale))

    @torch.jit.export
    def get_classes(self) -> list[str]:
        return ["a", "b", "c", "d", "e"]


class Outputs(NamedTuple):
    logits: Tensor
    aux: Tensor | None


class WithAuxiliary(nn.Module):
    """As torchvision's Inception: an auxiliary head in training alone."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net, self.aux = net, nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Outputs:
        y = self.net(x)
        aux: Tensor | None = None
        if self.training:
            aux = self.aux(y)
        return Outputs(y, aux)


class Everything(nn.Module):
    """Logits beside what follows from them."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.net(x)
        return {"probs": y.softmax(1), "logits": y, "features": self.net.features(x)}


class Branching(nn.Module):
    """`torch.cond` on the values of a row, with a rectifier inside."""

    def __init__(self, net: Net, conditional: bool) -> None:
        super().__init__()
        self.net, self.more, self.conditional = net, nn.Linear(5, 5), conditional

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        if not self.conditional:
            return self.more(y.relu())
        return torch.cond(y.sum() > -1e9, self.yes, self.no, (y,))

    def yes(self, y: Tensor) -> Tensor:
        return self.more(y.relu())

    def no(self, y: Tensor) -> Tensor:
        return self.more(y) * 2


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(8, *SHAPE))
    return net.eval()


def check(path: Path, eager: Callable[[Tensor], Tensor], **manifest: Any) -> Any:
    """Logits and gradients as the eager module's; the loaded file."""
    loaded = load(path, shape=SHAPE, **manifest)
    noise = torch.Generator().manual_seed(1)
    for rows in (1, 3):
        x = torch.randn(rows, *SHAPE, generator=noise).requires_grad_()
        y = eager(x)
        targets = torch.arange(rows) % 5
        (slope,) = torch.autograd.grad(y.gather(1, targets[:, None]).sum(), x)
        found = loaded.classifier.gradient(x.detach(), Targets.classes(targets))
        close(found.logits.detach(), y.detach())
        close(found.inputs, slope, 1e-4)
        rows_alone = [loaded.classifier(row).detach() for row in x.detach().split(1)]
        close(torch.cat(rows_alone), y.detach())
    return loaded


def _frozen(net: Net, path: Path) -> None:
    torch.jit.save(torch.jit.freeze(torch.jit.script(net), preserved_attrs=["get_classes"]), path)


def _extra(net: Net, path: Path) -> None:
    torch.jit.save(torch.jit.script(net), path, _extra_files={"labels.json": '["a"]'})


def _lite(net: Net, path: Path) -> None:
    torch.jit.script(net)._save_for_lite_interpreter(str(path))


def _without_gradients(net: Net, path: Path) -> None:
    with torch.no_grad():
        torch.jit.trace(net, torch.randn(1, *SHAPE)).save(path)


def _of_a_program(net: Net, path: Path) -> None:
    program = torch.export.export(net, (torch.randn(2, *SHAPE),), dynamic_shapes=({0: BATCH},))
    torch.jit.trace(program.module(), torch.randn(2, *SHAPE), check_trace=False).save(path)


def _dictionary(net: Net, path: Path) -> None:
    torch.jit.trace(Everything(net), torch.randn(2, *SHAPE), strict=False).save(path)


def _auxiliary(net: Net, path: Path) -> None:
    torch.jit.script(WithAuxiliary(net).eval()).save(path)


ARCHIVES = [_frozen, _extra, _lite, _without_gradients, _of_a_program, _dictionary, _auxiliary]


@pytest.mark.parametrize("save", ARCHIVES)
def test_archives(net: Net, save: Callable[[Net, Path], None], tmp_path: Path) -> None:
    with quiet():
        save(net, tmp_path / "m.pt")
    loaded = check(tmp_path / "m.pt", net)
    assert loaded.info.form == "graph"
    assert loaded.info.labels == ()  # `get_classes` is code


BATCH = Dim("batch", min=1, max=512)


def _exported(module: nn.Module, path: Path, rows: int = 2, **options: Any) -> Any:
    free = {"dynamic_shapes": ({0: BATCH},)} if rows > 1 else {}
    program = torch.export.export(module, (torch.randn(rows, *SHAPE),), **{**free, **options})
    torch.export.save(program, path)
    return program


def _resaved(net: Net, path: Path) -> None:
    _exported(net, path)
    torch.export.save(torch.export.load(path).run_decompositions(), path)


def _keyword(net: Net, path: Path) -> None:
    given = {"x": torch.randn(2, *SHAPE)}
    torch.export.save(torch.export.export(net, (), given, dynamic_shapes={"x": {0: BATCH}}), path)


def _derived(net: Net, path: Path) -> None:
    half = Dim("half", min=4, max=32)
    _exported(net, path, dynamic_shapes=({0: BATCH, 2: 2 * half, 3: 2 * half},))


def _draft(net: Net, path: Path) -> None:
    example = (torch.randn(2, *SHAPE),)
    program = torch.export.draft_export(net, example, dynamic_shapes=({0: BATCH},))
    torch.export.save(program, path)


def _autocast_outside(net: Net, path: Path) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _exported(net, path)


PROGRAMS = {
    "strict": lambda net, path: _exported(net, path, strict=True),
    "one row": lambda net, path: _exported(net, path, rows=1),
    "dictionary": lambda net, path: _exported(Everything(net), path),
    "resaved": _resaved,
    "keyword": _keyword,
    "derived sizes": _derived,
    "draft": _draft,
    "autocast outside": _autocast_outside,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(net: Net, name: str, tmp_path: Path) -> None:
    with quiet():
        PROGRAMS[name](net, tmp_path / "m.pt2")
    assert check(tmp_path / "m.pt2", net).info.form == "graph"


def test_conditions_of_a_program_keep_gradients_and_rules(net: Net, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Branching(net, True).eval()
    with quiet():
        _exported(module, tmp_path / "m.pt2")
    loaded = load(tmp_path / "m.pt2", shape=SHAPE)
    assert loaded.info.form == "archive"
    assert {"gradient", "rectifiers"} <= loaded.info.capabilities
    module.conditional = False
    _exported(module, tmp_path / "plain.pt2")
    plain = load(tmp_path / "plain.pt2", shape=SHAPE)
    x, targets = torch.randn(3, *SHAPE), Targets.classes(torch.tensor([0, 1, 2]))
    close(loaded.classifier(x), plain.classifier(x))
    for rule in ReluRule:
        with relu_rule(rule):
            found = loaded.classifier.gradient(x, targets).inputs
            expected = plain.classifier.gradient(x, targets).inputs
        close(found, expected, 1e-4)


class Pair(nn.Module):
    """A binary head that gives both probabilities."""

    def __init__(self, order: str, power: int = 1) -> None:
        super().__init__()
        self.order, self.power, self.last = order, power, nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(30 * self.last(x.mean((1, 2))))
        if self.power > 1:
            p = p**self.power
        if self.order == "stacked":
            q = p.squeeze(1)
            return torch.stack([1 - q, q], 1)
        return torch.cat([1 - p, p] if self.order == "no, yes" else [p, 1 - p], 1)


def _pair(module: Pair, exporter: str, folder: Path) -> Path:
    example = torch.randn(2, *SHAPE)
    with quiet():
        if exporter == "export":
            _exported(module, folder / "m.pt2")
            return folder / "m.pt2"
        if exporter == "onnx":
            axes = {"x": {0: "n"}}
            torch.onnx.export(module, (example,), str(folder / "m.onnx"), dynamo=False,
                              input_names=["x"], dynamic_axes=axes)  # fmt: skip
            return folder / "m.onnx"
        written = torch.jit.script(module) if exporter == "script" else None
        torch.jit.save(written or torch.jit.trace(module, example), folder / "m.pt")
        return folder / "m.pt"


@pytest.mark.parametrize("order", ["no, yes", "yes, no", "stacked"])
@pytest.mark.parametrize("exporter", ["script", "trace", "export", "onnx"])
def test_both_probabilities_of_a_sigmoid_become_logits(
    order: str, exporter: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Pair(order).eval()
    # Without cutting, a saturated sigmoid would leave no gradient.
    loaded = load(_pair(module, exporter, tmp_path), shape=SHAPE)
    assert loaded.info.logits_from == "softmax"
    x = (3 * torch.randn(3, *SHAPE)).requires_grad_()
    half = 15 * module.last(x.mean((1, 2)))
    logits = torch.cat([half, -half] if order == "yes, no" else [-half, half], 1)
    (slope,) = torch.autograd.grad(logits[:, 0].sum(), x)
    found = loaded.classifier.gradient(x.detach(), Targets.classes(torch.tensor([0, 0, 0])))
    close(found.logits.detach(), logits.detach())
    close(found.inputs, slope)


def test_powers_of_a_sigmoid_stay_probabilities(tmp_path: Path) -> None:
    loaded = load(_pair(Pair("no, yes", 2).eval(), "trace", tmp_path), shape=SHAPE)
    assert loaded.info.logits_from == "probabilities"


def test_outputs_of_equal_standing_are_asked_for(net: Net, tmp_path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x.flatten(1)[:, :5]
            return y, y * 2

    torch.jit.trace(Twice(), torch.randn(2, *SHAPE)).save(tmp_path / "m.pt")
    with pytest.raises(InvalidRequest, match=r"by name or by index; there are '0' \[1, 5\]"):
        load(tmp_path / "m.pt", shape=SHAPE)
    assert load(tmp_path / "m.pt", shape=SHAPE, output={"index": 1}).info.output_name == "1"


def test_an_archive_without_its_weights_says_so(net: Net, tmp_path: Path) -> None:
    with quiet():
        torch.jit.optimize_for_inference(torch.jit.script(net)).save(tmp_path / "m.pt")
    with pytest.raises(InvalidModel, match=r"lacks its weights.*optimize_for_inference"):
        load(tmp_path / "m.pt", shape=SHAPE)


def test_an_archive_for_phones_says_what_to_do(tmp_path: Path) -> None:
    torch.jit.script(nn.Sequential(nn.ReLU())).save(tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain:
        files = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as packed:
        for name, data in files.items():
            packed.writestr(name, data.replace(b"torch.relu(", b"ops.prepacked.conv2d_clamp_run("))
    assert any(b"torch.relu(" in data for data in files.values())
    with pytest.raises(ModelRejected, match=r"prepacked::conv2d_clamp_run.*optimize_for_mobile"):
        load(tmp_path / "m.pt", shape=SHAPE)
