"""Calls that are refused, and what the accepted ones turn into."""

import dataclasses
import re
import struct

import numpy as np
import pytest
import torch
from engine_fakes import (
    Act,
    Double,
    NoParams,
    Synthesis,
    SynthesisResult,
    Value,
    Walk,
    array,
    calling,
    linear,
    result,
    rows,
    serving,
    tensor,
    to_class,
)
from pydantic import Field, field_validator

from interpret_server.engine.api import Array, Target
from interpret_server.engine.arrays import to_array, to_tensor
from interpret_server.engine.describe import describe_classifier
from interpret_server.errors import InvalidRequest, MissingCapability, NotFound
from interpret_server.plugin import AuxTensor, Capability, Inputs, Params, Plugin
from interpret_server.testing import classifier


class TunedParams(Params):
    epsilon: float = Field(0.1, gt=0)
    norm: str = "linf"

    @field_validator("norm")
    @classmethod
    def _known(cls, value):
        if value not in ("linf", "l2"):
            raise ValueError("use 'linf' or 'l2'")
        return value


class Tuned(Plugin[TunedParams, SynthesisResult]):
    """Has parameters, and refuses inputs."""

    name = "tuned"
    kind = Synthesis.kind
    inputs = Inputs.FORBIDDEN
    target_kinds = frozenset()

    def run(self, model, batch, params, job):
        return SynthesisResult(batch.inputs + params.epsilon)


class Masked(Plugin[NoParams, SynthesisResult]):
    """Needs a mask."""

    name = "masked"
    kind = Synthesis.kind
    target_kinds = frozenset()
    tensors = {"mask": AuxTensor("where", required=True)}  # noqa: RUF012

    def run(self, model, batch, params, job):
        return SynthesisResult(batch.inputs * batch.tensors["mask"])


class Guided(Double):
    """Needs rectifiers."""

    name = "guided"
    requires = frozenset({Capability.RECTIFIERS})


NAN, INF = float("nan"), float("inf")
ONE = rows(0.5)
INPUTS = {
    "short bytes": (
        Array("float32", (1, 4), bytes(12)),
        "inputs: 12 bytes, shape [1, 4] of float32 needs 16",
    ),
    "unknown type": (Array("complex64", (1, 4), bytes(32)), "unknown data type 'complex64'"),
    "negative size": (Array("float32", (-1, 4), b""), "[-1, 4] has a negative size"),
    "boolean": (Array("bool", (1, 4), bytes(4)), "the data type must be numeric, not bool"),
    "row shape": (array(torch.zeros(1, 5)), "the shape is [1, 5]; net takes [rows, 4]"),
    "no row axis": (array(torch.zeros(4)), "the shape is [4]; net takes [rows, 4]"),
    "scalar": (array(0.0), "the shape is []; net takes [rows, 4]"),
    "no rows": (array(torch.zeros(0, 4)), "there are no rows"),
    "too many rows": (array(torch.zeros(16_385, 4)), "16385 rows in one call"),
    "NaN": (array([[0, 0, 0, 0], [0, 0, NAN, 0]]), "inputs: row 1 holds NaN"),
    "infinite": (array([[0, 0, -INF, 0]]), "inputs: row 0 holds an infinite value"),
    "overflow": (array([[0, 1e300, 0, 0]], torch.float64), "row 0 holds an infinite value"),
    "above": (array([[0, 0, 0, 1], [0, 1.5, 0, 0]]), "row 1 holds 1.5, outside the bounds [0, 1]"),
    "below": (array([[0, -0.001, 0, 0]]), "row 0 holds -0.001, outside the bounds [0, 1] of net"),
    "by one ulp": (
        array([[0, np.nextafter(np.float32(1), np.float32(2)), 0, 0]]),
        "row 0 holds 1.00000012, outside",
    ),
    "absent": (None, "inputs: double needs inputs"),
    "images": ((b"not an image",), "this model's input is no image"),
}


@pytest.mark.parametrize("name", INPUTS)
async def test_bad_inputs_are_refused_with_what_is_wrong(name):
    inputs, told = INPUTS[name]
    async with serving(Double()) as worker:
        with pytest.raises(InvalidRequest, match=re.escape(told)) as caught:
            await result(worker, calling("double", inputs))
        assert caught.value.violations[0].field.startswith("inputs")
        await result(worker, calling("double", ONE))


DIRECTION = array([1.0, 0.0, 0.0])
BAD_CALLS = {
    "class out of range": (
        calling("value", ONE, targets=to_class(3)),
        "class 3 is out of range; net's output has 0 to 2",
    ),
    "negative class": (calling("value", ONE, targets=to_class(-1)), "class -1 is out of range"),
    "huge class": (calling("value", ONE, targets=to_class(1 << 70)), "out of the range of 64-bit"),
    "mixed kinds": (
        calling("value", rows(0, 0), targets=(*to_class(0), Target("neuron", (0,)))),
        "one call mixes class and neuron",
    ),
    "mixed layers": (
        calling("value", rows(0, 0), targets=(*to_class(0), Target("class", (0,), "0"))),
        "one call mixes the layers 0 and the logits",
    ),
    "unknown kind": (calling("value", ONE, targets=(Target("pixel"),)), "unknown kind 'pixel'"),
    "kind not taken": (
        calling("value", ONE, targets=(Target("channel", (0,)),)),
        "value takes class, neuron or direction, not channel",
    ),
    "no target taken": (calling("double", ONE, targets=to_class(0)), "double takes no target"),
    "target needed": (calling("synthesis"), "synthesis needs a target: class, neuron, channel"),
    "two indices": (calling("value", ONE, targets=(Target("class", (0, 1)),)), "exactly one index"),
    "ragged neurons": (
        calling("value", rows(0, 0), targets=(Target("neuron", (0,)), Target("neuron", (0, 1)))),
        "differ in their number of indices",
    ),
    "index of a direction": (
        calling("value", ONE, targets=(Target("direction", (0,), None, DIRECTION),)),
        "a direction takes no index",
    ),
    "empty direction": (calling("value", ONE, targets=(Target("direction"),)), "the values of its"),
    "long direction": (
        calling("value", ONE, targets=(Target("direction", direction=array([0.0] * 5)),)),
        "the direction has shape [5]",
    ),
    "unlike directions": (
        calling(
            "value",
            rows(0, 0),
            targets=tuple(Target("direction", direction=array([0.0] * n)) for n in (3, 4)),
        ),
        "differ in shape",
    ),
    "NaN direction": (
        calling("value", ONE, targets=(Target("direction", direction=array([NAN, 0, 0])),)),
        "row 0 holds NaN",
    ),
    "unknown layer": (
        calling("value", ONE, targets=(Target("neuron", (0,), "1"),)),
        "target: net has no layer '1'; did you mean",
    ),
    "target count": (
        calling("value", rows(0, 0, 0), targets=to_class(0) * 2),
        "2 given for 3 rows",
    ),
    "seed count": (calling("double", rows(0, 0, 0), seeds=(1, 2)), "2 given for 3 rows"),
    "seed range": (calling("double", ONE, seeds=(-1,)), "between 0 and 2**64 - 1"),
    "unknown tensor": (
        calling("synthesis", ONE, tensors={"musk": ONE}, targets=to_class(0)),
        "tensors.musk: synthesis takes no such tensor; it takes mask, code",
    ),
    "tensor of another shape": (
        calling("masked", ONE, tensors={"mask": array([[1.0]])}),
        "tensors.mask: the shape is [1, 1]; net takes [rows, 4]",
    ),
    "tensor rows": (
        calling("masked", ONE, tensors={"mask": rows(1, 1)}),
        "tensors.mask: 2 rows, where the request has 1",
    ),
    "tensor without rows": (
        calling("synthesis", ONE, tensors={"code": array(1.0)}, targets=to_class(0)),
        "tensors.code: the first axis must be the rows",
    ),
    "tensor with NaN": (
        calling("masked", ONE, tensors={"mask": rows(NAN)}),
        "tensors.mask: row 0 holds NaN",
    ),
    "missing tensor": (calling("masked", ONE), "tensors.mask: masked needs it"),
    "unwanted inputs": (calling("tuned", ONE), "inputs: tuned takes no inputs"),
    "broken JSON": (calling("tuned", params="{"), "params: invalid JSON"),
    "JSON of another kind": (calling("tuned", params="[]"), "params: input should be an object"),
    "parameter out of range": (
        calling("tuned", params={"epsilon": 0}),
        "params.epsilon: input should be greater than 0",
    ),
    "infinite parameter": (calling("tuned", params='{"epsilon": Infinity}'), "params.epsilon"),
    "unknown parameter": (
        calling("tuned", params={"epsilom": 1}),
        "params.epsilom: tuned has no such parameter; did you mean epsilon?",
    ),
    "wrong choice": (calling("tuned", params={"norm": "l3"}), "params.norm: use 'linf' or 'l2'"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
async def test_bad_calls_are_refused_with_what_is_wrong(name):
    call, told = BAD_CALLS[name]
    async with serving(Double(), Value(), Synthesis(), Tuned(), Masked()) as worker:
        with pytest.raises(InvalidRequest, match=re.escape(told)) as caught:
            await result(worker, call)
        assert caught.value.violations
        await result(worker, calling("double", ONE))


async def test_every_wrong_parameter_is_told_at_once():
    async with serving(Tuned()) as worker:
        with pytest.raises(InvalidRequest) as caught:
            await result(worker, calling("tuned", params={"epsilon": -1, "zeta": 0}))
    assert [item.field for item in caught.value.violations] == ["params.epsilon", "params.zeta"]


async def test_a_missing_capability_is_refused_with_the_models_reason():
    async with serving(Guided()) as worker:
        with pytest.raises(
            MissingCapability, match="guided requires rectifiers: the network has no"
        ):
            await result(worker, calling("guided", ONE))


async def test_unknown_models_and_plugins_are_named_with_what_there_is():
    async with serving(Double()) as worker:
        with pytest.raises(NotFound, match="no model 'nett'; loaded: net"):
            await result(worker, calling("double", ONE, model="nett"))
        with pytest.raises(NotFound, match="no plugin 'duoble'; did you mean double"):
            await result(worker, calling("duoble", ONE))
        with pytest.raises(NotFound, match="no plugin '_secret'"):
            await result(worker, calling("_secret", ONE))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int8])
async def test_integers_are_refused_where_the_manifest_does_not_promise_them(dtype):
    async with serving(Double()) as worker:
        with pytest.raises(InvalidRequest, match="where net takes float32; convert them"):
            await result(worker, calling("double", array([[1, 0, 1, 0]], dtype)))


async def test_promised_integers_are_converted():
    net = classifier(torch.nn.Sequential(torch.nn.Linear(4, 3)), (4,), bounds=(0, 255), name="net")
    info = describe_classifier("net", net, 64)
    inputs = (dataclasses.replace(info.inputs[0], integers=True),)
    async with serving(Double()) as worker:
        worker.add("bytes", net, dataclasses.replace(info, inputs=inputs))
        call = calling("double", array([[7, 0, 255, 0]], torch.uint8), model="bytes")
        item = await result(worker, call)
    assert tensor(item.tensors["doubled"]).tolist() == [[14, 0, 510, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
async def test_any_floating_point_type_is_converted_to_the_models(dtype):
    async with serving(Double()) as worker:
        item = await result(worker, calling("double", array([[1, 0, 1, 0]], dtype)))
    assert item.tensors["doubled"].dtype == "float32"
    assert tensor(item.tensors["doubled"]).tolist() == [[2, 0, 2, 0]]


async def test_a_model_without_bounds_takes_any_finite_value():
    free = classifier(torch.nn.Sequential(torch.nn.Linear(4, 3)), (4,), bounds=None)
    async with serving(Double(), model=free) as worker:
        await result(worker, calling("double", array([[1e6, -1e6, 0, 0]])))


async def test_bounds_are_compared_in_the_models_own_precision():
    odd = classifier(torch.nn.Sequential(torch.nn.Linear(4, 3)), (4,), bounds=(0.0, 0.1))
    async with serving(Double(), model=odd) as worker:
        await result(worker, calling("double", array([[np.float32(0.1), 0, 0, 0]])))


async def test_a_boolean_mask_is_taken_as_zeros_and_ones():
    mask = Array("bool", (1, 4), bytes([1, 0, 1, 0]))
    async with serving(Masked()) as worker:
        item = await result(worker, calling("masked", ONE, tensors={"mask": mask}))
    assert tensor(item.tensors["images"]).tolist() == [[0.5, 0, 0.25, 0]]


async def test_seeds_are_expanded_reported_and_enough_to_repeat():
    async with serving(Synthesis()) as worker:

        async def run(**fields):
            return await result(worker, calling("synthesis", rows(0, 0, 0), **fields))

        drawn = await run(targets=to_class(0))
        again = await run(targets=to_class(0), seeds=drawn.provenance.seeds)
        counted = await run(targets=to_class(0), seeds=(7,))
        other = await run(targets=to_class(0))
    assert len(set(drawn.provenance.seeds)) == 3
    assert again.tensors == drawn.tensors
    assert counted.provenance.seeds == (7, 8, 9)
    assert other.provenance.seeds != drawn.provenance.seeds


async def test_the_largest_seed_wraps_around():
    async with serving(Double()) as worker:
        item = await result(worker, calling("double", rows(0, 0), seeds=(2**64 - 1,)))
    assert item.provenance.seeds == (2**64 - 1, 0)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"targets": to_class(0)}, 1),
        ({"targets": (*to_class(0), *to_class(1))}, 2),
        ({"targets": to_class(1), "seeds": (1, 2, 3)}, 3),
        ({"targets": to_class(1), "tensors": {"code": array(torch.zeros(4, 9))}}, 4),
    ],
)
async def test_without_inputs_the_rows_come_from_what_there_is(fields, count):
    seen = []

    class Watched(Synthesis):
        """Looks at its batch."""

        def run(self, model, batch, params, job):
            seen.append((batch.has_inputs, batch.inputs))
            return super().run(model, batch, params, job)

    async with serving(Watched()) as worker:
        item = await result(worker, calling("synthesis", **fields))
    ((has_inputs, neutral),) = seen
    assert not has_inputs
    assert torch.equal(neutral, torch.full((count, 4), 0.5))
    assert item.tensors["images"].shape == (count, 4)
    assert len(item.provenance.targets) == count


async def test_directions_of_all_rows_or_of_each():
    inputs = array([[0.5, 0.25, 0.0, 0], [0.5, 0.25, 0.0, 0]])
    up, across = (Target("direction", direction=array(d)) for d in ([1.0, 0, 0], [1, 2.0, 0]))
    async with serving(Value()) as worker:
        each = await result(worker, calling("value", inputs, targets=(up, across)))
        one = await result(worker, calling("value", inputs, targets=(across,)))
    assert tensor(each.tensors["value"]).tolist() == [0.5, 1.0]
    assert tensor(one.tensors["value"]).tolist() == [1.0, 1.0]
    assert one.provenance.targets == (across, across)


async def test_encoded_images_become_inputs():
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (2, 2), 255).save(buffer, format="PNG")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    image_model = classifier(net, (1, 2, 2), input_layout="CHW")
    async with serving(Double(), model=image_model) as worker:
        item = await result(worker, calling("double", (buffer.getvalue(),)))
        with pytest.raises(InvalidRequest, match="neither a JPEG nor a PNG"):
            await result(worker, calling("double", (b"junk",)))
    assert tensor(item.tensors["doubled"]).tolist() == [[[[2, 2], [2, 2]]]]


async def test_the_callers_bytes_are_shared_not_copied():
    data = struct.pack("<4f", 0.5, 0.25, 0.0, 1.0)
    addresses = []

    def look(model, batch, job):
        addresses.append(batch.inputs.data_ptr())
        return batch.inputs * 2

    async with serving(Act(look)) as worker:
        await result(worker, calling("act", Array("float32", (1, 4), data)))
    assert addresses == [np.frombuffer(data, np.uint8).ctypes.data]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "uint8", "bool"])
def test_arrays_survive_the_way_to_torch_and_back(dtype):
    values = (torch.arange(6).reshape(2, 3) % 2).to(getattr(torch, dtype))
    assert torch.equal(to_tensor(to_array(values), "x"), values)
    assert to_array(values.T).shape == (3, 2)
    assert torch.equal(to_tensor(to_array(values.T), "x"), values.T)


def test_a_tensor_keeps_its_bytes_alive_and_may_be_misaligned():
    raw = bytes(1) + struct.pack("<2f", 1.5, 2.5)
    shifted = to_tensor(Array("float32", (2,), memoryview(raw)[1:]), "x")
    alone = to_tensor(Array("float32", (2,), struct.pack("<2f", 1.5, 2.5)), "x")
    assert shifted.tolist() == alone.tolist() == [1.5, 2.5]


async def test_walk_takes_a_target_or_none():
    async with serving(Walk(), model=linear()) as worker:
        assert (await result(worker, calling("walk", ONE))).provenance.targets == ()
        item = await result(worker, calling("walk", ONE, targets=to_class(1)))
    assert item.provenance.targets == to_class(1)
