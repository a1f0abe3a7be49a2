"""If, Loop and Scan against onnxruntime, the reference evaluator and exported modules."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx_text import batches, check, write
from torch import Tensor, nn

from interpret_server.errors import InvalidModel
from interpret_server.models.onnx import import_model, looping, runtime, to_module


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


CHOICE = """
chosen (float[n, 3] x) => (float[n, m] y) {
    zero = Constant <value: tensor = float {0.0}> ()
    outer = Exp (x)
    sum = ReduceSum <keepdims: int = 0> (x)
    positive = Greater (sum, zero)
    y = If (positive) <
        then_branch = first () => (float[n, m] a) { a = Mul (outer, x) },
        else_branch = second () => (float[n, m] b) { c = Neg (x) b = Concat <axis = 1> (c, outer) }
    >
}"""


def test_branches_that_data_chooses_agree_with_the_oracles(path):
    write(path, CHOICE)
    for x in batches(3):
        check(path, x.abs())
        check(path, -x.abs())
    lowered = import_model(path)
    assert lowered.row_by_row
    assert lowered.mixes_rows
    assert any("branches" in note for note in lowered.notes)


def test_a_branch_without_inputs_of_its_own_needs_none(path):
    write(
        path,
        """
        constant (float[n] x) => (float[m] y) {
            sum = ReduceSum <keepdims: int = 0> (x)
            zero = Constant <value: tensor = float {0.0}> ()
            positive = Greater (sum, zero)
            y = If (positive) <
                then_branch = first () => (float[m] a) {
                    a = Constant <value: tensor = float[2] {1.0, 2.0}> ()
                },
                else_branch = second () => (float[m] b) { b = Identity (x) }
            >
        }""",
    )
    check(path, torch.ones(4), gradient=False)
    check(path, -torch.ones(4))


SIZED = """
sized (float[n, 2, k] x) => (float[n, 2, k] y) {
    sizes = Shape <start: int = 2> (x)
    limit = Constant <value: tensor = int64[1] {limit}> ()
    long = Greater (sizes, limit)
    y = If (long) <
        then_branch = first () => (float[n, 2, k] a) { a = Relu (x) },
        else_branch = second () => (float[n, 2, k] b) { b = Neg (x) }
    >
}"""


@pytest.mark.parametrize("limit", [2, 20, 300])
def test_a_branch_by_size_is_right_at_every_size(limit, path):
    write(path, SIZED.replace("{limit}", f"{{{limit}}}"))
    lowered = import_model(path)
    assert not lowered.row_by_row
    for size in (1, 3, 16, 24, 25, 400):
        x = torch.randn(3, 2, size)
        expected = x.relu() if size > limit else -x
        assert torch.equal(lowered.graph(x), expected)


def test_a_branch_that_drops_an_axis_is_taken_as_long_as_sizes_allow(path):
    write(
        path,
        """
        squeezed (float[n, k] x) => (float[n, m] y) {
            sizes = Shape <start: int = 1> (x)
            one = Constant <value: tensor = int64[1] {1}> ()
            single = Equal (sizes, one)
            z = If (single) <
                then_branch = first () => (float[n] a) { a = Squeeze (x, one) },
                else_branch = second () => (float[n, m] b) { b = Identity (x) }
            >
            y = Softmax <axis: int = -1> (z)
        }""",
    )
    graph = import_model(path).graph
    x = torch.randn(3, 5)
    assert torch.equal(graph(x), x.softmax(-1))
    assert any(isinstance(module, nn.Softmax) for module in graph.children())
    with pytest.raises(ValueError, match="other axes"):
        graph(x[:, :1])


def loop(count: str, condition: str = "yes", goes_on: str = "Identity (before)") -> str:
    return f"""
    looped (float[n, 3] x, int64 times) => (float[n, 3] y, float[k, n, 3] all) {{
        yes = Constant <value: tensor = bool {{1}}> ()
        fixed = Constant <value: tensor = int64 {{4}}> ()
        half = Constant <value: tensor = float {{0.5}}> ()
        limit = Constant <value: tensor = float {{5.0}}> ()
        wide = Exp (x)
        y, all = Loop ({count}, {condition}, x) <
            body = step (int64 i, bool before, float[n, 3] a) =>
                (bool after, float[n, 3] b, float[n, 3] c) {{
                number = Cast <to: int = 1> (i)
                scaled = Mul (a, half)
                moved = Add (scaled, number)
                b = Tanh (moved)
                c = Mul (b, wide)
                length = ReduceSum <keepdims: int = 0> (c)
                after = {goes_on}
            }}
        >
    }}"""


LOOPS = {
    "constant": loop("fixed"),
    "constant, no condition": loop("fixed", ""),
    "computed": loop("times"),
    "while": loop("", "yes", "Less (length, limit)"),
    "both": loop("times", "yes", "Less (length, limit)"),
    "constant and while": loop("fixed", "yes", "Less (length, limit)"),
}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("opset", [8, 11, 13, 17])
def test_loops_agree_with_the_oracles(name, opset, path):
    write(path, LOOPS[name], opset)
    for x in batches(3):
        reference = name != "constant, no condition"  # which is a false one to the reference
        inputs = x.abs() + 0.1, torch.tensor(3)
        check(path, *inputs, gradient=opset == 17, reference=reference)


def test_a_loop_of_no_steps_gives_what_it_starts_with(path):
    write(path, LOOPS["computed"])
    x = torch.randn(2, 3)
    y, steps = to_module(path)(x, torch.tensor(0))
    assert torch.equal(y, x)
    assert steps.shape[0] == 0
    assert steps.dtype is torch.float32


def test_steps_known_to_import_become_named_layers(path):
    write(path, LOOPS["constant"])
    lowered = import_model(path)
    assert not any(isinstance(module, looping.Loop) for module in lowered.graph.modules())
    tanhs = [module for module in lowered.graph.modules() if isinstance(module, nn.Tanh)]
    assert len(tanhs) == 4
    assert [name for name in lowered.layers if name.endswith(".b")] == [
        f"y.{step}.b" for step in range(4)
    ]
    assert not lowered.row_by_row


def test_a_long_loop_stays_one_module(path):
    write(path, LOOPS["constant"].replace("int64 {4}", "int64 {100}"))
    (module,) = (m for m in import_model(path).graph.children() if isinstance(m, looping.Loop))
    assert len([m for m in module.modules() if isinstance(m, nn.Tanh)]) == 1
    check(path, torch.randn(2, 3), torch.tensor(0), gradient=False)


GROWING = """
growing (float[n, 2] x, int64 times) => (float[m, 2] y, int64 rows) {
    yes = Constant <value: tensor = bool {1}> ()
    y = Loop (times, yes, x) <
        body = step (int64 i, bool before, float[a, 2] all) => (bool after, float[b, 2] longer) {
            after = Identity (before)
            sine = Sin (all)
            longer = Concat <axis: int = 0> (sine, x)
        }
    >
    sizes = Shape (y)
    zero = Constant <value: tensor = int64 {0}> ()
    rows = Gather (sizes, zero)
}"""


def test_carried_values_may_change_their_size(path):
    write(path, GROWING)
    for x in batches(2):
        for times in (0, 1, 4):
            check(path, x, torch.tensor(times))


NESTED = """
nested (float[n, 2] x, int64 times) => (float[n, 2] y) {
    yes = Constant <value: tensor = bool {1}> ()
    y = Loop (times, yes, x) <
        body = outer (int64 i, bool ci, float[n, 2] a) => (bool co, float[n, 2] b) {
            co = Identity (ci)
            grown = Sigmoid (a)
            b = Loop (i, yes, grown) <
                body = inner (int64 j, bool di, float[n, 2] c) => (bool do, float[n, 2] d) {
                    do = Identity (di)
                    e = Sub (c, x)
                    d = Mul (e, grown)
                }
            >
        }
    >
}"""


def test_loops_inside_loops_see_the_values_around_them(path):
    write(path, NESTED)
    for x in batches(2):
        check(path, x, torch.tensor(4))


@pytest.mark.parametrize("times", [2**60, 2**63 - 1])
def test_a_loop_of_too_many_steps_is_refused(times, path):
    write(path, LOOPS["constant"].replace("int64 {4}", f"int64 {{{times}}}"))
    with pytest.raises(InvalidModel, match=f"runs {times} times"):
        import_model(path)


def test_a_loop_without_an_end_is_refused(path):
    write(path, loop(""))
    with pytest.raises(InvalidModel, match="never ends"):
        import_model(path)


def test_steps_are_counted_over_all_loops_of_a_run(path, monkeypatch):
    monkeypatch.setattr(looping, "MAX_TRIPS", 12)
    write(path, NESTED)
    module, x = to_module(path), torch.randn(1, 2)
    for _ in range(3):
        module(x, torch.tensor(4))  # 4 steps outside and 0 + 1 + 2 + 3 inside
    with pytest.raises(ValueError, match="more than 12 times"):
        module(x, torch.tensor(5))


def test_a_loop_that_grows_without_measure_is_stopped(path, monkeypatch):
    monkeypatch.setattr(looping, "MAX_GROWTH", 1000)
    write(path, GROWING)
    module = to_module(path)
    module(torch.randn(1, 2), torch.tensor(100))
    with pytest.raises(ValueError, match="gathers more than 1000 numbers"):
        module(torch.randn(10, 2), torch.tensor(100))


def test_a_body_that_does_not_fit_is_refused(path):
    write(path, LOOPS["constant"])
    model = onnx.load(path)
    (node,) = (item for item in model.graph.node if item.op_type == "Loop")
    del node.attribute[0].g.output[1:]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match=r"do not fit|breaks the ONNX standard"):
        import_model(path)


def scan(length: int, **attributes: Any) -> str:
    told = "".join(f"{key} = {value}, " for key, value in attributes.items())
    return f"""
    scanned (float[n, 2] h, float[n, {length}, 2] x, float[{length}, n, 2] z) =>
        (float[n, 2] last, float[a, b, c] found, float[d, e, f] other) {{
        wide = Exp (h)
        last, found, other = Scan (h, x, z) <
            num_scan_inputs = 2, scan_input_axes = [1, -3], {told}
            body = step (float[n, 2] s, float[n, 2] u, float[n, 2] v) =>
                (float[n, 2] t, float[n, 2] p, float[n, 2] q) {{
                m = Mul (s, u)
                k = Add (m, v)
                t = Sigmoid (k)
                p = Mul (t, wide)
                q = Neg (k)
            }}
        >
    }}"""


@pytest.mark.parametrize("length", [3, 70])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"scan_input_directions": [0, 1], "scan_output_directions": [1, 0]},
        {"scan_output_axes": [1, -1]},
    ],
    ids=str,
)
def test_scans_agree_with_onnxruntime(length, attributes, path):
    for opset in (9, 17):
        write(path, scan(length, **attributes), opset)
        for rows in (1, 3):
            inputs = [
                torch.randn(rows, 2),
                torch.randn(rows, length, 2),
                torch.randn(length, rows, 2),
            ]
            module = to_module(path)
            names = [item.name for item in runtime(path)._session.get_inputs()]
            feeds = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
            expected = runtime(path)._session.run(None, feeds)
            for ours, value in zip(module(*inputs), expected, strict=True):
                torch.testing.assert_close(ours, torch.from_numpy(value))
            looped = any(isinstance(m, looping.Scan) for m in module.modules())
            assert looped == (length == 70)
    if length == 3:
        leaves = [x.double().requires_grad_() for x in inputs]
        assert torch.autograd.gradcheck(module.double(), leaves, fast_mode=True)


@pytest.mark.parametrize("lengths", [None, [4, 0, 2]])
@pytest.mark.parametrize("back", [0, 1])
def test_scans_of_opset_8_take_each_row_by_itself(lengths, back, path):
    told = "lengths" if lengths else ""
    write(
        path,
        f"""
        scanned (float[n, 2] h, float[n, 4, 2] x, int64[n] lengths) =>
            (float[n, 2] last, float[n, 4, 2] found) {{
            last, found = Scan ({told}, h, x) <
                num_scan_inputs = 1, directions = [{back}],
                body = step (float[2] s, float[2] u) => (float[2] t, float[2] p) {{
                    m = Mul (s, u)
                    t = Tanh (m)
                    p = Neg (t)
                }}
            >
        }}""",
        8,
    )
    module = to_module(path)
    h, x = torch.randn(3, 2), torch.randn(3, 4, 2)
    counts = lengths or [4, 4, 4]
    last, found = module(h, x, torch.tensor(counts))
    for row, count in enumerate(counts):
        state, steps = h[row], x[row, :count]
        for step, item in enumerate(steps.flip(0) if back else steps):
            state = (state * item).tanh()
            torch.testing.assert_close(found[row, step], -state)
        torch.testing.assert_close(last[row], state)
        assert not found[row, count:].any()
    assert torch.autograd.gradcheck(
        lambda h, x: module(h, x, torch.tensor(counts)),
        [value.double().requires_grad_() for value in (h, x)],
        fast_mode=True,
    )


class Decayed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        states = []
        for _ in range(x.shape[1]):
            x = torch.tanh(x) * 0.5 if bool(x.sum() > 0) else x + 1.0
            states.append(x)
        return torch.stack(states, 1).mean(1)


class Conditional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x - 1, (x,))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("build", "dynamo"), [(Decayed, False), (Conditional, True)])
def test_exported_control_flow_equals_the_eager_module(build, dynamo, path, capsys):
    module = build().eval()
    if not dynamo:
        module = torch.jit.script(module)
    options: dict[str, Any] = {"dynamic_axes": {"x": {0: "n", 1: "k"}}, "opset_version": 17}
    if dynamo:
        shapes = ({0: torch.export.Dim("n"), 1: torch.export.Dim("k")},)
        options = {"dynamic_shapes": shapes, "external_data": False, "verbose": False}
    torch.onnx.export(
        module, (torch.ones(2, 3),), path, dynamo=dynamo, input_names=["x"], **options
    )
    lowered = import_model(path)
    assert lowered.row_by_row
    for shape in [(1, 3), (3, 3), (2, 5)]:
        for sign in (1, -1):
            x = (sign * torch.rand(shape)).requires_grad_()
            expected, ours = module(x), lowered.graph(x)
            torch.testing.assert_close(ours, expected)
            slopes = [torch.autograd.grad(y.square().sum(), x)[0] for y in (expected, ours)]
            torch.testing.assert_close(*slopes)
