"""Plugins that use a second plugin, named in their parameters."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from engine_fakes import array, calling, classifier, events, linear, result, rows, serving, tensor
from pydantic import Field
from torch import Tensor, nn

from interpret_server.bound import BoundPlugin
from interpret_server.engine.api import Progress, Target
from interpret_server.engine.local import LocalWorker
from interpret_server.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    MissingCapability,
)
from interpret_server.models.classifier import Capability, Classifier
from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Job,
    Kind,
    Method,
    ModelRole,
    Params,
    Plugin,
    Rows,
    TargetKind,
    Targets,
    output,
)
from interpret_server.registry import PluginLoadError, Registry


class ScaleParams(Params):
    factor: float = Field(2.0, ge=0, le=10)
    steps: int = Field(3, ge=1)


@dataclass(frozen=True)
class Maps:
    attributions: Tensor = output("maps")


class Scale(Plugin[ScaleParams, Maps]):
    """The inputs times a factor."""

    name = "scale"
    kind = Kind.ATTRIBUTION
    tensors: ClassVar[Mapping[str, AuxTensor]] = {"weights": AuxTensor("weights")}

    def check(self, model: Classifier, params: ScaleParams) -> None:
        if params.factor == 7:
            raise InvalidRequest.field("params.factor", "seven is refused")
        if params.factor == 8:
            raise FailedPrecondition("eight cannot be done")

    def run(self, model: Classifier, batch: Batch, params: ScaleParams, job: Job) -> Maps:
        for _ in job.track(params.steps):
            job.preview(attributions=batch.inputs)
        if params.factor == 9:
            raise InvalidRequest.field("params.factor", "nine fails late")
        job.warn(batch.inputs[:, 0] == 0, "the first value is zero")
        weights = batch.tensors.get("weights", torch.ones_like(batch.inputs))
        return Maps(batch.inputs * params.factor * weights)


class ClassesOnly(Scale):
    """Takes classes."""

    name = "classes_only"
    target_kinds = frozenset({TargetKind.CLASS})


class Deep(Scale):
    """Needs what the model may lack."""

    name = "deep"
    requires = frozenset({Capability.BOUNDS})


class Together(Scale):
    """A group."""

    name = "together"
    rows = Rows.GROUP


class Masked(Scale):
    """Needs a mask."""

    name = "masked"
    tensors: ClassVar[Mapping[str, AuxTensor]] = {"mask": AuxTensor("mask", required=True)}


class JudgeParams(Params):
    method: Method = Method(plugin="scale")
    others: tuple[Method, ...] = ()
    spare: Method | None = None
    copies: int = 1
    warn: bool = False


class Judge(Plugin[JudgeParams, Maps]):
    """Runs a second plugin on copies of the rows."""

    name = "judge"
    kind = Kind.METRIC
    tensors: ClassVar[Mapping[str, AuxTensor]] = {"weights": AuxTensor("weights")}
    uses: ClassVar[Mapping[str, Kind]] = {
        "method": Kind.ATTRIBUTION,
        "others": Kind.ATTRIBUTION,
        "spare": Kind.ATTRIBUTION,
    }

    def run(self, model: Classifier, batch: Batch, params: JudgeParams, job: Job) -> Maps:
        total = torch.zeros_like(batch.inputs)
        for _ in job.track(2):
            pass
        method = job.plugin(params.method)
        more = Batch(
            batch.inputs.repeat(params.copies, 1),
            batch.targets.take(torch.arange(len(batch)).repeat(params.copies)),
            batch.seeds * params.copies,
            {name: item.repeat(params.copies, 1) for name, item in batch.tensors.items()},
        )
        for _ in job.track(1):
            found = method.run(model, more, warn=params.warn).attributions
            total = found.unflatten(0, (params.copies, -1)).sum(0)
            for other in params.others:
                total = total + job.plugin(other).run(model, batch).attributions
        return Maps(total)


class Outer(Plugin[JudgeParams, Maps]):
    """Uses a plugin that uses a plugin."""

    name = "outer"
    kind = Kind.METRIC
    tensors: ClassVar[Mapping[str, AuxTensor]] = {"mask": AuxTensor("mask")}
    uses: ClassVar[Mapping[str, Kind]] = {
        "method": Kind.METRIC,
        "others": Kind.ATTRIBUTION,
        "spare": Kind.METRIC,
    }

    def run(self, model: Classifier, batch: Batch, params: JudgeParams, job: Job) -> Maps:
        for _ in job.track(1):
            found: Maps = job.plugin(params.method).run(model, batch)
        return found


@asynccontextmanager
async def judging(model: Classifier | None = None) -> AsyncIterator[LocalWorker]:
    plugins = (Judge(), Outer(), Scale(), ClassesOnly(), Deep(), Together(), Masked())
    async with serving(*plugins, model=model) as worker:
        yield worker


def params(**given: Any) -> dict[str, Any]:
    return {"params": given}


async def test_a_second_plugin_runs_with_its_own_parameters() -> None:
    async with judging() as worker:
        method = {"plugin": "scale", "params": {"factor": 3}}
        found = await result(worker, calling("judge", rows(1.0, 0.5), **params(method=method)))
        expected = tensor(rows(1.0, 0.5)) * 3
        assert torch.equal(tensor(found.tensors["attributions"]), expected)


async def test_its_name_alone_stands_for_its_defaults_which_are_recorded() -> None:
    async with judging() as worker:
        short = await result(worker, calling("judge", rows(1.0), **params(method="scale")))
        assert json.loads(short.provenance.params)["method"] == {
            "plugin": "scale",
            "params": {"factor": 2.0, "steps": 3},
        }
        default = await result(worker, calling("judge", rows(1.0)))
        assert default.provenance.params == short.provenance.params


async def test_lists_of_second_plugins() -> None:
    async with judging() as worker:
        others = ["scale", {"plugin": "classes_only", "params": {"factor": 5}}]
        found = await result(worker, calling("judge", rows(1.0), **params(others=others)))
        assert torch.equal(tensor(found.tensors["attributions"]), tensor(rows(1.0)) * (2 + 2 + 5))
        recorded = json.loads(found.provenance.params)["others"]
        assert [item["params"]["factor"] for item in recorded] == [2.0, 5.0]


async def test_a_plugin_may_use_one_that_uses_another() -> None:
    async with judging() as worker:
        method = {"plugin": "judge", "params": {"method": {"plugin": "scale"}, "copies": 2}}
        call = calling("outer", rows(1.0), **params(method=method))
        found = await result(worker, call)
        assert torch.equal(tensor(found.tensors["attributions"]), tensor(rows(1.0)) * 4)
        recorded = json.loads(found.provenance.params)["method"]["params"]["method"]
        assert recorded == {"plugin": "scale", "params": {"factor": 2.0, "steps": 3}}


@pytest.mark.parametrize(
    ("method", "field", "told"),
    [
        ("scal", "params.method.plugin", "there is no plugin 'scal'; did you mean scale"),
        ("judge", "params.method.plugin", "judge is of kind metric, where judge takes one of"),
        ({"plugin": "scale", "params": {"steps": 0}}, "params.method.params.steps", "greater"),
        ({"plugin": "scale", "params": {"stops": 1}}, "params.method.params.stops", "mean steps"),
        ({"plugin": "scale", "params": {"factor": 7}}, "params.method.params.factor", "seven"),
        ({"plugin": "scale", "params": {"factor": 9}}, "params.method.params.factor", "nine fails"),
        ("together", "params.method.plugin", "as one group, which judge does not"),
        ("masked", "params.method.plugin", "auxiliary tensor 'mask', which judge does not hand on"),
        ({"plugin": "scale", "parms": {}}, "params.method.parms", "no such parameter"),
    ],
)
async def test_what_is_wrong_with_a_second_plugin_is_told_by_its_field(
    method: Any, field: str, told: str
) -> None:
    async with judging() as worker:
        with pytest.raises(InvalidRequest) as caught:
            await result(worker, calling("judge", rows(1.0), **params(method=method)))
        (violation,) = caught.value.violations
        assert violation.field == field
        assert told in violation.description
        assert caught.value.message == f"{field}: {violation.description}"


async def test_places_in_lists_and_deeper_ones_are_told_too() -> None:
    async with judging() as worker:
        with pytest.raises(InvalidRequest, match=r"^params\.others\.1\.plugin: there is no"):
            await result(worker, calling("judge", rows(1.0), **params(others=["scale", "x"])))
        deep = {
            "plugin": "judge",
            "params": {"method": {"plugin": "scale", "params": {"steps": 0}}},
        }
        with pytest.raises(
            InvalidRequest, match=r"^params\.method\.params\.method\.params\.steps: input should"
        ):
            await result(worker, calling("outer", rows(1.0), **params(method=deep)))
        with pytest.raises(
            InvalidRequest, match=r"^params\.method\.plugin: outer cannot use itself"
        ):
            await result(worker, calling("outer", rows(1.0), **params(method="outer")))


async def test_a_second_plugin_that_the_model_is_not_fit_for_is_refused() -> None:
    unbounded = classifier(nn.Sequential(nn.Linear(4, 3)), (4,), bounds=None)
    async with judging(unbounded) as worker:
        call = calling("judge", rows(1.0), **params(method="deep"))
        with pytest.raises(
            MissingCapability, match=r"^params\.method\.plugin: deep requires bounds"
        ) as caught:
            await result(worker, call)
        assert caught.value.violations[0].field == "params.method.plugin"
    async with judging() as worker:
        eight = {"plugin": "scale", "params": {"factor": 8}}
        with pytest.raises(FailedPrecondition, match=r"^params\.method\.plugin: eight cannot"):
            await result(worker, calling("judge", rows(1.0), **params(method=eight)))


async def test_a_target_that_the_second_plugin_does_not_take_is_refused() -> None:
    async with judging() as worker:
        target = (Target("neuron", (0,), "0"),)
        call = calling("judge", rows(1.0), targets=target, **params(method="classes_only"))
        with pytest.raises(InvalidRequest, match="target: classes_only takes no neuron target"):
            await result(worker, call)


async def test_a_required_tensor_may_come_from_a_plugin_that_declares_it() -> None:
    async with judging() as worker:
        call = calling("outer", rows(1.0), **params(method="judge", others=["masked"]))
        with pytest.raises(InvalidRequest, match=r"params\.others\.0\.plugin: .*was not given"):
            await result(worker, call)
        mask = {"mask": rows(1.0)}
        await result(
            worker,
            calling("outer", rows(1.0), tensors=mask, **params(method="judge", others=["masked"])),
        )


async def test_declared_tensors_of_the_batch_reach_the_second_plugin() -> None:
    async with judging() as worker:
        weights = array([[3.0] * 4])
        found = await result(worker, calling("judge", rows(1.0), tensors={"weights": weights}))
        assert torch.equal(tensor(found.tensors["attributions"]), tensor(rows(1.0)) * 6)


async def test_steps_of_a_second_plugin_are_not_counted() -> None:
    async with judging() as worker:
        call = calling("judge", rows(1.0), previews=True)
        seen = await events(worker, call)
        totals = {event.total for event in seen if isinstance(event, Progress)}
        assert totals <= {2, 3}
        assert all(isinstance(event, Progress) for event in seen[:-1])  # no previews


async def test_warnings_of_a_second_plugin_are_handed_on_where_asked_for() -> None:
    async with judging() as worker:
        quiet = await result(worker, calling("judge", rows(0.0, 1.0), **params(copies=3)))
        assert quiet.warnings == ()
        told = await result(worker, calling("judge", rows(1.0, 0.0), **params(warn=True)))
        assert [(item.message, item.rows) for item in told.warnings] == [
            ("scale: the first value is zero", (1,))
        ]


async def test_calls_with_other_methods_are_not_merged() -> None:
    async with judging() as worker:
        calls = [
            calling(
                "judge", rows(1.0), **params(method={"plugin": "scale", "params": {"factor": n}})
            )
            for n in (2, 3, 2)
        ]
        found = await asyncio.gather(*(result(worker, call) for call in calls))
        factors = [float(tensor(item.tensors["attributions"])[0, 0]) for item in found]
        assert factors == [2.0, 3.0, 2.0]


async def test_a_deadline_stops_a_second_plugin() -> None:
    async with judging() as worker:
        endless = {"plugin": "scale", "params": {"steps": 1_000_000_000}}
        with pytest.raises(DeadlineExceeded):
            await result(worker, calling("judge", rows(1.0), timeout=0.2, **params(method=endless)))
        await result(worker, calling("judge", rows(1.0)))  # the device is free again


def test_an_inert_job_runs_installed_plugins() -> None:
    batch = Batch(torch.rand(2, 4), Targets.classes(torch.tensor([0, 1])), (1, 2))
    model = linear(2.0)
    bound = Job().plugin(Method(plugin="saliency", params={"absolute": False}))
    assert not bound.params.absolute
    found = bound.run(model, batch, warn=True).attributions
    assert torch.equal(found, torch.eye(3, 4)[:2] * 2)
    with pytest.raises(InvalidRequest, match=r"params\.method\.params"):
        Job().plugin(Method(plugin="saliency", params={"absolut": False}))


def test_cancellation_passes_through_a_second_plugin() -> None:
    class Stopping(Job):
        def track(self, total: int) -> Any:
            yield 0
            raise Cancelled("stop")

    bound = Stopping().plugin(Method(plugin="saliency"))
    batch = Batch(torch.rand(1, 4), Targets.classes(torch.tensor([0])), (1,))
    with pytest.raises(Cancelled):
        bound.run(linear(), batch)


def test_the_schema_tells_the_kind_and_takes_a_name_alone() -> None:
    from interpret_server.engine.describe import describe_plugin

    registry = Registry()
    registry.add(Judge(), "tests")
    schema = describe_plugin(next(iter(registry))).schema
    assert schema["properties"]["method"]["x-plugin-kind"] == "attribution"
    types = {item["type"] for item in schema["$defs"]["Method"]["anyOf"]}
    assert types == {"string", "object"}


def test_a_plugin_must_say_what_it_uses() -> None:
    class Silent(Judge):
        """Says nothing."""

        name = "silent"
        uses: ClassVar[Mapping[str, Kind]] = {"method": Kind.ATTRIBUTION}

    with pytest.raises(PluginLoadError, match=r"`uses` a Kind for each .*: method, others, spare"):
        Registry().add(Silent(), "tests")


class Elsewhere(Judge):
    """Runs its methods on a second model."""

    name = "elsewhere"
    models: ClassVar[Mapping[str, ModelRole]] = {
        "other": ModelRole("other", required=True, same_inputs=False)
    }
    runs_on: ClassVar[Mapping[str, str]] = {"method": "other", "others": "other"}


async def test_a_method_that_runs_on_a_second_model_is_checked_against_it() -> None:
    blind = linear()
    blind.withhold(Capability.BOUNDS, "nobody told")
    async with serving(Elsewhere(), Scale(), Deep(), model=blind) as worker:
        worker.add("whole", linear())
        for names in ({"method": "deep"}, {"others": ["deep"]}):
            call = calling("elsewhere", rows(1.0), models={"other": "whole"}, **params(**names))
            await result(worker, call)
            call = calling("elsewhere", rows(1.0), models={"other": "net"}, **params(**names))
            with pytest.raises(MissingCapability, match="deep requires bounds: nobody told"):
                await result(worker, call)
        call = calling("elsewhere", rows(1.0), models={"other": "whole"}, **params(spare="deep"))
        with pytest.raises(MissingCapability, match=r"params\.spare"):
            await result(worker, call)


@pytest.mark.parametrize("runs_on", [{"copies": "other"}, {"method": "nobody"}])
def test_what_runs_on_a_second_model_is_a_method_and_has_a_role(runs_on: dict[str, str]) -> None:
    wrong = type("Wrong", (Elsewhere,), {"__doc__": "Wrong.", "name": "wrong", "runs_on": runs_on})
    with pytest.raises(PluginLoadError, match="`runs_on`"):
        Registry().add(wrong(), "tests")


def test_warnings_about_some_rows_are_told_of_those() -> None:
    class Heard(Job):
        def __init__(self) -> None:
            self.heard: list[tuple[list[bool], str]] = []

        def warn(self, rows: Tensor, message: str) -> None:
            self.heard.append((rows.tolist(), message))

    job = Heard()
    bound = BoundPlugin(Scale(), ScaleParams(), job, "params.method")
    x = torch.tensor([[0.0, 1, 1, 1], [1, 1, 1, 1]])
    mask = torch.tensor([False, True, True])
    bound.run(linear(), Batch(x, Targets.none(2), (0, 1)), warn=mask)
    assert job.heard == [([False, True, False], "scale: the first value is zero")]
