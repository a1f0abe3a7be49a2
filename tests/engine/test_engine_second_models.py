"""Calls that name a second model, in one worker."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from agreement import Agreement, AgreementParams, AgreementResult
from engine_fakes import (
    Double,
    Loader,
    NoParams,
    array,
    calling,
    linear,
    result,
    rows,
    serving,
    tensor,
    until,
)
from pydantic import Field
from torch import Tensor, nn

from interpret_server.engine.local import LocalWorker
from interpret_server.errors import (
    FailedPrecondition,
    InvalidRequest,
    MissingCapability,
    NotFound,
)
from interpret_server.models.classifier import Capability, Classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets
from interpret_server.plugin import (
    Batch,
    Job,
    Kind,
    Method,
    ModelOutput,
    ModelRole,
    Params,
    Plugin,
    Rows,
    metric,
    output,
)
from interpret_server.registry import PluginLoadError, Registry
from interpret_server.testing import ConformanceError, classifier, conformance


def agreement(inputs=None, *, judge="judge", **fields):
    models = {"judge": judge} if judge else {}
    return calling(
        "agreement",
        rows(1.0) if inputs is None else inputs,
        models=models | fields.pop("also", {}),
        **fields,
    )


def another(shape=(4,), **options):
    module = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 3, bias=False))
    with torch.no_grad():
        module[1].weight.copy_(torch.eye(3).roll(1, 0) @ torch.eye(3, module[1].in_features))
    return classifier(module, shape, **options)


async def refusal(worker: LocalWorker, call, error=InvalidRequest):
    with pytest.raises(error) as caught:
        await result(worker, call)
    return caught.value


async def test_both_models_answer_and_are_told():
    async with serving(Agreement()) as worker:
        worker.add("judge", another())
        worker.add("twin", linear(2.0))
        info = replace(worker.models()[1], sha256="f" * 64, version="7")
        worker._served["judge"].info = info
        there = await result(worker, agreement())
        assert there.metrics["agrees"] == (0.0,)
        (second,) = there.provenance.models
        assert (second.role, second.model, second.model_version) == ("judge", info.name, "7")
        assert second.model_sha256 == "f" * 64
        assert (await result(worker, agreement(judge="twin"))).metrics["agrees"] == (1.0,)
        assert (await result(worker, agreement(judge="net"))).metrics["agrees"] == (1.0,)


async def test_roles_are_described():
    async with serving(Agreement()) as worker:
        (info,) = worker.plugins()
        judge, witness, stranger = info.models
        assert (judge.name, judge.required, judge.same_inputs) == ("judge", True, True)
        assert witness.requires == {"gradient"}
        assert not stranger.same_inputs
        assert judge.description == "What the first model is compared with."


async def test_what_does_not_suit_a_role_is_refused_by_its_name():
    async with serving(Agreement(), Double()) as worker:
        worker.add("judge", another())
        blind = another()
        blind.withhold(Capability.GRADIENT, "it has no derivative")
        worker.add("blind", blind)
        worker.add("wide", another((5,)))
        worker.add("signed", another(bounds=(-1, 1)))
        worker.add("double", another().to(torch.device("cpu")))
        worker._served["double"].info = replace(worker._served["double"].info, precision="float64")

        unknown = await refusal(worker, agreement(also={"jugde": "judge"}))
        assert unknown.violations[0].field == "models.jugde"
        assert "did you mean judge?" in unknown.message
        missing = await refusal(worker, agreement(judge=""))
        assert missing.violations[0].field == "models.judge"
        none = await refusal(worker, calling("double", rows(1.0), models={"judge": "judge"}))
        assert "it has none" in none.message
        nobody = await refusal(worker, agreement(judge="nobody"), NotFound)
        assert nobody.message.startswith("models.judge: there is no model 'nobody'")
        lacking = await refusal(worker, agreement(also={"witness": "blind"}), MissingCapability)
        assert lacking.message.startswith("models.witness: agreement requires gradient")
        assert lacking.violations[0].field == "models.witness"
        assert "it has no derivative" in lacking.message
        for name, why in {
            "wide": "wide takes rows of shape [5], not [4]",
            "signed": "signed has bounds [-1, 1], not bounds [0, 1]",
            "double": "double takes float64, not float32",
        }.items():
            wrong = await refusal(worker, agreement(judge=name))
            assert wrong.violations[0].field == "models.judge"
            assert why in wrong.message


async def test_a_role_of_its_own_inputs_takes_any_model():
    async with serving(Agreement()) as worker:
        worker.add("judge", another())
        worker.add("wide", another((5,), bounds=(-4, 0)))
        there = await result(worker, agreement(also={"stranger": "wide"}))
        assert there.metrics["size"] == (-6.0,)  # three logits of -2, the middle of its bounds
        assert [item.role for item in there.provenance.models] == ["judge", "stranger"]


@dataclass(frozen=True)
class PriorResult:
    density: Tensor = metric("Of the inputs.")
    scores: Tensor = output("Of the inputs.")


class Prior(Plugin[NoParams, PriorResult]):
    """Asks networks that are no classifiers."""

    name = "prior"
    kind = Kind.METRIC
    target_kinds = frozenset()
    models: ClassVar = {
        "density": ModelRole("log p(x).", required=True, output=ModelOutput.NUMBER),
        "score": ModelRole("Its gradient.", required=True, output=ModelOutput.LIKE_INPUT),
    }

    def run(self, model, batch, params, job):
        with torch.no_grad():
            for _ in job.track(1):
                density = job.model("density")(batch.inputs)[:, 0]
                scores = job.model("score")(batch.inputs).reshape(batch.inputs.shape)
        return PriorResult(density, scores)


class Squares(nn.Module):
    def forward(self, x):
        return -0.5 * (x * x).sum(1)


class Negative(nn.Module):
    def forward(self, x):
        return -x


async def test_networks_that_are_no_classifiers_fill_the_roles_that_want_them():
    async with serving(Prior(), Agreement()) as worker:
        worker.add("judge", another())
        worker.add("density", classifier(Squares(), (4,), values=True))
        worker.add("score", classifier(Negative(), (4,), values=True))
        models = {"density": "density", "score": "score"}
        x = [[0.5, 0.25, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
        answer = await result(worker, calling("prior", array(x), models=models))
        assert answer.metrics["density"] == (-0.65625, -2.0)
        torch.testing.assert_close(tensor(answer.tensors["scores"]), -torch.tensor(x))
        call = calling("prior", rows(1.0), models=models)
        for role, name, why in (
            ("density", "score", "gives one number for each row, and score does not"),
            ("density", "judge", "gives one number for each row, and judge does not"),
            ("score", "density", "as many values as it takes, and density does not"),
            ("score", "net", "as many values as it takes, and net does not"),
        ):
            refused = await refusal(worker, replace(call, models={**models, role: name}))
            assert refused.violations[0].field == f"models.{role}"
            assert why in refused.message
        refused = await refusal(worker, agreement(judge="score"))
        assert "needs a classifier; score gives values" in refused.message


async def test_a_free_size_is_compared_with_the_rows_that_were_sent():
    async with serving(Agreement()) as worker:
        worker.add("free", another())
        worker._served["free"].classifier.input_sizes = (None,)
        first = worker._served["net"]
        first.classifier.input_sizes = (None,)
        first.info = replace(
            first.info,
            input_shape=(-1,),
            inputs=(replace(first.info.inputs[0], shape=(-1,)),),
        )
        worker.add("fixed", another())
        five = await refusal(worker, agreement(array([[0.5] * 5]), judge="fixed"))
        assert "models.judge: fixed does not take rows of shape [5]" in five.message
        assert (await result(worker, agreement(judge="fixed"))).metrics["agrees"] == (0.0,)


async def test_calls_with_equal_seconds_share_a_batch_and_others_do_not():
    class Walking(Agreement):
        """Notes its batches."""

        def run(self, model, batch, params, job):
            batches.append((len(batch), id(job.models["judge"])))
            return super().run(model, batch, params, job)

    batches: list[tuple[int, int]] = []
    async with serving(Walking()) as worker:
        worker.add("judge", another())
        worker.add("twin", linear(2.0))
        slow = {"steps": 30, "seconds": 0.01}
        running = asyncio.create_task(result(worker, agreement(params=slow)))
        await until(lambda: bool(batches))
        calls = [agreement(rows(0.1 * i), judge=j) for i in (1, 2) for j in ("judge", "twin")]
        await asyncio.gather(running, *(result(worker, call) for call in calls))
    assert sorted(size for size, _ in batches) == [1, 2, 2]
    assert len({judge for size, judge in batches if size == 2}) == 2


async def test_a_batch_fits_the_smallest_of_the_models():
    class Together(Agreement):
        """Its rows are one group."""

        rows = Rows.GROUP

    sizes = []

    class Sizes(Agreement):
        """Notes its batches."""

        name = "sizes"

        def run(self, model, batch, params, job):
            sizes.append((len(batch), job.max_rows))
            return super().run(model, batch, params, job)

    async with serving(Together(), Sizes()) as worker:
        worker.add("judge", another())
        worker._served["judge"].info = replace(worker._served["judge"].info, max_batch=2)
        refused = await refusal(worker, agreement(rows(0.1, 0.2, 0.3)))
        assert "judge takes at most 2 rows" in refused.message
        await result(worker, replace(agreement(rows(0.1, 0.2, 0.3)), plugin="sizes"))
        assert sizes == [(2, 2), (1, 2)]


async def test_a_call_keeps_the_second_model_that_it_began_with():
    # Made here: no module may be called while torch.fx traces another in some other thread.
    one, two = linear(1.0), linear(2.0)
    loader = Loader({"one": lambda: one, "two": lambda: two})
    async with serving(Agreement(), loader=loader) as worker:
        await worker.load("judge", Path("one"), Manifest())
        slow = agreement(params={"steps": 40, "seconds": 0.01})
        running = asyncio.create_task(result(worker, slow))
        await until(lambda: worker._served["judge"].users.count == 1)
        assert worker._served["net"].users.count == 1
        await worker.load("judge", Path("two"), Manifest(), replace=True)
        new = await result(worker, agreement())
        old = await running
        assert old.provenance.models[0].model_sha256 == "one"
        assert new.provenance.models[0].model_sha256 == "two"
        assert first(new) == 2 * first(old)
        leaving = asyncio.create_task(result(worker, slow))
        await until(lambda: worker._served["judge"].users.count == 1)
        await worker.unload("judge")
        assert leaving.done()


def first(answer):
    return tensor(answer.tensors["theirs"])[0, 0].item()


async def test_a_second_model_that_fails_is_blamed():
    class Broken(Classifier):
        def __call__(self, x):
            return x @ torch.zeros(7, 3)

    async with serving(Agreement()) as worker:
        broken = another()
        broken.__class__ = Broken
        worker.add("judge", broken)
        refused = await refusal(worker, agreement(), FailedPrecondition)
        assert refused.message.startswith("models.judge: the network of ")
        assert "does not run on these rows" in refused.message


class HandParams(Params):
    method: Method = Field(Method(plugin="agreement"), description="What is handed the judge.")


class Hand(Plugin[HandParams, AgreementResult]):
    """Hands its second models on to a second plugin."""

    name = "hand"
    kind = Kind.METRIC
    target_kinds = frozenset()
    uses: ClassVar = {"method": Kind.METRIC}
    models: ClassVar = {"judge": ModelRole("Handed on."), "witness": ModelRole("Handed on.")}

    def run(self, model, batch, params, job):
        for _ in job.track(1):
            found = job.plugin(params.method).run(model, batch)
        return found


async def test_second_plugins_are_given_the_second_models_of_the_first():
    class Blunt(Hand):
        """Hands nothing on."""

        name = "blunt"
        models: ClassVar = {}

    async with serving(Agreement(), Hand(), Blunt()) as worker:
        worker.add("judge", another())
        blind = another()
        blind.withhold(Capability.GRADIENT, "it has no derivative")
        worker.add("blind", blind)
        there = await result(worker, replace(agreement(), plugin="hand"))
        assert there.metrics["agrees"] == (0.0,)
        for name, why in {"hand": "was not given", "blunt": "blunt does not hand on"}.items():
            refused = await refusal(worker, calling(name, rows(1.0)))
            assert refused.violations[0].field == "params.method.plugin"
            assert f"agreement needs a second model 'judge', which {why}" in refused.message
        call = replace(agreement(also={"witness": "blind"}), plugin="hand")
        lacking = await refusal(worker, call, MissingCapability)
        assert lacking.message == "models.witness: agreement requires gradient of it"


def test_an_inert_job_has_no_models_but_those_it_is_given():
    model, judge = linear(), another()
    batch = Batch(torch.rand(2, 4), Targets.none(2), (0, 1))
    with pytest.raises(InvalidRequest, match=r"models\.judge: name a loaded model"):
        Agreement().run(model, batch, AgreementParams(), Job())
    found = Agreement().run(model, batch, AgreementParams(), Job({"judge": judge}))
    torch.testing.assert_close(found.theirs, judge(batch.inputs).detach())


def test_the_conformance_suite_fills_the_roles_that_must_be():
    conformance(Agreement)
    conformance(Prior)

    class Silent(Agreement):
        """Describes nothing."""

        models = {"judge": ModelRole("")}  # noqa: RUF012

    with pytest.raises(ConformanceError, match="the second model judge must be a ModelRole"):
        conformance(Silent)


def test_only_roles_are_declared():
    class Wrong(Agreement):
        """Declares something else."""

        models = {"judge": "a model"}  # noqa: RUF012

    with pytest.raises(PluginLoadError, match="declares `models` that are not ModelRole"):
        Registry().add(Wrong, "tests")
