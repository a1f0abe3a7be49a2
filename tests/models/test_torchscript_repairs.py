"""Archives that fix a device or a training flag, have states that do not fit, or never end."""

import time
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchscript_zoo import X, same, script, trace

from interpret_server.models.lowered import Unlowerable
from interpret_server.models.torchscript import (
    ArchiveBody,
    decided_otherwise,
    lower,
    open_archive,
    training_modules,
    walker,
)

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


class Placed(nn.Module):
    """Everything that names a device."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = x.to("cpu") + torch.zeros(8, device="cpu", dtype=x.dtype)
        x = self.fc(x.to(torch.device("cpu"), x.dtype)).cpu()
        return x * torch.arange(8, device=torch.device("cpu"))


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Placed()

    def forward(self, x):
        return self.part(x) + torch.ones_like(x, device="cpu")


def on_cuda(path: Path) -> None:
    """Edit an archive's code as if it had been exported on a machine with a GPU."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    count = 0
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            if name.endswith(".py"):
                count += content.count(b'"cpu"')
                content = content.replace(b'"cpu"', b'"cuda:0"').replace(b".cpu(", b".cuda(")
            file.writestr(name, content)
    assert count >= 3


@pytest.mark.parametrize("form", ["script", "trace", "freeze"])
def test_an_archive_exported_on_a_gpu_runs_on_the_cpu(form, tmp_path):
    module, path = Holder().double().eval(), tmp_path / "model.pt"
    if form == "trace":
        trace(module, path, X)
    elif form == "script":
        script(module, path)
    else:
        torch.jit.save(torch.jit.freeze(torch.jit.script(module)), path)
    on_cuda(path)
    archive = open_archive(path)
    same(ArchiveBody(archive)(X), module(X))
    same(lower(archive, [X]).graph(X[:1]), module(X[:1]))


class Stochastic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.own = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x):
        return F.dropout(self.own(self.drop(self.norm(x))), 0.3, self.training)


def test_training_mode_is_told_and_replaced(tmp_path):
    module = Stochastic().double().train()
    nn.init.uniform_(module.norm.running_var, 0.5, 2)
    archives = {
        "trace": trace(module, tmp_path / "trace.pt", X),
        "script": None,
    }
    torch.jit.save(torch.jit.script(module), tmp_path / "script.pt")
    archives["script"] = open_archive(tmp_path / "script.pt")
    expected = module.eval()(X)
    told = {
        "trace": ("aten::dropout", "norm: aten::batch_norm", "drop: aten::dropout"),
        "script": ("the model", "norm", "drop", "own"),
    }
    for form, archive in archives.items():
        assert training_modules(archive) == told[form]
        body = ArchiveBody(archive)
        same(body(X), expected)
        same(body(X), body(X))
        assert "was in training mode" in lower(archive, [X]).notes[-1]
    torch.jit.save(torch.jit.script(module), tmp_path / "eval.pt")
    assert training_modules(open_archive(tmp_path / "eval.pt")) == ()


class FixedState(nn.Module):
    """Hidden states for a batch of 1, as traced classifiers have them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind](8, 5, batch_first=True)
        self.register_buffer("hidden", torch.zeros(1, 1, 5))

    def forward(self, x):
        if self.kind == "lstm":
            return self.layer(x, (self.hidden, self.hidden))[0][:, -1]
        return self.layer(x, self.hidden)[0][:, -1]


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_a_hidden_state_of_one_row_never_reaches_the_kernel_with_more(kind, tmp_path):
    module = FixedState(kind).double().eval()
    archive = trace(module, tmp_path / "model.pt", X[:1])
    graph, body = lower(archive, [X[:1]]).graph, ArchiveBody(archive)
    same(graph(X[:1]), module(X[:1]))
    same(body(X[:1]), module(X[:1]))
    with pytest.raises(ValueError, match=r"hidden state of shape \[1, 1, 5\] where \[1, 2, 5\]"):
        graph.forward(X)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="invalid for input of size"):
            body(X)


class TwoLayers(nn.Module):
    """Two layers of one type, which share their code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(8, 8, batch_first=True), nn.LSTM(8, 8, batch_first=True)

    def forward(self, x):
        return self.second(self.first(x)[0])[0]


def test_shared_code_is_edited_once_and_leaves_the_graph_alone(tmp_path):
    module = TwoLayers().double()
    archive = script(module, tmp_path / "model.pt")
    graph = archive.first._c._get_method("forward__0").graph
    assert len(graph.findAllNodes("aten::reshape")) == 2
    result = lower(archive, [X])
    same(result.graph(X[:1]), module(X[:1]))
    assert [name for name in result.layers if "zeros" not in name] == ["first", "second"]


class TooLong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        total = 0
        for first in range(9000):
            for _ in range(100):
                total += first
        return x * total


class Slow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2000):
            x = x.sin()
        return x


def test_a_program_without_end_is_left_in_time(tmp_path, monkeypatch):
    archive = script(TooLong(), tmp_path / "model.pt")
    started = time.monotonic()
    with pytest.raises(Unlowerable, match="prim::Loop does not come to an end"):
        lower(archive, [X])
    assert time.monotonic() - started < 20
    monkeypatch.setattr(walker, "MOST_STEPS", 500)
    with pytest.raises(Unlowerable, match="more than 500 operations"):
        lower(archive, [X])
    monkeypatch.undo()
    monkeypatch.setattr(walker, "IMPORT_SECONDS", 0.05)
    with pytest.raises(Unlowerable, match=r"longer than 0\.05 s"):
        lower(script(Slow(), tmp_path / "slow.pt"), [X])


class Halves(nn.Module):
    """Decides by a size that is free."""

    def forward(self, x: Tensor) -> Tensor:
        while x.size(1) > 2:
            x = x[:, ::2] + 1.0
        return x.sum(1)


def test_decisions_on_sizes_can_be_taken_again(tmp_path):
    archive = script(Halves(), tmp_path / "model.pt")
    result = lower(archive, [X])
    assert decided_otherwise(result, [X]) is None
    assert decided_otherwise(result, [X[:, :5]]) is None
    same(result.graph(X[:, :5]), archive(X[:, :5]))
    longer = torch.cat([X, X], 1)
    assert (decided_otherwise(result, [longer]) or "").startswith(
        "prim::Loop depends on sizes (test_torchscript_repairs.py, line "
    )


class Asserts(nn.Module):
    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        assert float(x.max()) < self.limit, f"larger than {self.limit}: {x.max()}"
        if x.dim() > 3:
            raise ValueError(f"{x.dim()} axes")
        return x * 2


def test_an_assertion_on_data_is_left_out_with_a_note(tmp_path):
    result = lower(script(Asserts(5.0), tmp_path / "model.pt"), [X])
    same(result.graph(X), X * 2)
    assert result.notes[0].startswith("a check of the data is left out")
    with pytest.raises(Unlowerable, match="depends on tensor data"):
        lower(script(Asserts(-5.0), tmp_path / "model.pt"), [X])
