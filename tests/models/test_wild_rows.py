"""Files whose rows influence each other, and files that answer differently each time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from wild import Wild, export, load

from interpret_server.errors import ModelRejected

MIXED: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "mean": lambda last, x: last(x - x.mean(0, keepdim=True)),
    "softmax": lambda last, x: last(x).softmax(0) * 5,
    "first row": lambda last, x: last(x - x[:1]),
    "rows before": lambda last, x: torch.cumsum(last(x), 0),
    "second row": lambda last, x: last(x) + (torch.arange(x.shape[0]) == 1)[:, None].float(),
    "largest": lambda last, x: last(x) / last(x).abs().max(),
}


class Mixed(nn.Module):
    def __init__(self, mix: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.last, self.mix = nn.Linear(8, 4), mix

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.last, x)


def _vectors(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, 8),)


@pytest.mark.parametrize("exporter", ["trace", "export", "export1", "onnx", "onnx1"])
@pytest.mark.parametrize("mix", MIXED)
def test_rows_that_influence_each_other_run_alone(mix: str, exporter: str, tmp_path: Path) -> None:
    wild = Wild(lambda: Mixed(MIXED[mix]), _vectors)
    module = wild.module()
    loaded = load(wild, export(wild, module, exporter, tmp_path))
    (x,) = _vectors(4)
    alone = torch.cat([module(row) for row in x.split(1)])
    torch.testing.assert_close(loaded.classifier(x), alone)
    assert "1 row at a time" in loaded.info.form_reason or exporter.endswith("1")


class BatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x))


@pytest.mark.parametrize("exporter", ["script", "trace", "export"])
def test_a_network_without_single_rows_is_refused(exporter: str, tmp_path: Path) -> None:
    wild = Wild(BatchStatistics, _vectors)
    path = export(wild, wild.module(), exporter, tmp_path)
    with pytest.raises(ModelRejected, match="only 2 rows at a time, and its rows influence"):
        load(wild, path)


class Draws(nn.Module):
    """Draws zeros and ones, which two runs may draw alike."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) + torch.randint(0, 2, (1,)).to(x.dtype)


class Winner(Draws):
    def forward(self, x: Tensor) -> Tensor:
        return (self.last(x) + 1e-3 * torch.rand(x.shape[0], 4)).argmax(1)


class Counts(Draws):
    """Its state matters from the hundredth call on."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.last(x) * (1 + (self.calls > 100).to(x.dtype))


@pytest.mark.parametrize("exporter", ["script", "trace", "export", "onnx"])
@pytest.mark.parametrize("build", [Draws, Winner])
def test_random_files_are_told_by_their_operators(
    build: type[nn.Module], exporter: str, tmp_path: Path
) -> None:
    wild = Wild(build, _vectors, output={"classes": 4} if build is Winner else {})
    info = load(wild, export(wild, wild.module(), exporter, tmp_path)).info
    assert "deterministic" not in info.capabilities
    assert "draws random numbers" in info.lacking["deterministic"]
    assert info.verification.reference == "none"
    assert any("not verified" in note for note in info.notes)


@pytest.mark.parametrize("exporter", ["script", "trace", "export"])
def test_state_that_does_not_matter_yet_is_told(exporter: str, tmp_path: Path) -> None:
    wild = Wild(Counts, _vectors)
    info = load(wild, export(wild, wild.module(), exporter, tmp_path)).info
    assert info.form == "archive"
    assert "changes the model's own calls" in info.lacking["deterministic"]
