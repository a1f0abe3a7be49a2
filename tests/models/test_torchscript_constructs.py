"""What archives are written in: control flow, containers, in-place operations, constants."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpret_server.models.lowered import Lowered, Unlowerable
from interpret_server.models.relu_rules import ReluRule, relu_rule
from interpret_server.models.torchscript import ArchiveBody, lower, open_archive

X = torch.linspace(-2, 2, 2 * 6 * 8, dtype=torch.float64).sin().reshape(2, 6, 8)
IMAGES = torch.linspace(-9, 9, 2 * 3 * 8 * 8, dtype=torch.float64).sin().reshape(2, 3, 8, 8)


def script(module: nn.Module, path: Path) -> torch.jit.ScriptModule:
    torch.jit.save(torch.jit.script(module.eval()), path)
    return open_archive(path)


def trace(module: nn.Module, path: Path, *examples: Tensor) -> torch.jit.ScriptModule:
    torch.jit.save(torch.jit.trace(module, examples, check_trace=False), path)
    return open_archive(path)


def batches(x: Tensor) -> list[Tensor]:
    return [x[:1], x, torch.cat([x, x.flip(0), x[:1]])]


def flat(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in flat(value)]


def same(found: Any, expected: Any) -> None:
    for ours, theirs in zip(flat(found), flat(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def agrees(archive: torch.jit.ScriptModule, x: Tensor) -> Lowered:
    """Lowered from two rows, the graph equals the archive on 1, 2 and 5."""
    result = lower(archive, [x])
    for batch in batches(x):
        kept = batch.clone()
        same(result.graph(batch), archive(batch.clone()))
        assert torch.equal(batch, kept), "the caller's tensor was changed"
    return result


def kinds(result: Lowered) -> list[str]:
    nodes = {node.name: node for node in result.graph.graph.nodes}
    return [nodes[name].meta["kind"] for name in result.layers.values()]


# Control flow


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


class WithoutGradient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = 2 * x
        return x + y


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


class WritesToPart(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        x[:, 0] = 0.0
        return x


class WritesThroughView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 1.0
        y.view(x.size(0), -1).relu_()
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
        (WithoutGradient, "prim::Enter is not supported"),
        (Forked, "prim::fork is not supported"),
        (Counts, "it changes its own calls"),
        (Accumulates, "aten::add_ changes the model's own total"),
        (WritesToPart, r"aten::\w+ writes to memory that another tensor shares"),
        (WritesThroughView, "aten::relu_ writes to memory that another tensor shares"),
        (Quantized, "quantized tensors are not supported"),
        (TakesList, "the input xs is a List"),
    ],
)
def test_what_has_no_exact_graph_is_refused_by_name(module, reason, tmp_path):
    archive = script(module().double(), tmp_path / "model.pt")
    with pytest.raises(Unlowerable, match=reason):
        lower(archive, [X])


def test_the_message_says_in_which_module(tmp_path):
    module = nn.Sequential(nn.Identity(), nn.Sequential(DataDependentLoop()))
    with pytest.raises(Unlowerable, match=r"in 1\.0$"):
        lower(script(module, tmp_path / "model.pt"), [X])


def test_a_refused_archive_is_explained_exactly_by_running_it(tmp_path):
    module = DataDependent().double()
    body = ArchiveBody(script(module, tmp_path / "model.pt"))
    for rule in ReluRule:
        for call in range(10):
            gradients = []
            for forward in (module, body):
                leaf = X.clone().requires_grad_()
                total = forward(leaf)[:, 1].sum()
                with relu_rule(rule):
                    gradients.append(torch.autograd.grad(total, leaf)[0])
            torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-14)
            if call == 3:
                with torch.no_grad():
                    same(body.archive(X), module(X))


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


@pytest.mark.parametrize("module", [Aliases, EditsConstants, KeepsItsLast])
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
    result = lower(trace(module, tmp_path / "model.pt", X), [X])
    same(result.graph(X), module.eval()(X))
    assert [note.split(" ")[0] for note in result.notes] == ["batch_norm", "dropout"]
