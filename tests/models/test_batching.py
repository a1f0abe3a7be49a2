"""Networks for one batch size, on any number of rows: in groups, or each row at once by vmap."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from captum.attr import GuidedBackprop
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from interpret_server.models.batching import InGroups, RowsAtOnce, all_rows_at_once
from interpret_server.models.execution import Execution
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.relu_rules import ReluRule, relu_rule
from interpret_server.models.targets import Targets


class OneRow(nn.Module):
    """Takes a single image, and mixes its batch axis into others."""

    def __init__(self, *, random: bool = False, recurrent: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(4)
        self.lstm = nn.LSTM(9, 9, batch_first=True) if recurrent else None
        self.scale = nn.Parameter(torch.randn(2, 18))
        self.head = nn.Linear(36, 5)
        self.dropout = nn.Dropout(0.5) if random else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.act(self.norm(self.conv(x))))
        if self.lstm is not None:
            y = self.lstm(y.reshape(1, 4, 9))[0]
        y = y.reshape(2, 18) * self.scale
        return self.head(self.dropout(self.act(y).reshape(1, 36)))


def graph_of(**options: bool) -> fx.GraphModule:
    torch.manual_seed(0)
    graph = fx.symbolic_trace(OneRow(**options)) if not options.get("recurrent") else None
    if graph is None:
        graph = _Leaves().traced(OneRow(**options))
    return graph.eval().requires_grad_(False)


class _Leaves(fx.Tracer):
    def traced(self, module: nn.Module) -> fx.GraphModule:
        return fx.GraphModule(module, self.trace(module))


PROBES = (5, 3, 8, 8)


def gradient(module: nn.Module, x: Tensor, rule: ReluRule) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    with relu_rule(rule):
        return y.detach(), torch.autograd.grad(y[:, 1].sum(), leaf)[0]


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("rule", ReluRule)
def test_all_rows_at_once_give_what_each_gives_alone(rule, rows):
    graph, x = graph_of(), torch.randn(PROBES)
    form = all_rows_at_once(InGroups(graph, 1), x)
    assert isinstance(form, RowsAtOnce)
    for ours, expected in zip(
        gradient(form, x[:rows], rule), gradient(InGroups(graph, 1), x[:rows], rule), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_all_rows_run_in_one_pass(monkeypatch):
    graph, x = graph_of(), torch.randn(PROBES)
    form = all_rows_at_once(InGroups(graph, 1), x)
    calls: list[tuple[int, ...]] = []
    real = nn.Linear.forward
    monkeypatch.setattr(
        nn.Linear, "forward", lambda self, x: calls.append(x.shape) or real(self, x)
    )
    form(x)
    assert calls == [(1, 36)]
    form(x[:1])
    InGroups(graph, 1)(x)
    assert len(calls) == 1 + 1 + 5


@pytest.mark.parametrize("options", [{"recurrent": True}, {"random": True}], ids=str)
def test_what_vmap_does_not_run_stays_in_the_loop(options):
    graph = graph_of(**options)
    if "random" in options:
        graph.train()
    loop = InGroups(graph, 1)
    assert all_rows_at_once(loop, torch.randn(PROBES)) is loop


def test_wrong_rules_of_vmap_are_noticed(monkeypatch):
    loop, real = InGroups(graph_of(), 1), torch.vmap
    x = torch.randn(PROBES)
    for wrong in (lambda y: y * 1.01, lambda y: y.detach() + 0 * y, lambda y: y.relu()):
        monkeypatch.setattr(torch, "vmap", lambda f, wrong=wrong: lambda x: wrong(real(f)(x)))
        assert all_rows_at_once(loop, x) is loop


def test_hooks_see_whole_tensors_of_one_row():
    graph, x = graph_of(), torch.randn(PROBES)
    form = all_rows_at_once(InGroups(graph, 1), x)
    expected = form(x)
    seen: list[Tensor] = []
    hook = graph.get_submodule("conv").register_forward_hook(lambda *a: seen.append(a[2].clone()))
    assert torch.allclose(form(x), expected, atol=1e-6)
    assert [value.shape for value in seen] == [(1, 4, 6, 6)] * 5
    assert torch.allclose(torch.cat(seen), graph.get_submodule("conv")(x), atol=1e-6)
    hook.remove()
    seen.clear()
    form(x)
    assert seen == []


def test_a_body_that_vmap_turns_out_not_to_run_goes_on_in_the_loop():
    form = RowsAtOnce(graph_of(recurrent=True))
    x = torch.randn(PROBES)
    expected = InGroups(form.body, 1)(x)
    for _ in range(2):
        assert torch.equal(form(x), expected)
    with pytest.raises(RuntimeError):
        form.together(x)


def test_an_error_of_the_body_is_the_bodys():
    form = RowsAtOnce(graph_of())
    with pytest.raises(RuntimeError, match="channels"):
        form(torch.randn(5, 7, 8, 8))
    assert form(torch.randn(PROBES)).shape == (5, 5)


def test_several_outputs_and_a_dropped_batch_axis():
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[0].sum(-1), x * 2

    form, x = RowsAtOnce(fx.symbolic_trace(Two())), torch.randn(4, 3, 2)
    for ours, expected in zip(form(x), InGroups(Two(), 1)(x), strict=True):
        assert torch.equal(ours, expected)


def baked_file(net: OneRow, path: Path) -> Path:
    """A file whose shapes allow one row and no rewriting."""
    state = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    state |= {"pair": np.array([2, 18]), "flat": np.array([1, 36])}
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["conv"]),
        helper.make_node(
            "BatchNormalization",
            ["conv", *(f"norm.{k}" for k in ("weight", "bias", "running_mean", "running_var"))],
            ["norm"],
        ),
        helper.make_node("Relu", ["norm"], ["act"]),
        helper.make_node("MaxPool", ["act"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["pool", "pair"], ["halves"]),
        helper.make_node("Mul", ["halves", "scale"], ["scaled"]),
        helper.make_node("Relu", ["scaled"], ["act1"]),
        helper.make_node("Reshape", ["act1", "flat"], ["flatten"]),
        helper.make_node("Gemm", ["flatten", "head.weight", "head.bias"], ["y"], transB=1),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(value, name) for name, value in state.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("execution", Execution)
def test_a_baked_file_is_served_whole_all_rows_at_once(execution, tmp_path):
    net = OneRow().eval()
    net.norm.running_var.uniform_(0.5, 2)
    loaded = load_classifier(
        "net",
        baked_file(net, tmp_path / "model.onnx"),
        Manifest.model_validate({"inputs": [{"bounds": (0, 1)}]}),
        device=torch.device("cpu"),
        execution=execution,
    )
    assert "It runs 1 row at a time" in loaded.info.form_reason
    assert "`torch.vmap`" in loaded.info.form_reason
    assert isinstance(loaded.classifier.module.body, RowsAtOnce)
    x = torch.rand(4, 3, 8, 8)
    rows = list(x.split(1))
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(loaded.classifier(x), torch.cat([net(r) for r in rows]), **close)

    classes = Targets.classes(torch.tensor([0, 1, 2, 3]))
    for rule in (ReluRule.PLAIN, ReluRule.GUIDED):
        ours = loaded.classifier.gradient(x, classes, rule).inputs
        for row, (r, target) in enumerate(zip(rows, range(4), strict=True)):
            leaf = r.clone().requires_grad_()
            with relu_rule(rule):
                (slope,) = torch.autograd.grad(net(leaf)[0, target], leaf)
            torch.testing.assert_close(ours[row : row + 1], slope, **close)

    assert loaded.classifier.layers["act"].shape == (4, 6, 6)
    (values,) = loaded.classifier.activations(x, ["pool"])
    torch.testing.assert_close(values, net.pool(net.act(net.norm(net.conv(x)))), **close)
    assert "halves" not in loaded.classifier.layers  # which has no row of its own

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum's, about its hooks
        method = GuidedBackprop(loaded.classifier.module)
        attributed = method.attribute(x.requires_grad_(), target=1)
    expected = loaded.classifier.gradient(
        x.detach(), Targets.classes(torch.ones(4, dtype=torch.int64)), ReluRule.GUIDED
    )
    torch.testing.assert_close(attributed, expected.inputs, **close)
