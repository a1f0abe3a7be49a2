"""torch.export programs as graphs: the same values and gradients as the eager modules."""

from functools import cache
from pathlib import Path

import exported_networks as networks
import pytest
import torch
from captum.attr import GuidedBackprop
from exported_networks import NETWORKS, free_rows, relative, save, tapped, tapped_eager
from torch import nn

from interpret_server.models.exported import fixed_batch, inputs, lower, open_program, original
from interpret_server.models.lowered import Lowered
from interpret_server.models.relu_rules import ReluRule, relu_rule

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
FORMS = ["dynamic", "static", "decomposed", "decomposed-static"]
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:captum")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exported")


@cache
def lowered_of(folder: Path, name: str, form: str, dtype: torch.dtype) -> Lowered:
    example = networks.inputs(name, 1 if "static" in form else 3, dtype)
    path = save(
        folder / f"{name}-{form}-{dtype}.pt2",
        networks.network(name, dtype),
        example,
        dynamic=None if "static" in form else free_rows(example),
        decomposed="decomposed" in form,
    )
    return lower(open_program(path))


CELLS = [
    (name, form, torch.float64)
    for name in NETWORKS
    for form in FORMS
    if form != "decomposed-static" or name in ("residual", "recurrent", "vit")
]
CELLS += [(name, "dynamic", torch.float32) for name in ("residual", "vit", "audio")]


@pytest.mark.parametrize(("name", "form", "dtype"), CELLS, ids=str)
@pytest.mark.parametrize("rows", [1, 5])
def test_a_program_gives_what_the_module_gives(folder, name, form, dtype, rows):
    lowered, net = lowered_of(folder, name, form, dtype), networks.network(name, dtype)
    layer = NETWORKS[name].layer
    x = networks.inputs(name, rows, dtype)
    leaf = x[0].is_floating_point()
    ours = tuple(v.clone().requires_grad_(v.is_floating_point()) for v in x)
    theirs = tuple(v.clone().requires_grad_(v.is_floating_point()) for v in x)
    found, value = tapped(lowered, ours, layer)
    expected, reference = tapped_eager(net, theirs, layer)
    direction = torch.randn(expected.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((found * direction).sum(), [value, *ours[:leaf]])
    references = torch.autograd.grad((expected * direction).sum(), [reference, *theirs[:leaf]])
    assert relative(found, expected) <= TOLERANCE[dtype]
    assert relative(value, reference) <= TOLERANCE[dtype]
    for one, other in zip(gradients, references, strict=True):
        assert relative(one, other) <= TOLERANCE[dtype]


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("form", FORMS[:3])
@pytest.mark.parametrize("name", [name for name in NETWORKS if not NETWORKS[name].smooth])
def test_guided_backprop_is_that_of_the_module(folder, name, form, rows):
    lowered, net = lowered_of(folder, name, form, torch.float64), networks.network(name)
    (x,) = networks.inputs(name, rows)

    def guided(forward):
        leaf = x.clone().requires_grad_()
        with relu_rule(ReluRule.GUIDED):
            return torch.autograd.grad(forward(leaf)[:, 2].sum(), leaf)[0]

    expected = guided(net)
    assert relative(guided(lowered.graph), expected) <= 1e-10
    plain = all(type(part) is not nn.PReLU for part in net.modules()) and name != "dense"
    if plain and name != "audio":  # Captum's rule is for nn.ReLU alone
        captum = GuidedBackprop(lowered.graph).attribute(x.clone(), target=2)
        assert relative(captum, expected) <= 1e-10


def test_layers_are_the_modules_of_the_source(folder):
    layers = lowered_of(folder, "residual", "dynamic", torch.float64).layers
    again = lowered_of(folder, "residual", "decomposed", torch.float64).layers
    for names in (layers, again):
        assert {"stem", "pool", "layer1.0.conv", "layer1.0.bn", "layer1.0.relu"} <= names.keys()
        assert names["layer1.0"] == names["layer1.0.relu:1"]
        assert names["layer1"] == names["layer1.1"]
        assert "layer1.0.add" in names


def test_weights_are_shared_with_the_program_and_frozen(folder):
    lowered_of(folder, "residual", "dynamic", torch.float64)
    program = open_program(folder / "residual-dynamic-torch.float64.pt2")
    graph = lower(program).graph
    conv = graph.get_submodule("layer1.1.conv")
    assert conv.weight.data_ptr() == program.state_dict["layer1.1.conv.weight"].data_ptr()
    assert not any(tensor.requires_grad for tensor in graph.parameters())


@pytest.mark.parametrize("form", FORMS[:3])
def test_inputs_are_told(folder, form):
    lowered_of(folder, "transformer", form, torch.float64)
    program = open_program(folder / f"transformer-{form}-torch.float64.pt2")
    rows = 1 if "static" in form else None
    assert fixed_batch(program) == rows
    assert [(item.name, item.shape, item.dtype) for item in inputs(program)] == [
        ("tokens", (rows, 6), torch.int64),
        ("mask", (rows, 6), torch.int64),
    ]


@pytest.mark.parametrize("name", ["residual", "recurrent", "transformer"])
def test_the_original_runs_as_it_is(folder, name):
    lowered_of(folder, name, "dynamic", torch.float64)
    module = original(open_program(folder / f"{name}-dynamic-torch.float64.pt2"))
    for rows in (1, 5):
        x = networks.inputs(name, rows)
        assert relative(module(*x), networks.network(name)(*x)) <= 1e-12


def test_a_fixed_batch_is_told_and_made_free_where_proven(folder):
    fixed = lowered_of(folder, "vit", "static", torch.float64)
    assert any("made to follow the batch" in note for note in fixed.notes)
    free = lowered_of(folder, "vit", "dynamic", torch.float64)
    assert not any("rows" in note or "row at" in note for note in free.notes)


def test_a_fixed_batch_beside_a_free_length_is_made_free(tmp_path):
    example, net = networks.inputs("transformer", 1), networks.network("transformer")
    length = {1: torch.export.Dim("length", max=6)}
    path = save(tmp_path / "m.pt2", net, example, dynamic=(length, length))
    lowered = lower(open_program(path))
    for rows, size in ((1, 6), (5, 6), (5, 3)):
        x = tuple(v[:, :size] for v in networks.inputs("transformer", rows))
        assert relative(lowered.graph(*x), net(*x)) <= 1e-10


class Mixing(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True) + x.reshape(2, -1)[:, :4]


def test_rows_that_influence_each_other_are_not_made_free(tmp_path):
    path = save(tmp_path / "m.pt2", Mixing().eval(), (torch.randn(2, 4),))
    lowered = lower(open_program(path))
    assert lowered.notes == ["The file was exported for 2 rows at a time."]
    x = torch.randn(2, 4)
    assert torch.equal(lowered.graph(x), Mixing()(x))


def test_free_sizes_of_images_are_kept(tmp_path):
    free = torch.export.Dim.DYNAMIC
    example = networks.inputs("residual", 2)
    net = networks.network("residual")
    path = save(tmp_path / "m.pt2", net, example, dynamic=({0: free, 2: free, 3: free},))
    program = open_program(path)
    assert inputs(program)[0].shape == (None, 3, None, None)
    lowered = lower(program)
    for shape in ((1, 3, 10, 6), (3, 3, 7, 12)):
        x = torch.randn(shape, dtype=torch.float64)
        assert relative(lowered.graph(x), net(x)) <= 1e-10
