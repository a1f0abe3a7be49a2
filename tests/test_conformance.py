"""Every installed plugin keeps the contract, and the suite catches plugins that do not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import numpy
import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from interpret_server.errors import Cancelled
from interpret_server.models.relu_rules import ReluRule, relu_rule
from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Capability,
    Classifier,
    Inputs,
    InvalidRequest,
    Job,
    Kind,
    Params,
    Plugin,
    Rows,
    group_output,
    logits_before,
    metric,
    output,
)
from interpret_server.testing import ConformanceError, classifier, conformance
from interpret_server.testing.conformance import MakeTensors
from tests.plugins.attribution.transformers import IMAGE, vision

POINTS = sorted(entry_points(group="interpret_server.plugins"), key=lambda point: point.name)


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_installed_plugin_keeps_the_contract(point: EntryPoint) -> None:
    plugin: Plugin[Any, Any] = point.load()()
    suited = [attentive()] if point.name == "attention_rollout" else None
    conformance(plugin, params=few(plugin), models=suited, tensors=own_tensors(plugin))


def few(plugin: Plugin[Any, Any]) -> dict[str, Any]:
    """Parameters that spare time."""
    if plugin.name == "compare":
        return {"methods": ["saliency", "input_x_gradient"], "metrics": ["deletion"]}
    amounts = {"steps": 4, "masks": 4, "samples": 4, "permutations": 4, "queries": 40}
    fields = plugin.params_type.model_fields
    return {name: amount for name, amount in amounts.items() if name in fields}


def own_tensors(plugin: Plugin[Any, Any]) -> MakeTensors | None:
    """What makes the auxiliary tensors that are not just like inputs."""
    made: dict[str, MakeTensors] = {"mask": half_masks, "style": ramps}
    return next((made[name] for name in plugin.tensors if name in made), None)


def half_masks(model: Classifier, rows: int) -> dict[str, Tensor]:
    mask = torch.zeros_like(model.neutral(rows))
    mask.flatten(1)[:, ::2] = 1
    return {"mask": mask}


def ramps(model: Classifier, rows: int) -> dict[str, Tensor]:
    row = torch.linspace(0, 1, model.neutral(1).numel()).to(model.neutral(1))
    styles = row.view(1, 1, *model.input_shape).expand(rows, 2, *model.input_shape)
    return {"style": styles.clone()}


def attentive() -> Classifier:
    """A classifier of images with a class token and two layers of attention."""
    return classifier(vision(), IMAGE, name="attentive", input_layout="CHW")


def test_built_in_plugins_are_found() -> None:
    names = {point.name for point in POINTS}
    assert {"saliency", "guided_backprop", "deconvnet", "fgsm", "pgd"} <= names


class Settings(Params):
    steps: int = Field(3, ge=1, description="Steps.")


@dataclass(frozen=True)
class Answer:
    attributions: Tensor = output("The gradient.")
    size: Tensor = metric("Its norm.")
    logits: Tensor | None = logits_before()


class Good(Plugin[Settings, Answer]):
    """The gradient, averaged over noisy inputs."""

    name = "good"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT})

    def run(self, model: Classifier, batch: Batch, params: Settings, job: Job) -> Answer:
        total = torch.zeros_like(batch.inputs)
        for step in job.track(params.steps):
            total += self.step(model, batch, step)
        return self.answer(total / params.steps, model, batch)

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        return model.gradient(batch.inputs + 0.01 * batch.normal(step), batch.targets).inputs

    def answer(self, mean: Tensor, model: Classifier, batch: Batch) -> Answer:
        return Answer(mean, mean.flatten(1).norm(dim=1), model(batch.inputs).detach())


def test_a_good_plugin_passes() -> None:
    conformance(Good)
    conformance(Good())


class BatchNormalises(Good):
    """Bad."""

    def answer(self, mean: Tensor, model: Classifier, batch: Batch) -> Answer:
        return super().answer(mean / mean.abs().max(), model, batch)


class DependsOnOrder(Good):
    """Bad: the noise of a row comes from its place in the batch."""

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        place = torch.arange(len(batch)).reshape(-1, *[1] * (batch.inputs.dim() - 1))
        return model.gradient(batch.inputs + 0.1 * place, batch.targets).inputs


class SwallowsCancellation(Good):
    """Bad."""

    def run(self, model: Classifier, batch: Batch, params: Settings, job: Job) -> Answer:
        try:
            return super().run(model, batch, params, job)
        except Cancelled:
            return self.answer(torch.zeros_like(batch.inputs), model, batch)


class TranslatesCancellation(Good):
    """Bad."""

    def run(self, model: Classifier, batch: Batch, params: Settings, job: Job) -> Answer:
        try:
            return super().run(model, batch, params, job)
        except Cancelled as error:
            raise ValueError("no gradient") from error


class NeverTracks(Good):
    """Bad."""

    def run(self, model: Classifier, batch: Batch, params: Settings, job: Job) -> Answer:
        return super().run(model, batch, params, Job())


class TracksTwice(Good):
    """Bad."""

    def run(self, model: Classifier, batch: Batch, params: Settings, job: Job) -> Answer:
        super().run(model, batch, params, job)
        return super().run(model, batch, params, job)


def _nothing(*_: Any) -> None:
    pass


class LeavesHook(Good):
    """Bad."""

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        model.module.body.register_forward_hook(_nothing)
        return super().step(model, batch, step)


class HoldsHookAcrossSteps(Good):
    """Bad: and doubles every gradient that others take in the meantime."""

    def run(self, model: Classifier, batch: Batch, params: Settings, job: Job) -> Answer:
        hook = model.module.body.register_forward_hook(lambda module, inputs, output: output * 2)
        try:
            return super().run(model, batch, params, job)
        finally:
            hook.remove()


class LeavesHookWhenCancelled(Good):
    """Bad."""

    def run(self, model: Classifier, batch: Batch, params: Settings, job: Job) -> Answer:
        hook = nn.modules.module.register_module_forward_hook(_nothing)
        try:
            result = super().run(model, batch, params, job)
        except Cancelled:
            raise
        except BaseException:
            hook.remove()
            raise
        hook.remove()
        return result


class HoldsModeAcrossSteps(Good):
    """Bad."""

    def run(self, model: Classifier, batch: Batch, params: Settings, job: Job) -> Answer:
        with relu_rule(ReluRule.GUIDED):
            return super().run(model, batch, params, job)


class ChangesInputs(Good):
    """Bad."""

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        batch.inputs.add_(0.25)
        return super().step(model, batch, step)


class ChangesRequiresGrad(Good):
    """Bad."""

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        batch.inputs.requires_grad_()
        return super().step(model, batch, step).detach()


class ChangesParameters(Good):
    """Bad."""

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.mul_(1.01)
        return super().step(model, batch, step)


class Trains(Good):
    """Bad."""

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        model.module.train()
        return super().step(model, batch, step)


class DisablesGradients(Good):
    """Bad."""

    def answer(self, mean: Tensor, model: Classifier, batch: Batch) -> Answer:
        torch.set_grad_enabled(False)
        return super().answer(mean, model, batch)


class UnseededNoise(Good):
    """Bad."""

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        noisy = batch.inputs + 0.1 * torch.randn_like(batch.inputs)
        return model.gradient(noisy, batch.targets).inputs


class NumpyNoise(Good):
    """Bad."""

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        return super().step(model, batch, step) * float(numpy.random.rand())


class WrongRows(Good):
    """Bad."""

    def answer(self, mean: Tensor, model: Classifier, batch: Batch) -> Answer:
        return super().answer(mean.sum(0, keepdim=True), model, batch)


class WrongMetric(Good):
    """Bad."""

    def answer(self, mean: Tensor, model: Classifier, batch: Batch) -> Answer:
        return Answer(mean, mean, None)


class NotFinite(Good):
    """Bad."""

    def answer(self, mean: Tensor, model: Classifier, batch: Batch) -> Answer:
        return super().answer(mean / 0, model, batch)


class CarriesGradient(Good):
    """Bad."""

    def answer(self, mean: Tensor, model: Classifier, batch: Batch) -> Answer:
        return super().answer(mean.clone().requires_grad_(), model, batch)


class WrongResult(Good):
    """Bad."""

    def run(self, model: Classifier, batch: Batch, params: Settings, job: Job) -> Any:
        return {"attributions": super().run(model, batch, params, job).attributions}


class Fails(Good):
    """Bad."""

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        raise KeyError("missing")


class UndeclaredGradient(Good):
    """Bad."""

    requires = frozenset()


class UndeclaredBounds(Good):
    """Bad."""

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        return super().step(model, batch, step) * model.bounds.upper


class UndeclaredRectifiers(Good):
    """Bad."""

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        return model.gradient(batch.inputs, batch.targets, ReluRule.GUIDED).inputs


class ClassesOnly(Good):
    """Bad: it takes any target by its declaration."""

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        batch.targets.labels  # noqa: B018
        return super().step(model, batch, step)


class CrashesOnDirections(Good):
    """Bad."""

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        batch.targets.index[:, 0] + 1
        return super().step(model, batch, step)


class BadMask(Good):
    """Bad."""

    def run(self, model: Classifier, batch: Batch, params: Settings, job: Job) -> Answer:
        job.warn(torch.tensor([0]), "the first row is odd")
        return super().run(model, batch, params, job)


class BadPreview(Good):
    """Bad."""

    def run(self, model: Classifier, batch: Batch, params: Settings, job: Job) -> Answer:
        job.preview(image=batch.inputs.sum())
        return super().run(model, batch, params, job)


class NeedsInputs(Good):
    """Bad."""

    inputs = Inputs.OPTIONAL

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        if not batch.has_inputs:
            raise RuntimeError("no inputs")
        return super().step(model, batch, step)


MUTANTS: list[tuple[type[Good], str]] = [
    (BatchNormalises, "a row's result depends on the other rows of its batch: attributions"),
    (DependsOnOrder, "a row's result depends on the order of the rows: attributions"),
    (SwallowsCancellation, "goes on when job.track raises Cancelled"),
    (TranslatesCancellation, "turns a cancellation into ValueError: no gradient"),
    (NeverTracks, "never calls job.track"),
    (TracksTwice, "calls job.track several times in a row"),
    (LeavesHook, "leaves a hook on body"),
    (HoldsHookAcrossSteps, "keeps a hook on body from one step"),
    (HoldsHookAcrossSteps, "disturbs other callers"),
    (LeavesHookWhenCancelled, "leaves a hook on every module when it is cancelled"),
    (HoldsModeAcrossSteps, "keeps _RuleMode open from one step"),
    (ChangesInputs, "changes inputs"),
    (ChangesRequiresGrad, "leaves requires_grad of inputs changed"),
    (ChangesParameters, "changes the model's body."),
    (Trains, "leaves the training flag of the model changed"),
    (DisablesGradients, "leaves the grad mode changed"),
    (UnseededNoise, "draws from torch's global random generator"),
    (UnseededNoise, "two runs with the same seeds differ: attributions"),
    (NumpyNoise, "draws from numpy's global random generator"),
    (WrongRows, "the result's attributions has shape [1, "),
    (WrongMetric, "a metric is one number per row"),
    (NotFinite, "the result's attributions holds values that are not finite"),
    (CarriesGradient, "the result's attributions still carries a gradient"),
    (WrongResult, "returns dict, not Answer"),
    (Fails, "fails: KeyError: 'missing'"),
    (UndeclaredGradient, "needs a capability that it does not declare in `requires`"),
    (UndeclaredBounds, "the plugin does not require bounds"),
    (UndeclaredRectifiers, "the plugin does not require rectifiers"),
    (ClassesOnly, "refuses the neuron targets that it declares"),
    (CrashesOnDirections, "fails on a direction target: IndexError"),
    (BadMask, "warns with a mask that is not (N,) bool"),
    (BadPreview, "previews image without one row per input row"),
    (NeedsInputs, "fails without inputs: RuntimeError: no inputs"),
]


@pytest.mark.parametrize(
    ("mutant", "message"), MUTANTS, ids=lambda value: getattr(value, "__name__", None)
)
def test_the_suite_catches(mutant: type[Good], message: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        conformance(mutant)
    assert any(message in breach for breach in caught.value.breaches), caught.value
    torch.nn.modules.module._global_forward_hooks.clear()


class Undescribed(Params):
    steps: int = 3


@dataclass
class Plain:
    attributions: Tensor


def declared(**changes: Any) -> type[Good]:
    return type("Declared", (Good,), {"__doc__": "Fine.", **changes})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: declared(name="Not Fine"), "`name` must be lowercase"),
        (lambda: declared(kind="attribution"), "`kind` must be one of Kind"),
        (lambda: declared(api=2), "`api` is 2"),
        (lambda: declared(__doc__=""), "no docstring"),
        (lambda: declared(requires={"gradient"}), "`requires` must be a frozenset of Capability"),
        (lambda: declared(target_kinds=["class"]), "`target_kinds` must be a frozenset"),
        (lambda: declared(rows="independent rows"), "`rows` must be one of Rows"),
        (lambda: declared(inputs="yes"), "`inputs` must be one of Inputs"),
        (lambda: declared(tensors={"mask": AuxTensor("")}), "the auxiliary tensor mask"),
        (lambda: declared(params_type=Undescribed), "the parameter steps has no description"),
        (lambda: declared(params_type=dict), "the parameters must derive from Params"),
        (lambda: declared(result_type=Plain), "the result's dataclass must be frozen"),
        (lambda: declared(result_type=Plain), "the result's field attributions has no description"),
        (lambda: declared(result_type=Tensor), "the result must be a dataclass"),
    ],
)
def test_the_suite_reads_declarations(make: Callable[[], type[Good]], message: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        conformance(make())
    assert any(message in breach for breach in caught.value.breaches), caught.value


def test_parameters_that_are_not_valid_are_reported() -> None:
    with pytest.raises(ConformanceError, match="the parameters given to the suite are not valid"):
        conformance(Good, params={"steps": 0})


class Together(Good):
    """Rows that share one scale, as they may."""

    rows = Rows.GROUP

    def answer(self, mean: Tensor, model: Classifier, batch: Batch) -> Answer:
        return super().answer(mean / mean.abs().max(), model, batch)


def test_rows_of_a_group_may_depend_on_each_other() -> None:
    conformance(Together)


class Whole(Params):
    pass


@dataclass(frozen=True)
class Gathered:
    share: Tensor = metric("A row's share in the sum of all logits' sizes.")
    mean: Tensor = group_output("The mean logits.")


class Gathers(Plugin[Whole, Gathered]):
    """Reads all rows, a few at a time."""

    name = "gathers"
    kind = Kind.METRIC
    rows = Rows.COLLECTION

    def run(self, model: Classifier, batch: Batch, params: Whole, job: Job) -> Gathered:
        parts = batch.inputs.split(self.together(batch, job))
        found = [model(parts[step]).detach() for step in job.track(len(parts))]
        logits = torch.cat(found)
        sizes = logits.abs().sum(1)
        return self.answer(sizes / sizes.sum(), logits)

    def together(self, batch: Batch, job: Job) -> int:
        return job.max_rows

    def answer(self, share: Tensor, logits: Tensor) -> Gathered:
        return Gathered(share, logits.mean(0))


def test_a_collection_may_tell_of_all_rows_together() -> None:
    conformance(Gathers)


class TakesAllRows(Gathers):
    """Bad."""

    def together(self, batch: Batch, job: Job) -> int:
        return len(batch)


class DependsOnPasses(Gathers):
    """Bad: the mean of the means of passes."""

    def together(self, batch: Batch, job: Job) -> int:
        self.most = min(job.max_rows, len(batch))
        return self.most

    def answer(self, share: Tensor, logits: Tensor) -> Gathered:
        return Gathered(share, torch.stack([p.mean(0) for p in logits.split(self.most)]).mean(0))


class TellsOfOthers(Gathers):
    """Bad: there may be rows of other callers."""

    rows = Rows.INDEPENDENT


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (TakesAllRows, "takes 3 rows through the model at once where job.max_rows is 2"),
        (DependsOnPasses, "depends on how many rows go through the model at once: mean"),
        (TellsOfOthers, "the result's field mean is about all rows, and `rows` is INDEPENDENT"),
    ],
)
def test_a_collection_that_breaks_its_contract_is_reported(
    plugin: type[Plugin[Any, Any]], message: str
) -> None:
    with pytest.raises(ConformanceError) as caught:
        conformance(plugin)
    assert any(message in breach for breach in caught.value.breaches), caught.value


@dataclass(frozen=True)
class Named:
    parts: Mapping[str, Tensor] = output("By name.", like_input=False)


class GivesSeveral(Plugin[Whole, Named]):
    """Tensors whose names depend on the call."""

    name = "gives_several"
    kind = Kind.METRIC

    def run(self, model: Classifier, batch: Batch, params: Whole, job: Job) -> Named:
        for _ in job.track(1):
            logits = model(batch.inputs).detach()
        return Named({"logits": logits, "largest": self.largest(logits)})

    def largest(self, logits: Tensor) -> Tensor:
        return logits.amax(1)


class GivesSeveralWrongly(GivesSeveral):
    """Bad."""

    def largest(self, logits: Tensor) -> Tensor:
        return logits.max()[None]


def test_a_field_may_hold_several_tensors_by_name() -> None:
    conformance(GivesSeveral)
    with pytest.raises(ConformanceError, match=r"parts.largest has shape \[1\] for 3 rows"):
        conformance(GivesSeveralWrongly)


class Masked(Good):
    """The gradient under a mask."""

    tensors = {  # noqa: RUF012
        "mask": AuxTensor("What to keep.", required=True),
        "code": AuxTensor("A number per row.", like_input=False, required=True),
    }

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        code = batch.tensors["code"].reshape(-1, *[1] * (batch.inputs.dim() - 1))
        return super().step(model, batch, step) * batch.tensors["mask"] * code


def test_auxiliary_tensors_are_made_up_or_asked_for() -> None:
    with pytest.raises(ConformanceError, match="tensor code has a shape of its own"):
        conformance(Masked)
    conformance(Masked, tensors=lambda model, rows: {"code": torch.ones(rows, 1).to(model.dtype)})


class InputsOrBaseline(Good):
    """Needs one of two, and says so."""

    inputs = Inputs.OPTIONAL
    tensors = {"baseline": AuxTensor("Where to start.")}  # noqa: RUF012

    def step(self, model: Classifier, batch: Batch, step: int) -> Tensor:
        if not batch.has_inputs and "baseline" not in batch.tensors:
            raise InvalidRequest.field("inputs", "give inputs or the tensor baseline")
        return super().step(model, batch, step)


def test_a_plugin_may_want_an_auxiliary_tensor_in_place_of_inputs() -> None:
    conformance(InputsOrBaseline)


class ImagesOnly(Good):
    """Refuses what is no image of 16 pixels a side."""

    def check(self, model: Classifier, params: Settings) -> None:
        if model.input_shape[1:] != (16, 16):
            raise InvalidRequest.field("model", "an image of 16 pixels is needed")


def test_a_plugin_that_suits_none_of_the_models_is_given_its_own() -> None:
    with pytest.raises(ConformanceError, match="an image of 16 pixels is needed"):
        conformance(ImagesOnly)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(392, 3))
    conformance(ImagesOnly, models=[classifier(network, (1, 16, 16))])


def test_the_suite_leaves_the_callers_random_state_alone() -> None:
    before = torch.get_rng_state()
    conformance(Good)
    assert torch.equal(before, torch.get_rng_state())
