"""What a caller gets back, the engine's own primitives included."""

import io
import json
from dataclasses import dataclass

import pytest
import torch
from engine_fakes import (
    Act,
    Double,
    NoParams,
    Walk,
    array,
    calling,
    forwards,
    linear,
    result,
    rows,
    serving,
    tensor,
    to_class,
)
from PIL import Image
from torch import Tensor, nn

from interpret_pictures.options import Rendering
from interpret_server import __version__
from interpret_server.engine.api import LayerInfo
from interpret_server.errors import InvalidRequest, MissingCapability
from interpret_server.models.classifier import Capability, Classifier
from interpret_server.plugin import Kind, Plugin, logits_after, logits_before, output
from interpret_server.testing import classifier


@dataclass(frozen=True)
class AttackResult:
    adversarial: Tensor = output("the inputs, moved")
    success: Tensor = output("whether the class changed")
    before: Tensor = logits_before()
    after: Tensor = logits_after()
    absent: Tensor | None = None


class Shift(Plugin[NoParams, AttackResult]):
    """Moves every pixel by a quarter."""

    name = "shift"
    kind = Kind.ATTACK

    @torch.no_grad()
    def run(self, model, batch, params, job):
        moved = (batch.inputs + 0.25).clamp(0, 1)
        before, after = model(batch.inputs), model(moved)
        return AttackResult(moved, before.argmax(1) != after.argmax(1), before, after)


@dataclass(frozen=True)
class HeatResult:
    attributions: Tensor = output("the inputs, about their middle")


class Heat(Plugin[NoParams, HeatResult]):
    """Colours its inputs."""

    name = "heat"
    kind = Kind.ATTRIBUTION

    def run(self, model, batch, params, job):
        return HeatResult(batch.inputs - 0.5)


def pictures_model() -> Classifier:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 7))
    return classifier(net, (3, 8, 8), input_layout="CHW")


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        return image.size


async def test_predictions_list_the_five_most_probable_classes():
    model = pictures_model()
    image = torch.rand(2, 3, 8, 8)
    async with serving(Shift(), model=model) as worker:
        item = await result(worker, calling("shift", array(image)))
    with torch.no_grad():
        logits = model(image)
    for row, prediction in enumerate(item.before):
        top = logits[row].topk(5)
        assert prediction.classes == tuple(top.indices.tolist())
        assert prediction.logits == pytest.approx(top.values.tolist(), abs=1e-5)
        expected = logits[row].softmax(0)[top.indices].tolist()
        assert prediction.probabilities == pytest.approx(expected, abs=1e-6)
        assert prediction.labels == ()
    assert len(item.after) == 2
    assert item.tensors["success"].dtype == "bool"
    assert set(item.tensors) == {"adversarial", "success"}


async def test_fewer_than_five_classes_are_all_listed():
    async with serving(Double()) as worker:
        item = await result(worker, calling("double", array([[0.1, 0.3, 0.2, 0]])))
    assert item.before[0].classes == (1, 2, 0)
    assert sum(item.before[0].probabilities) == pytest.approx(1)


async def test_half_precision_touches_floating_point_tensors_only():
    async with serving(Shift(), model=pictures_model()) as worker:
        item = await result(worker, calling("shift", array(torch.rand(1, 3, 8, 8)), half=True))
    assert item.tensors["adversarial"].dtype == "float16"
    assert item.tensors["success"].dtype == "bool"
    assert len(item.tensors["adversarial"].data) == 2 * 3 * 8 * 8


async def test_attacks_are_drawn_with_their_perturbation():
    async with serving(Shift(), model=pictures_model()) as worker:
        item = await result(
            worker, calling("shift", array(torch.rand(2, 3, 8, 8)), render=Rendering())
        )
    assert {name: len(found) for name, found in item.pictures.items()} == {
        "adversarial": 2,
        "perturbation": 2,
    }
    assert size(item.pictures["adversarial"][0]) == (256, 256)


async def test_attributions_are_drawn_only_if_asked_for():
    inputs = array(torch.rand(1, 3, 8, 8))
    async with serving(Heat(), model=pictures_model()) as worker:
        plain = await result(worker, calling("heat", inputs))
        drawn = await result(worker, calling("heat", inputs, render=Rendering()))
    assert plain.pictures == {}
    assert size(drawn.pictures["attributions"][0]) == (256, 256)


async def test_provenance_is_enough_to_repeat_a_call():
    async with serving(Walk()) as worker:
        call = calling("walk", rows(0), params={"steps": 2}, targets=to_class(1), seeds=(5,))
        source = (await result(worker, call)).provenance
        again = calling(
            source.plugin,
            rows(0),
            params=source.params,
            targets=source.targets,
            seeds=source.seeds,
        )
        repeated = await result(worker, again)
    assert json.loads(source.params) == {"steps": 2, "tag": ""}
    assert (source.model, source.device, source.precision) == ("net", "cpu", "float32")
    assert source.server_version == __version__
    assert source.batch_rows == 1
    assert source.queue_seconds >= 0
    assert source.run_seconds > 0
    assert repeated.provenance.params == source.params


async def test_warnings_name_the_rows_of_their_own_call():
    def warn(model, batch, job):
        job.warn(batch.inputs[:, 0] > 0.5, "high")
        job.warn(batch.inputs[:, 0] > 0.7, "high")
        job.warn(batch.inputs[:, 0] > 2, "never")
        return batch.inputs

    async with serving(Act(warn)) as worker:
        item = await result(worker, calling("act", rows(0.1, 0.6, 0.8)))
    assert [(found.message, found.rows) for found in item.warnings] == [("high", (1, 2))]


async def test_predict_gives_logits_probabilities_and_predictions():
    async with serving() as worker:
        item = await result(worker, calling("_predict", rows(0.75)))
    assert tensor(item.tensors["logits"]).tolist() == [[0.75, 0.5, 0.25]]
    expected = torch.tensor([[0.75, 0.5, 0.25]]).softmax(1)
    assert torch.allclose(tensor(item.tensors["probabilities"]), expected)
    assert item.before[0].classes == (0, 1, 2)


async def test_predict_needs_no_capability_and_one_forward():
    model = linear()
    model.capabilities = frozenset({Capability.BOUNDS})
    model.lacking = dict.fromkeys(Capability, "the file only runs forwards")
    async with serving(model=model) as worker:
        sizes = forwards(model)
        await result(worker, calling("_predict", rows(0.75)))
        assert sizes == [1]
        for name, fields in [
            ("_gradient", {"tensors": {"grad_outputs": array([[1.0, 0, 0]])}}),
            ("_activations", {"params": {"layers": ["0"]}}),
        ]:
            with pytest.raises(MissingCapability, match="the file only runs forwards"):
                await result(worker, calling(name, rows(0), **fields))


async def test_gradient_is_the_vector_jacobian_product():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, cotangent = torch.rand(2, 4), torch.randn(2, 3)
    async with serving(model=classifier(net, (4,))) as worker:
        call = calling("_gradient", array(x), tensors={"grad_outputs": array(cotangent)})
        item = await result(worker, call)
    leaf = x.clone().requires_grad_()
    logits = net(leaf)
    (expected,) = torch.autograd.grad(logits, leaf, cotangent)
    assert torch.allclose(tensor(item.tensors["gradient"]), expected, atol=1e-6)
    assert torch.allclose(tensor(item.tensors["logits"]), logits, atol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({}, "tensors.grad_outputs: _gradient needs it"),
        ({"grad_outputs": array([[1.0, 0]])}, r"logits of model have \[rows, 3\]"),
    ],
)
async def test_a_wrong_cotangent_is_refused(tensors, told):
    net = classifier(nn.Sequential(nn.Linear(4, 3)), (4,))
    async with serving(model=net) as worker:
        with pytest.raises(InvalidRequest, match=told):
            await result(worker, calling("_gradient", rows(0), tensors=tensors))


async def test_activations_are_named_by_layer():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.rand(2, 4)
    async with serving(model=classifier(net, (4,))) as worker:
        assert LayerInfo("1", "relu", (5,)) in worker.models()[0].layers
        layers = {"layers": ["1", "0", "1"]}
        item = await result(worker, calling("_activations", array(x), params=layers))
        with pytest.raises(InvalidRequest, match="has no layer '7'"):
            await result(worker, calling("_activations", array(x), params={"layers": ["7"]}))
        with pytest.raises(InvalidRequest, match=r"params\.layers"):
            await result(worker, calling("_activations", array(x), params={"layers": []}))
    assert set(item.tensors) == {"0", "1"}
    assert torch.allclose(tensor(item.tensors["1"]), net[0](x).relu(), atol=1e-6)


async def test_primitives_are_not_listed_and_plugins_are_described():
    async with serving(Shift(), Double()) as worker:
        double, shift = worker.plugins()
    assert (double.name, shift.name) == ("double", "shift")
    assert shift.summary == "Moves every pixel by a quarter."
    assert (shift.kind, shift.rows, shift.inputs) == ("attack", "independent", "required")
    assert [(item.name, item.role) for item in shift.fields][2:4] == [
        ("before", "logits_before"),
        ("after", "logits_after"),
    ]
    assert shift.schema["additionalProperties"] is False
    assert shift.distribution == "tests"
