"""What load-time verification must notice, and what it must not mind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from wild import Wild, load

from interpret_server.errors import ModelRejected
from interpret_server.models.loading import LoadedModel
from interpret_server.models.lowered import Lowered
from interpret_server.models.sources import TorchScriptSource

Corruption = Callable[[Tensor, Tensor], Tensor]  # of the output, by the input
UNIT = {"bounds": (0, 1)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x)))


class Ninth(Net):
    """Its logits differ by orders of magnitude between inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x))) ** 9


class Unequal(Net):
    """One class's logits are ten thousand times those of the others."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x))) * torch.tensor([1e4, 1.0, 1.0, 1.0])


class Saturated(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.last(F.relu(self.first(x))) * 300, 1)


class Divides(Net):
    """Gives NaN where all features are alike, as on the boundary."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x))) / (
            x.amax(1, keepdim=True) - x.amin(1, keepdim=True)
        )


class Overflows(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(torch.exp(x * 120))))


class Cancels(Net):
    def forward(self, x: Tensor) -> Tensor:
        return (self.last(F.relu(self.first(x))) + 1e4) - 1e4


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv1d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.conv(x)).mean(2))


def _load(
    module: nn.Module,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    corruption: Corruption | None,
    shape: tuple[int, ...] = (8,),
    fields: dict[str, Any] | None = None,
    free: tuple[int, ...] = (),
) -> LoadedModel:
    """The archive of a module, of which the graph is corrupted."""
    lower = TorchScriptSource.lower

    def corrupted(self: TorchScriptSource, *examples: Tensor) -> Lowered:
        lowered = lower(self, *examples)
        if corruption is not None:
            graph = lowered.graph.graph
            output, given = graph.output_node(), next(iter(graph.nodes))
            with graph.inserting_before(output):
                node = graph.call_function(corruption, (output.args[0], given))
            output.args = (node,)
            lowered.graph.recompile()
        return lowered

    monkeypatch.setattr(TorchScriptSource, "lower", corrupted)
    path = folder / "m.pt"
    torch.jit.save(torch.jit.script(module.eval()), str(path))
    wild = Wild(lambda: module, lambda rows: (torch.rand(rows, *shape),), free=free)
    return load(Wild(wild.build, wild.inputs, fields={"x": fields or {}}, free=free), path)


WRONG: dict[str, tuple[type[nn.Module], Corruption, dict[str, Any]]] = {
    "everywhere, by a thousandth": (Net, lambda out, x: out * 1.001, {}),
    "at the upper bound": (Net, lambda out, x: out + 0.01 * (x >= 1).all(1, keepdim=True), UNIT),
    "at the lower bound": (Net, lambda out, x: out + 0.01 * (x <= 0).all(1, keepdim=True), UNIT),
    "far from the mean": (Net, lambda out, x: out + 0.01 * (x > 2.9).all(1, keepdim=True), {}),
    "for two rows": (Net, lambda out, x: out + 0.1 * (len(x) == 2), {}),
    "where logits are small": (
        Ninth,
        lambda out, x: out * (1 + 0.01 * (x.abs().amax(1, keepdim=True) < 2)),
        {},
    ),
    "in a class of small logits": (
        Unequal,
        lambda out, x: out + torch.tensor([0.0, 0.5, 0.0, 0.0]),
        {},
    ),
    "in probabilities that are nearly 0": (
        Saturated,
        lambda out, x: out.clamp(min=1e-38).pow(1.02),
        {},
    ),
    "beside NaN": (Divides, lambda out, x: out * 1.01, UNIT),
    "beside infinity": (Overflows, lambda out, x: out * 1.01, UNIT),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_graph_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    build, corruption, fields = WRONG[case]
    with pytest.raises(ModelRejected, match="differs from the file's own execution"):
        _load(build(), tmp_path, monkeypatch, corruption, fields=fields)


def test_a_graph_wrong_at_another_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelRejected, match="differs from the file's own execution"):
        _load(
            Sequence(),
            tmp_path,
            monkeypatch,
            lambda out, x: out + 0.1 * (x.shape[2] != 20),
            shape=(2, 20),
            free=(2,),
        )


def test_a_graph_wrong_beside_other_rows_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net()
    loaded = _load(
        net, tmp_path, monkeypatch, lambda out, x: out + (torch.arange(len(x)) == 1)[:, None] * 0.1
    )
    x = torch.rand(3, 8)
    torch.testing.assert_close(loaded.classifier(x), net(x))


@pytest.mark.parametrize(
    ("build", "dtype", "notes"),
    [
        (Net, torch.float32, ""),
        (Net, torch.float16, "float16"),
        (Net, torch.bfloat16, "bfloat16"),
        (Net, torch.float64, ""),
        (Ninth, torch.float32, ""),
        (Unequal, torch.float32, ""),
        (Saturated, torch.float32, ""),
        (Cancels, torch.float32, ""),
        (Divides, torch.float32, "2 of the 5 inputs tried at loading gave NaN"),
        (Overflows, torch.float32, "gave NaN or infinite values"),
    ],
)
def test_a_right_graph_is_served(
    build: type[nn.Module],
    dtype: torch.dtype,
    notes: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    fields = UNIT if build in (Divides, Overflows) else {}
    info = _load(build().to(dtype), tmp_path, monkeypatch, None, fields=fields).info
    assert info.form == "graph"
    assert info.verification.inputs == 7
    assert notes in " ".join(info.notes)


class Squeezes(Net):
    """Loses the batch axis of a single row."""

    def forward(self, x: Tensor) -> Tensor:
        scores = self.last(F.relu(self.first(x))).unsqueeze(2)
        return torch.cat([scores.squeeze(), -scores.squeeze()], 1)


def test_a_network_that_takes_no_single_row_gets_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Squeezes()
    loaded = _load(net, tmp_path, monkeypatch, None)
    assert "takes no single row" in loaded.info.form_reason
    x = torch.rand(3, 8)
    torch.testing.assert_close(loaded.classifier(x), net(x))
    torch.testing.assert_close(loaded.classifier(x[:1]), net(x[:2])[:1])
