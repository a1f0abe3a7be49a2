"""Merging alike calls, and keeping unlike ones apart."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from engine_fakes import (
    Act,
    Double,
    NoParams,
    Shuffle,
    Synthesis,
    Value,
    Walk,
    array,
    calling,
    forwards,
    linear,
    queued,
    result,
    rows,
    serving,
    tensor,
    to_class,
    until,
)
from torch import Tensor, nn

from interpret_server.engine.api import Target
from interpret_server.errors import InterpretError, InvalidRequest
from interpret_server.models.classifier import Classifier
from interpret_server.plugin import Batch, Job, Kind, Plugin, Rows, group_output, output
from interpret_server.testing import classifier


async def behind_a_busy_device(worker, walk, calls):
    """Results of calls that were all queued before any of them could start."""
    walk.go.clear()
    blocker = asyncio.create_task(result(worker, calling("walk", rows(0), params={"steps": 1})))
    await until(lambda: bool(walk.log))
    tasks = [asyncio.create_task(result(worker, call)) for call in calls]
    await until(lambda: queued(worker) == len(calls))
    walk.go.set()
    await blocker
    return await asyncio.gather(*tasks)


async def test_sixteen_alike_calls_share_one_forward_and_get_their_own_rows():
    model, walk = linear(), Walk()
    async with serving(Double(), walk, model=model) as worker:
        sizes = forwards(model)
        calls = [calling("double", rows(i / 16)) for i in range(16)]
        results = await behind_a_busy_device(worker, walk, calls)
    assert sizes == [16]
    for i, item in enumerate(results):
        assert torch.equal(tensor(item.tensors["doubled"]), tensor(rows(i / 16)) * 2)
        assert item.metrics["total"] == (i / 16 + 0.75,)
        assert item.provenance.batch_rows == 16


async def test_calls_merge_while_the_device_is_busy_without_any_arrangement():
    model = linear()
    async with serving(Double(), model=model) as worker:
        sizes = forwards(model)
        calls = [calling("double", rows(i / 16)) for i in range(16)]
        await asyncio.gather(*(result(worker, call) for call in calls))
    assert sum(sizes) == 16


async def test_several_rows_a_call_are_split_where_they_were_joined():
    walk = Walk()
    async with serving(Double(), walk) as worker:
        calls = [calling("double", rows(0.1, 0.2)), calling("double", rows(0.3))]
        first, second = await behind_a_busy_device(worker, walk, calls)
    assert tensor(first.tensors["doubled"])[:, 0].tolist() == pytest.approx([0.2, 0.4])
    assert tensor(second.tensors["doubled"])[:, 0].tolist() == pytest.approx([0.6])
    assert len(first.before) == 2
    assert len(second.before) == 1


async def test_a_row_does_not_depend_on_its_batch_mates():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    walk = Walk()
    images = torch.rand(8, 1, 8, 8)

    async with serving(Double(), walk, model=classifier(net, (1, 8, 8))) as worker:
        alone = [await result(worker, calling("double", array(image[None]))) for image in images]
        walk.go.clear()
        one = calling("walk", array(images[:1]), params={"steps": 1})
        blocker = asyncio.create_task(result(worker, one))
        await until(lambda: bool(walk.log))
        tasks = [
            asyncio.create_task(result(worker, calling("double", array(image[None]))))
            for image in images
        ]
        await until(lambda: queued(worker) == 8)
        walk.go.set()
        merged = await asyncio.gather(*tasks)
        await blocker
    assert {item.provenance.batch_rows for item in merged} == {8}
    for one, other in zip(alone, merged, strict=True):
        assert other.before[0].logits == pytest.approx(one.before[0].logits, abs=1e-5)
        assert other.before[0].classes == one.before[0].classes


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"params": {"steps": 1}}, {"params": {"steps": 2}}),
        ({"targets": to_class(0)}, {"targets": (Target("neuron", (0,), "0"),)}),
        ({"targets": (Target("neuron", (0,)),)}, {"targets": (Target("neuron", (0,), "0"),)}),
    ],
    ids=["params", "target kind", "layer"],
)
async def test_unlike_calls_are_not_merged(first, second):
    walk = Walk()
    async with serving(walk) as worker:
        calls = [calling("walk", rows(0), **fields) for fields in (first, second)]
        await behind_a_busy_device(worker, walk, calls)
    assert walk.batches == [1, 1, 1]


async def test_calls_with_and_without_an_auxiliary_tensor_are_not_merged():
    walk = Walk()
    mask = {"mask": rows(1)}
    async with serving(Synthesis(), walk) as worker:
        calls = [
            calling("synthesis", rows(0), tensors=mask, targets=to_class(0)),
            calling("synthesis", rows(0), targets=to_class(0)),
            calling("synthesis", targets=to_class(0)),
            calling("synthesis", rows(0), targets=to_class(1)),
        ]
        results = await behind_a_busy_device(worker, walk, calls)
    assert [item.provenance.batch_rows for item in results] == [1, 2, 1, 2]


async def test_calls_on_different_models_are_not_merged():
    walk = Walk()
    async with serving(Double(), walk) as worker:
        worker.add("other", linear(2.0))
        calls = [calling("double", rows(0.5)), calling("double", rows(0.5), model="other")]
        results = await behind_a_busy_device(worker, walk, calls)
    assert [item.provenance.batch_rows for item in results] == [1, 1]
    assert [item.before[0].logits[0] for item in results] == [0.5, 1.0]


async def test_group_plugins_are_never_merged():
    shuffle, walk = Shuffle(), Walk()
    async with serving(shuffle, walk) as worker:
        calls = [calling("shuffle", rows(0.1, 0.2)), calling("shuffle", rows(0.3, 0.4))]
        await behind_a_busy_device(worker, walk, calls)
    assert shuffle.batches == [2, 2]


async def test_a_group_larger_than_the_batch_limit_is_refused():
    async with serving(Shuffle(), max_batch=2) as worker:
        with pytest.raises(InvalidRequest, match="at most 2 rows at once, not 3"):
            await result(worker, calling("shuffle", rows(0, 0, 0)))


@dataclass(frozen=True)
class Gathered:
    shares: Tensor = output("each row's share")
    total: Tensor = group_output("the sum of all rows")
    parts: Mapping[str, Tensor] = group_output("of the passes")


class Gather(Plugin[NoParams, Gathered]):
    """Reads all rows of a call, a few at a time."""

    name = "gather"
    kind = Kind.METRIC
    rows = Rows.COLLECTION

    def __init__(self, memory: int = 1000) -> None:
        self.memory, self.passes = memory, []

    def run(self, model: Classifier, batch: Batch, params: NoParams, job: Job) -> Gathered:
        parts = batch.inputs.split(job.max_rows)
        for step in job.track(len(parts)):
            self.passes.append(len(parts[step]))
            if len(parts[step]) > self.memory:
                raise torch.OutOfMemoryError("CUDA out of memory")
        total = batch.inputs.sum(0)
        return Gathered(batch.inputs / total, total, {"first": total[0], "sizes": total[:2]})


async def test_a_collection_of_many_rows_is_one_batch_that_the_plugin_takes_in_passes():
    gather, walk, model = Gather(), Walk(), linear()
    async with serving(gather, walk, model=model, max_batch=4) as worker:
        sizes = forwards(model)
        given = [rows(*(i / 10 for i in range(10))), rows(0.5)]
        calls = [calling("gather", item) for item in given]
        many, one = await behind_a_busy_device(worker, walk, calls)
    assert sorted(gather.passes) == [1, 2, 4, 4]
    assert max(sizes) <= 4  # predicting the classes that no caller named, too
    assert tensor(many.tensors["shares"]).shape == (10, 4)
    assert tensor(many.tensors["total"]).tolist() == pytest.approx([4.5, 5, 2.5, 0])
    assert tensor(many.tensors["parts.first"]).tolist() == pytest.approx(4.5)
    assert tensor(many.tensors["parts.sizes"]).tolist() == pytest.approx([4.5, 5])
    assert len(many.provenance.targets) == 10
    assert tensor(one.tensors["total"])[0] == 0.5


async def test_memory_that_runs_out_halves_the_passes_of_a_collection():
    gather = Gather(memory=2)
    async with serving(gather, max_batch=8) as worker:
        given = rows(*(i / 10 for i in range(10)))
        found = await result(worker, calling("gather", given, targets=to_class(0)))
        assert gather.passes == [8, 4, 2, 2, 2, 2, 2]
        assert tensor(found.tensors["total"])[0] == pytest.approx(4.5)
    gather = Gather(memory=0)
    async with serving(gather, max_batch=4) as worker:
        with pytest.raises(InterpretError, match="ran out of memory on 10 rows") as caught:
            await result(worker, calling("gather", given, targets=to_class(0)))
    assert gather.passes == [4, 2, 1]
    assert caught.value.reason == "OVERLOADED"


async def test_merged_batches_stop_at_the_limit():
    model, walk = linear(), Walk()
    async with serving(Double(), walk, model=model, max_batch=4) as worker:
        sizes = forwards(model)
        calls = [calling("double", rows(i / 10)) for i in range(10)]
        results = await behind_a_busy_device(worker, walk, calls)
    assert sizes == [4, 4, 2]
    assert [item.metrics["total"][0] for item in results] == pytest.approx(
        [i / 10 + 0.75 for i in range(10)]
    )


async def test_a_call_of_many_rows_runs_in_chunks_with_one_progress():
    walk = Walk()
    async with serving(walk, max_batch=4) as worker:
        steps = calling("walk", rows(*(i / 10 for i in range(10))), params={"steps": 3})
        seen = [event async for event in worker.run(steps)]
    assert walk.batches == [4, 4, 2]
    *progress, last = seen
    assert (progress[-1].done, progress[-1].total) == (9, 9)
    assert [item.done for item in progress] == sorted({item.done for item in progress})
    assert {item.total for item in progress} == {9}
    images = tensor(last.tensors["images"])
    assert images[:, 0].tolist() == pytest.approx([i / 10 + 3 for i in range(10)])
    assert last.provenance.batch_rows == 4


async def test_memory_that_runs_out_halves_the_chunk():
    sizes = []

    def hungry(model, batch, job):
        sizes.append(len(batch))
        job.warn(batch.inputs[:, 0] > 0.55, "large")
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch.inputs + 1

    async with serving(Act(hungry)) as worker:
        values = [i / 10 for i in range(8)]
        item = await result(worker, calling("act", rows(*values)))
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert tensor(item.tensors["images"])[:, 0].tolist() == pytest.approx([v + 1 for v in values])
    assert [(w.message, w.rows) for w in item.warnings] == [("large", (6, 7))]


async def test_memory_that_runs_out_halves_the_variants_of_a_row_that_share_a_pass():
    seen = []

    def variants(model, batch, job):
        together = max(1, job.max_rows // len(batch))
        seen.append((len(batch), together))
        if len(batch) * together > 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch.inputs + together

    async with serving(Act(variants), max_batch=64) as worker:
        one = await result(worker, calling("act", rows(0)))
        assert seen == [(1, 64), (1, 32), (1, 16), (1, 8)]
        assert tensor(one.tensors["images"])[0, 0] == 8
        await result(worker, calling("act", rows(0, 0, 0)))
        assert seen[4:] == [(3, 2)]
        seen.clear()
    async with serving(Act(variants), max_batch=64) as worker:
        await result(worker, calling("act", rows(0, 0, 0)))
        assert seen == [(3, 21), (3, 10), (3, 5), (3, 2)]


async def test_memory_that_one_row_exhausts_is_told_and_serving_goes_on():
    def hopeless(model, batch, job):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate")

    async with serving(Act(hopeless), Double()) as worker:
        with pytest.raises(Exception, match="act ran out of memory on 1 rows") as caught:
            await result(worker, calling("act", rows(0, 0)))
        assert caught.value.reason == "OVERLOADED"
        await result(worker, calling("double", rows(0)))


async def test_missing_targets_are_the_predicted_classes_also_beside_given_ones():
    walk = Walk()
    async with serving(Value(), walk) as worker:
        high = array([[0.0, 0.0, 0.9, 0.0]])
        calls = [calling("value", high), calling("value", high, targets=to_class(1))]
        predicted, given = await behind_a_busy_device(worker, walk, calls)
    assert tensor(predicted.tensors["value"]).tolist() == pytest.approx([0.9])
    assert predicted.provenance.targets == to_class(2)
    assert tensor(given.tensors["value"]).tolist() == [0.0]
    assert given.provenance.targets == to_class(1)
    assert {predicted.provenance.batch_rows, given.provenance.batch_rows} == {2}
