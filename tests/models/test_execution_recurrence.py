"""What surrounds recurrent layers of ONNX files is taken out; the layers run in one call."""

from collections.abc import Callable, Sequence
from operator import getitem
from pathlib import Path

import pytest
import torch
from plan_checks import assert_same, called, value_and_gradient
from styles import Sketch
from torch import Tensor, fx, nn

from interpret_server.models.execution import Execution, Plans
from interpret_server.models.execution.draft import Draft, observe
from interpret_server.models.execution.recurrence import Stacked, simplify_recurrence
from interpret_server.models.onnx import import_model
from interpret_server.models.onnx.operators.cells import GRU, LSTM, RNN, initial_state
from interpret_server.models.onnx.operators.recurrent import by_direction
from interpret_server.models.onnx.operators.shape import expand_to, reshape_with_zeros
from interpret_server.models.torchscript import lower

STEPS, WIDTH, HIDDEN = 5, 3, 4
Kind = type[nn.RNNBase]
fx.wrap("initial_state")
fx.wrap("by_direction")
fx.wrap("expand_to")
fx.wrap("reshape_with_zeros")


class Leaves(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.RNNBase)


class Net(nn.Module):
    """Recurrent layers on `(N, steps, width)`, as an exporter writes them."""

    def __init__(
        self,
        kind: Kind,
        *,
        directions: int = 2,
        widths: Sequence[int] = (HIDDEN, HIDDEN),
        start: float = 0.0,
        join: Callable[[Tensor, int], Tensor] | None = None,
        more: Callable[[Tensor, Tensor], Tensor] = lambda y, first: y,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.directions, self.join, self.more = directions, join, more
        inside = WIDTH
        self.layers = nn.ModuleList()
        for width in widths:
            self.layers.append(kind(inside, width, bidirectional=directions == 2))
            inside = width * directions
        self.register_buffer("start", torch.full((1, 1, 1), start, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        rows, y = x.size(0), x.permute(1, 0, 2)
        outputs = []
        for layer in self.layers:
            wide = expand_to(self.start, [self.directions, rows, layer.hidden_size])
            state = initial_state(wide, y, self.directions, layer.hidden_size)
            found = layer(y, (state, state) if layer.mode == "LSTM" else state)
            y = self.joined(by_direction(getitem(found, 0), self.directions), layer.hidden_size)
            outputs.append(y)
        return self.more(y, outputs[0]).permute(1, 0, 2)

    def joined(self, y: Tensor, hidden: int) -> Tensor:
        if self.join is not None:
            return self.join(y, hidden)
        return reshape_with_zeros(torch.permute(y, (0, 2, 1, 3)), [0, 0, -1])


def draft_of(net: nn.Module) -> tuple[fx.GraphModule, Draft]:
    root = net.double().eval()
    graph = fx.GraphModule(root, Leaves().trace(root)).requires_grad_(False)
    x = torch.rand(2, STEPS, WIDTH, dtype=torch.float64)
    return graph, Draft.of(graph, observe(graph, x))


def stacked(draft: Draft) -> list[int]:
    """How many layers each call of several runs."""
    modules = map(draft.module, draft.graph.nodes)
    return [len(module.layers) for module in modules if isinstance(module, Stacked)]


SHAPES = [(rows, STEPS, WIDTH) for rows in (1, 2, 7)]


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("kind", [RNN, LSTM, GRU])
def test_levels_run_in_one_call_with_the_same_bits(
    kind: Kind, levels: int, directions: int
) -> None:
    graph, draft = draft_of(Net(kind, directions=directions, widths=(HIDDEN,) * levels))
    simplify_recurrence(draft)
    assert stacked(draft) == [levels]
    assert called(draft) == ["permute", "getitem", "permute"]
    assert_same(draft, graph, *SHAPES, (3, 9, WIDTH))


def by_sizes(y: Tensor, hidden: int) -> Tensor:
    y = torch.permute(y, (0, 2, 1, 3))
    return torch.reshape(y, [STEPS, y.size(1), 2 * hidden])


def by_steps(y: Tensor, hidden: int) -> Tensor:
    return torch.reshape(torch.permute(y, (0, 2, 1, 3)), [y.size(0), -1, 2 * hidden])


def squeezed(y: Tensor, hidden: int) -> Tensor:
    return torch.squeeze(y, (1,))


@pytest.mark.parametrize(("join", "directions"), [(by_sizes, 2), (by_steps, 2), (squeezed, 1)])
def test_other_ways_to_join_directions(
    join: Callable[[Tensor, int], Tensor], directions: int
) -> None:
    graph, draft = draft_of(Net(LSTM, directions=directions, join=join))
    simplify_recurrence(draft)
    assert stacked(draft) == [2]
    assert not {"by_direction", "reshape", "squeeze"} & set(called(draft))
    assert_same(draft, graph, *SHAPES)


def summed(y: Tensor, hidden: int) -> Tensor:
    return y.sum(1).repeat(1, 1, 2)


def in_another_order(y: Tensor, hidden: int) -> Tensor:
    return torch.reshape(torch.permute(y, (0, 2, 3, 1)), [STEPS, -1, 2 * hidden])


def in_pairs(y: Tensor, hidden: int) -> Tensor:
    y = torch.reshape(torch.permute(y, (0, 2, 1, 3)), [STEPS, -1, hidden])
    return torch.cat([y, y.flip(1)], 2)[:, ::2]


@pytest.mark.parametrize("join", [summed, in_another_order, in_pairs])
def test_directions_that_something_else_reads_stay_apart(
    join: Callable[[Tensor, int], Tensor],
) -> None:
    graph, draft = draft_of(Net(LSTM, join=join))
    simplify_recurrence(draft)
    assert stacked(draft) == []
    assert_same(draft, graph, *SHAPES)


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_another_first_state_stays(kind: Kind) -> None:
    graph, draft = draft_of(Net(kind, start=0.5))
    simplify_recurrence(draft)
    assert called(draft).count("initial_state") == 2
    assert stacked(draft) == []
    assert_same(draft, graph, *SHAPES)


def test_layers_of_other_sizes_are_not_stacked() -> None:
    graph, draft = draft_of(Net(GRU, widths=(HIDDEN, HIDDEN + 1)))
    simplify_recurrence(draft)
    assert stacked(draft) == []
    assert "initial_state" not in called(draft)
    assert_same(draft, graph, *SHAPES)


def test_a_level_that_is_read_elsewhere_is_not_stacked() -> None:
    graph, draft = draft_of(Net(GRU, more=lambda y, first: y + first))
    simplify_recurrence(draft)
    assert stacked(draft) == []
    assert_same(draft, graph, *SHAPES)


def test_plans_of_one_network_stack_what_each_of_them_needs() -> None:
    graph, _ = draft_of(Net(GRU, widths=(HIDDEN,) * 3))
    plans = Plans(graph, graph, Execution.EXACT)
    x = torch.rand(2, STEPS, WIDTH, dtype=torch.float64)
    first, *_, last = (node.name for node in graph.graph.nodes if node.target is getitem)
    expected = graph(x)
    assert torch.equal(plans.output(lambda: x)(x), expected)
    for names in ((last,), (first, last), (first,)):
        values = dict(zip(names, plans.layers(names, lambda: x)(x), strict=True))
        if last in values:
            assert torch.equal(values[last].permute(1, 0, 2), expected)
        if first in values:
            layer = graph.layers.get_submodule("0")
            assert torch.equal(values[first], layer(x.permute(1, 0, 2))[0])


def test_a_changed_first_state_takes_effect() -> None:
    graph, _ = draft_of(Net(GRU))
    plans = Plans(graph, graph, Execution.EXACT)
    x = torch.rand(2, STEPS, WIDTH, dtype=torch.float64)
    assert torch.equal(plans.output(lambda: x)(x), graph(x))
    graph.start.fill_(0.5)
    assert torch.equal(plans.output(lambda: x)(x), graph(x))


def test_changed_weights_take_effect() -> None:
    graph, _ = draft_of(Net(LSTM))
    plans = Plans(graph, graph, Execution.EXACT)
    x = torch.rand(2, STEPS, WIDTH, dtype=torch.float64)
    before = plans.output(lambda: x)(x)
    graph.layers.get_submodule("0").weight_hh_l0.mul_(-1)
    assert torch.equal(plans.output(lambda: x)(x), graph(x))
    assert not torch.equal(graph(x), before)


class FromZeros(nn.Module):
    """A recurrent layer of an archive."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class FromOnes(FromZeros):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, torch.ones(4, x.size(0), 4))[0]


LAYERS = {
    "lstm": lambda: nn.LSTM(WIDTH, HIDDEN, 2, bidirectional=True, batch_first=True),
    "gru": lambda: nn.GRU(WIDTH, HIDDEN, 2, bidirectional=True, batch_first=True, bias=False),
    "rnn_tanh": lambda: nn.RNN(WIDTH, HIDDEN, 2, bidirectional=True, batch_first=True),
    "rnn_relu": lambda: nn.RNN(
        WIDTH, HIDDEN, 2, bidirectional=True, batch_first=True, nonlinearity="relu"
    ),
    "projected": lambda: nn.LSTM(WIDTH, HIDDEN, batch_first=True, proj_size=2),
}


@pytest.mark.parametrize(
    ("kind", "start"), [*((kind, FromZeros) for kind in LAYERS), ("gru", FromOnes)]
)
def test_layers_of_archives_begin_at_zeros_with_the_same_bits(
    kind: str, start: type[FromZeros]
) -> None:
    torch.manual_seed(0)
    example = torch.rand(2, STEPS, WIDTH)
    module = start(LAYERS[kind]()).eval()
    graph = lower(torch.jit.script(module), (example,)).graph
    plan = Plans(graph, graph, Execution.EXACT).output(lambda: example)
    names = [getattr(node.target, "__name__", "") for node in plan.graph.nodes]
    assert ("from_zeros" in names) == (start is FromZeros and kind != "projected")
    assert ("recurrent" in names) != ("from_zeros" in names)
    for rows in (1, 6):
        x = torch.rand(rows, STEPS, WIDTH)
        found, expected = value_and_gradient(plan, x), value_and_gradient(graph, x)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("how", list(Execution))
def test_an_onnx_file_of_two_levels_runs_in_one_call(how: Execution, tmp_path: Path) -> None:
    sketch = Sketch(17)
    sketch.input("x", (STEPS, "rows", WIDTH))
    value, inside = "x", WIDTH
    sketch.store("sizes", [0, 0, -1])
    for level in range(2):
        weights = [
            sketch.weight(f"{name}{level}", *shape)
            for name, shape in (
                ("w", (2, 4 * HIDDEN, inside)),
                ("r", (2, 4 * HIDDEN, HIDDEN)),
                ("b", (2, 8 * HIDDEN)),
            )
        ]
        sketch.add(
            "LSTM", [value, *weights], f"y{level}", hidden_size=HIDDEN, direction="bidirectional"
        )
        sketch.add("Transpose", [f"y{level}"], f"t{level}", perm=[0, 2, 1, 3])
        value, inside = sketch.add("Reshape", [f"t{level}", "sizes"], f"z{level}"), 2 * HIDDEN
    sketch.output(value, None)
    path = tmp_path / "net.onnx"
    sketch.save(path)
    graph = import_model(path).graph
    example = torch.rand(STEPS, 2, WIDTH)
    plan = Plans(graph, graph, how).output(lambda: example)
    assert len([part for part in plan.modules() if isinstance(part, Stacked)]) == 1
    x = torch.rand(STEPS, 6, WIDTH)

    def first(form: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: y if isinstance(y := form(x), Tensor) else y[0]

    for ours, theirs in zip(
        value_and_gradient(first(plan), x), value_and_gradient(first(graph), x), strict=True
    ):
        assert torch.equal(ours, theirs)
