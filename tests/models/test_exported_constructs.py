"""What programs may hold besides layers: settings, branches, loops, nesting, quantisation."""

import importlib
import warnings

import pytest
import torch
from exported_networks import edited, free_rows, relative, save
from torch import nn

from interpret_server.models.exported import inputs, lower, open_program, original, output_names
from interpret_server.models.lowered import Unlowerable
from interpret_server.models.precision import to_single

DOUBLE = torch.float64
FORMS = [False, True]


def program_of(path, net, *example, dynamic=True, decomposed=False, strict=False):
    shapes = free_rows(example) if dynamic is True else dynamic
    return open_program(
        save(path, net, example, dynamic=shapes, decomposed=decomposed, strict=strict)
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.pt2"


# Training mode


class Training(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 1, dropout=0.5, batch_first=True)

    def forward(self, x):
        x = self.drop(torch.relu(self.bn(self.conv(x)))).flatten(2).transpose(1, 2)
        return self.fc(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("decomposed", FORMS)
def test_programs_exported_in_training_are_served_in_inference(path, decomposed):
    net = Training().to(DOUBLE).train()
    with torch.no_grad():
        for _ in range(4):
            net(torch.randn(8, 3, 6, 6, dtype=DOUBLE) * 2 + 1)
    program = program_of(path, net, torch.randn(4, 3, 6, 6, dtype=DOUBLE), decomposed=decomposed)
    lowered = lower(program)
    assert any("batch_norm was in training" in note for note in lowered.notes)
    assert any("dropout" in note for note in lowered.notes)
    net.eval()
    reference = original(program)
    for rows in (1, 5):
        x = torch.randn(rows, 3, 6, 6, dtype=DOUBLE)
        assert relative(lowered.graph(x), net(x)) <= 1e-10
        assert relative(reference(x), net(x)) <= 1e-10
        assert torch.equal(reference(x), reference(x))


@pytest.mark.parametrize("decomposed", FORMS)
def test_instance_norm_keeps_to_its_row(path, decomposed):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU())
    net = net.to(DOUBLE).eval()
    example = torch.randn(2, 3, 6, 6, dtype=DOUBLE)
    program = program_of(path, net, example, decomposed=decomposed)
    lowered, reference = lower(program), original(program)
    for rows in (1, 5):
        x = torch.randn(rows, 3, 6, 6, dtype=DOUBLE)
        assert relative(lowered.graph(x), net(x)) <= 1e-10
        assert relative(reference(x), net(x)) <= 1e-10


# Regions


class Settings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        with torch.no_grad():
            mask = (x > 0).to(x.dtype)
        with torch.autocast("cpu", enabled=False):
            y = self.fc(x * mask)
        return y * 2


def test_settings_are_inlined_with_their_names(path):
    net = Settings().to(DOUBLE)
    lowered = lower(program_of(path, net, torch.randn(2, 4, dtype=DOUBLE)))
    assert "fc" in lowered.layers
    assert any("without gradients" in note for note in lowered.notes)
    for rows in (1, 5):
        x = torch.randn(rows, 4, dtype=DOUBLE)
        assert relative(lowered.graph(x), net(x)) <= 1e-10


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.fc(x)
        return y.float()


def test_mixed_precision_is_told(path):
    net = Mixed()
    program = program_of(path, net, torch.randn(2, 4))
    lowered = lower(program)
    assert lowered.precision is torch.bfloat16
    x = torch.randn(5, 4)
    assert relative(lowered.graph(x), net.fc(x)) <= 1e-6
    assert torch.equal(original(program)(x), net(x))


class Branch(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v * 2, (x,))


def test_a_branch_on_data_is_named_and_runs_as_it_is(path):
    program = program_of(path, Branch(), torch.randn(2, 4, dtype=DOUBLE))
    with pytest.raises(Unlowerable, match=r"torch\.cond depends on tensor data"):
        lower(program)
    body = original(program)
    for sign in (1.0, -1.0):
        x = torch.full((3, 4), sign, dtype=DOUBLE, requires_grad=True)
        assert torch.equal(body(x), Branch()(x))
        (gradient,) = torch.autograd.grad(body(x).sum(), x)
        assert torch.equal(gradient, torch.full_like(x, 1.0 if sign > 0 else 2.0))


class Mapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        from torch._higher_order_ops.map import map as torch_map

        return self.fc(torch_map(self.step, x.transpose(0, 1), self.fc.weight[0]).sum(0))

    @staticmethod
    def step(row, scale):
        return torch.tanh(row) * scale

    def plain(self, x):
        return self.fc((torch.tanh(x) * self.fc.weight[0]).sum(1))


class Scanned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        from torch._higher_order_ops.scan import scan

        last, steps = scan(self.step, torch.zeros_like(x[:, 0]), x.transpose(0, 1), dim=0)
        return self.fc(last) + steps.sum(0)[:, :3]

    @staticmethod
    def step(carry, row):
        carry = torch.tanh(carry + row)
        return carry, carry * 2

    def plain(self, x):
        carry, steps = torch.zeros_like(x[:, 0]), []
        for row in x.unbind(1):
            carry, step = self.step(carry, row)
            steps.append(step)
        return self.fc(carry) + torch.stack(steps).sum(0)[:, :3]


@pytest.mark.parametrize("net", [Mapped, Scanned])
def test_loops_over_fixed_steps_are_written_out(path, net):
    net = net().to(DOUBLE)
    lowered = lower(program_of(path, net, torch.randn(2, 5, 4, dtype=DOUBLE)))
    for rows in (1, 5):
        x = torch.randn(rows, 5, 4, dtype=DOUBLE, requires_grad=True)
        pairs = [(f(x), torch.autograd.grad(f(x).sum(), x)[0]) for f in (lowered.graph, net.plain)]
        for found, expected in zip(*pairs, strict=True):
            assert relative(found, expected) <= 1e-10


class Endless(nn.Module):
    def forward(self, x):
        from torch._higher_order_ops.while_loop import while_loop

        return while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v * 2), (torch.tensor(0), x))[1]


def test_open_loops_are_named(path):
    program = program_of(path, Endless(), torch.randn(2, 4), dynamic=None)
    with pytest.raises(Unlowerable, match=r"torch\.while_loop has no graph form"):
        lower(program)


# State and checks


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x):
        self.count.add_(1)
        return x + self.count


def test_a_program_that_keeps_state_is_refused_a_graph(path):
    program = program_of(path, Stateful(), torch.randn(2, 4))
    with pytest.raises(Unlowerable, match="count"):
        lower(program)


class Checked(nn.Module):
    def forward(self, x):
        torch._check(x.shape[0] > 0)
        return x.to(torch.float32).softmax(-1)


def test_checks_are_left_out(path):
    lowered = lower(program_of(path, Checked(), torch.randn(3, 4)))
    names = {str(node.target) for node in lowered.graph.graph.nodes}
    assert not any("assert" in name or "constrain" in name for name in names)


class InPlace(nn.Module):
    def forward(self, x):
        y = x * 2
        y[:, 1] = 0
        y[:, 2:].mul_(3)
        return torch.nn.functional.relu(y, inplace=True) + y


@pytest.mark.parametrize("decomposed", FORMS)
def test_writes_in_place_become_ordinary_operators(path, decomposed):
    program = program_of(path, InPlace(), torch.randn(2, 4, dtype=DOUBLE), decomposed=decomposed)
    lowered = lower(program)
    for rows in (1, 5):
        x = torch.randn(rows, 4, dtype=DOUBLE)
        kept = x.clone()
        assert torch.equal(lowered.graph(x), InPlace()(x))
        assert torch.equal(x, kept)


# Inputs and outputs


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, batch, more, scale=2, flag=None):
        y = self.fc(batch["image"] * scale + batch["table"]) + more[0]
        return {"logits": y, "inner": (y * 2, [batch["table"]])}


def test_nested_inputs_are_taken_apart_and_outputs_keep_their_nesting(path):
    net = Nested().to(DOUBLE)
    rows = torch.randn(2, 4, dtype=DOUBLE)
    more = torch.randn(2, 3, dtype=DOUBLE)
    free = {0: torch.export.Dim.DYNAMIC}
    program = open_program(
        save(
            path,
            net,
            ({"image": rows, "table": rows + 1}, [more]),
            dynamic=({"image": free, "table": free}, [free]),
        )
    )
    assert [item.shape for item in inputs(program)] == [(None, 4), (None, 4), (None, 3)]
    assert output_names(program)[0] == "logits"
    lowered = lower(program)
    assert lowered.input_names == tuple(item.name for item in inputs(program))
    a, b, c = torch.randn(5, 4, dtype=DOUBLE), torch.randn(5, 4, dtype=DOUBLE), more[:1]
    expected = net({"image": a, "table": b}, [c.expand(5, 3)])
    for module in (lowered.graph, original(program)):
        found = module(a, b, c.expand(5, 3))
        assert found.keys() == expected.keys()
        assert relative(found["logits"], expected["logits"]) <= 1e-10
        assert torch.equal(found["inner"][0], found["logits"] * 2)
        assert torch.equal(found["inner"][1][0], b)


class Named(nn.Module):
    """Parts whose names a GraphModule has for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.graph = nn.Linear(4, 3)

    def forward(self, x):
        return self.graph(self.code(x))


def test_modules_may_have_any_name(path):
    net = Named().to(DOUBLE)
    program = program_of(path, net, torch.randn(2, 4, dtype=DOUBLE))
    lowered = lower(program)
    assert {"code.0", "code.1", "graph"} <= lowered.layers.keys()
    x = torch.randn(5, 4, dtype=DOUBLE)
    assert relative(lowered.graph(x), net(x)) <= 1e-10
    assert relative(original(program)(x), net(x)) <= 1e-10


def test_a_program_that_made_tensors_on_another_device_runs_here(path, tmp_path):
    class Made(nn.Module):
        def forward(self, x):
            return x + torch.arange(4, device=x.device) + torch.zeros(4, device="cpu")

    program_of(path, Made(), torch.randn(2, 4))

    def move(document):
        for node in document["graph_module"]["graph"]["nodes"]:
            for item in node["inputs"]:
                if "as_device" in item["arg"]:
                    item["arg"]["as_device"] = {"type": "cuda", "index": 1}

    program = open_program(edited(path, tmp_path / "n.pt2", move))
    x = torch.randn(3, 4)
    assert torch.equal(lower(program).graph(x), Made()(x))
    assert torch.equal(original(program)(x), Made()(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_single(path, dtype):
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 3)).to(dtype)
    lowered = lower(program_of(path, net, torch.randn(2, 4, dtype=dtype)))
    assert to_single(lowered.graph)
    x = torch.randn(5, 4)
    assert relative(lowered.graph(x), net.float()(x)) <= 1e-5


@pytest.mark.parametrize("strict", [False, True])
def test_strict_and_lenient_exports_have_the_same_names(path, strict):
    net = Training().eval()
    lowered = lower(program_of(path, net, torch.randn(2, 3, 6, 6), strict=strict))
    assert {"conv", "bn", "drop", "attention", "fc"} <= lowered.layers.keys()


# Quantisation


class Quantised(nn.Module):
    """As PT2E writes it: activations and weights pass through eight bits."""

    def __init__(self, channels: bool = True) -> None:
        super().__init__()
        importlib.import_module("torch.ao.quantization.fx._decomposed")
        self.register_buffer("weight", torch.randint(-127, 128, (3, 4), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(3) * 0.02 + 0.01)
        self.register_buffer("zeros", torch.zeros(3, dtype=torch.int64))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x):
        q = torch.ops.quantized_decomposed
        x = q.quantize_per_tensor(x, 0.03, 5, -128, 127, torch.int8)
        x = q.dequantize_per_tensor(x, 0.03, 5, -128, 127, torch.int8)
        weight = q.dequantize_per_channel(
            self.weight, self.scales, self.zeros, 0, -127, 127, torch.int8
        )
        y = torch.relu(torch.nn.functional.linear(x, weight, self.bias))
        y = q.quantize_per_channel(y, self.scales, self.zeros, 1, -127, 127, torch.int8)
        return q.dequantize_per_channel(y, self.scales, self.zeros, 1, -127, 127, torch.int8)


def test_quantised_programs_are_exact_going_forward(path):
    net = Quantised()
    program = program_of(path, net, torch.randn(2, 4))
    plain, through = lower(program), lower(program, straight_through=True)
    assert "linear" in {node.meta.get("kind") for node in plain.graph.graph.nodes}
    for rows in (1, 5):
        x = torch.randn(rows, 4) * 3
        for lowered in (plain, through):
            assert torch.equal(lowered.graph(x), net(x))
        assert torch.equal(original(program)(x), net(x))
    assert plain.precision is torch.int8
    assert not plain.graph(torch.randn(2, 4, requires_grad=True)).requires_grad


def test_straight_through_gradients_are_those_of_the_network_without_rounding(path):
    net = Quantised()
    lowered = lower(program_of(path, net, torch.randn(2, 4)), straight_through=True)
    x = (torch.rand(5, 4) - 0.5).requires_grad_()  # inside of the limits
    weight = net.weight * net.scales[:, None]
    y = lowered.graph(x)
    (found,) = torch.autograd.grad(y.sum(), x)
    rounded = ((x / 0.03).round() * 0.03) @ weight.T + net.bias
    passes = (rounded > 0) & (rounded / net.scales < 127.5)
    assert relative(found, passes.to(weight.dtype) @ weight) <= 1e-5
    far = torch.full((1, 4), 100.0, requires_grad=True)  # cut off
    assert torch.autograd.grad(lowered.graph(far).sum(), far)[0].abs().max() == 0


class Dynamic(nn.Module):
    def forward(self, x):
        q = importlib.import_module("torch").ops.quantized_decomposed
        scale, zero = q.choose_qparams.tensor(x, -128, 127, 1e-6, torch.int8)
        x = q.quantize_per_tensor.tensor(x, scale, zero, -128, 127, torch.int8)
        return q.dequantize_per_tensor.tensor(x, scale, zero, -128, 127, torch.int8)


def test_dynamic_quantisation_is_exact(path):
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    program = program_of(path, Dynamic(), torch.randn(3, 4))
    lowered = lower(program)
    assert lowered.mixes_rows
    assert lowered.row_by_row
    x = torch.randn(5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(lowered.graph(x), Dynamic()(x))
