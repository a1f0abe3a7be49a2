"""Archives that have no exact graph: refused by name, and explained by running them."""

import pytest
import torch
from torch import Tensor, nn
from torchscript_zoo import X, same, script, trace

from interpret_server.models.lowered import Unlowerable
from interpret_server.models.relu_rules import ReluRule, relu_rule
from interpret_server.models.torchscript import ArchiveBody, lower


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 8)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu(self.fc1(x.sum(1)))
        if bool(x.sum() > 1e6):
            x = -x
        return self.fc2(x)


class DataDependentLoop(nn.Module):
    def forward(self, x):
        while bool(x.sum() > 0):
            x = x - 1
        return x


class DataDependentLength(nn.Module):
    def forward(self, x: Tensor):
        kept = x[x > 0]
        parts = torch.unbind(kept)
        return parts[0]


class BatchDependent(nn.Module):
    def forward(self, x):
        if x.size(0) == 1:
            return 2 * x
        return x


class RowByRow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rows: list[Tensor] = []
        for index in range(x.size(0)):
            rows += [x[index].sum(0)]
        return torch.stack(rows)


class Endless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        count = 0
        while True:
            count += 1
        return x


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            raise ValueError("four axes")
        return x


class Forked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.jit.wait(torch.jit.fork(torch.relu, x))


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Accumulates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(8, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(1.0)
        return x * self.total


class WritesToDetached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.0
        y.detach()[:, 0] = 0.0
        return y


class WritesToExpanded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.sum(1, keepdim=True)
        y.expand(-1, 3, -1).relu_()
        return y


class Quantized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8).dequantize()


class TakesList(nn.Module):
    def forward(self, xs: list[Tensor]) -> Tensor:
        return xs[0]


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (DataDependent, "prim::If depends on tensor data"),
        (DataDependentLoop, "prim::Loop depends on tensor data"),
        (DataDependentLength, "unbind gives a list whose length depends on tensor data"),
        (BatchDependent, "prim::If depends on the batch size"),
        (RowByRow, "prim::Loop depends on the batch size"),
        (Endless, "prim::Loop does not come to an end"),
        (Raises, "the model raises an error on the example"),
        (Forked, "prim::fork is not supported"),
        (Counts, "it changes its own calls"),
        (Accumulates, "aten::add_ changes the model's own total"),
        (WritesToDetached, r"aten::\w+ writes to a detached tensor"),
        (WritesToExpanded, "aten::relu_ writes to a tensor whose elements share memory"),
        (Quantized, "aten::quantize_per_tensor computes with quantised tensors"),
        (TakesList, "the input xs is a List"),
    ],
)
def test_what_has_no_exact_graph_is_refused_by_name(module, reason, tmp_path):
    archive = script(module().double(), tmp_path / "model.pt")
    with pytest.raises(Unlowerable, match=reason):
        lower(archive, [X])


def test_the_message_says_in_which_module(tmp_path):
    module = nn.Sequential(nn.Identity(), nn.Sequential(DataDependentLoop()))
    with pytest.raises(Unlowerable, match=r"in 1\.0 \(test_torchscript_refusals\.py, line \d+\)$"):
        lower(script(module, tmp_path / "model.pt"), [X])


class DataDependentSteps(nn.Module):
    """A loop, a branch and a list whose lengths the data decide."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sum(1)
        steps: list[Tensor] = []
        while len(steps) < 4 and bool(x.abs().max() > 0.1):
            x = torch.relu_(self.fc1(x))
            steps.append(x if bool(x.mean() > 0.3) else 2 * x)
        return self.fc2(torch.stack(steps).sum(0))


class TracedWithScript(nn.Module):
    """A traced network around a scripted part, as `torch.jit.script_if_tracing` makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.steps = torch.jit.script(DataDependentSteps())

    def forward(self, x):
        return self.steps(torch.relu(self.fc(x)))


@pytest.mark.parametrize("build", [DataDependent, DataDependentSteps, TracedWithScript])
def test_a_refused_archive_is_explained_exactly_by_running_it(build, tmp_path):
    torch.manual_seed(2)
    module = build().double()
    path = tmp_path / "model.pt"
    archive = trace(module, path, X) if build is TracedWithScript else script(module, path)
    with pytest.raises(Unlowerable, match="depends on tensor data"):
        lower(archive, [X])
    body = ArchiveBody(archive)
    for rule in ReluRule:
        for call in range(6):
            for rows in (X, X[:1], 3 * X):
                gradients = []
                for forward in (module, body):
                    leaf = rows.clone().requires_grad_()
                    total = forward(leaf)[:, 1].sum()
                    with relu_rule(rule):
                        gradients.append(torch.autograd.grad(total, leaf)[0])
                torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-14)
            if call == 3:
                with torch.no_grad():
                    same(body.archive(X), module(X))
