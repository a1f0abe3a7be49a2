"""What an author of plugins may rely on."""

from dataclasses import dataclass

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import interpret_server.plugin as contract
from interpret_server.errors import InvalidRequest
from interpret_server.plugin import (
    Batch,
    Inputs,
    Job,
    Kind,
    Method,
    Params,
    Plugin,
    Role,
    Rows,
    TargetKind,
    Targets,
    logits_after,
    logits_before,
    metric,
    output,
    result_fields,
    result_tensors,
)


class SomeParams(Params):
    steps: int = 3


@dataclass(frozen=True)
class SomeResult:
    images: Tensor = output("what was made")
    energy: Tensor = metric("how much it took")
    before: Tensor = logits_before()
    after: Tensor | None = logits_after()
    note: str = ""


class Some(Plugin[SomeParams, SomeResult]):
    """Something."""

    name = "some"
    kind = Kind.SYNTHESIS

    def run(self, model, batch, params, job):
        steps = list(job.track(params.steps))
        job.preview(images=batch.inputs)
        job.warn(torch.tensor([True]), "a warning")
        return SomeResult(
            batch.inputs + len(steps), torch.zeros(1), torch.zeros(1, 3), None, "no tensor"
        )


class Derived(Some):
    """Something else."""


class Narrowed(Plugin[SomeParams, SomeResult]):
    """Takes classes only."""

    target_kinds = frozenset({TargetKind.CLASS})

    def run(self, model, batch, params, job):
        return SomeResult(batch.inputs, batch.inputs, batch.inputs)


def batch(rows: int = 1) -> Batch:
    return Batch(torch.zeros(rows, 2), Targets.none(rows), tuple(range(rows)))


def test_the_public_names_all_exist():
    assert all(hasattr(contract, name) for name in contract.__all__)
    assert contract.__all__ == sorted(contract.__all__)


def test_a_plugin_knows_its_parameters_and_its_result():
    assert (Some.params_type, Some.result_type) == (SomeParams, SomeResult)
    assert (Derived.params_type, Derived.result_type) == (SomeParams, SomeResult)


def test_the_defaults_are_independent_rows_inputs_and_any_target():
    assert Some.rows is Rows.INDEPENDENT
    assert Some.inputs is Inputs.REQUIRED
    assert Some.target_kinds == set(TargetKind) - {TargetKind.NONE}
    assert Some.requires == frozenset()
    assert Some.tensors == {}
    assert Some.api == contract.API_VERSION
    assert Narrowed.target_kinds == {TargetKind.CLASS}


def test_an_inert_job_lets_a_plugin_run_anywhere():
    found = Some().run(None, batch(), SomeParams(), Job())
    assert torch.equal(found.images, torch.full((1, 2), 3.0))
    assert list(Job().track(2)) == [0, 1]
    with pytest.raises(InvalidRequest, match=r"models\.prior: name a loaded model"):
        Job().model("prior")
    with pytest.raises(InvalidRequest, match=r"params\.method\.plugin: there is no plugin 'prior'"):
        Job().plugin(Method(plugin="prior"))


def test_the_fields_of_a_result_have_roles_and_descriptions():
    fields = result_fields(SomeResult)
    assert fields["images"] == (Role.TENSOR, "what was made")
    assert fields["energy"] == (Role.METRIC, "how much it took")
    assert fields["before"][0] is Role.LOGITS_BEFORE
    assert fields["after"][0] is Role.LOGITS_AFTER


def test_only_tensors_of_a_result_are_sent():
    found = Some().run(None, batch(), SomeParams(), Job())
    assert set(result_tensors(found)) == {"images", "energy", "before"}


def test_parameters_are_frozen_finite_and_complete():
    class Finite(Params):
        rate: float = 1.0

    with pytest.raises(ValidationError):
        Finite(rat=1.0)
    with pytest.raises(ValidationError):
        Finite(rate=float("nan"))
    with pytest.raises(ValidationError):
        Finite().rate = 2.0


@pytest.mark.parametrize(
    "fields",
    [
        {"targets": Targets.none(3)},
        {"seeds": (1,)},
        {"tensors": {"mask": torch.zeros(1, 2)}},
    ],
)
def test_a_batch_agrees_on_its_rows(fields):
    good = {"inputs": torch.zeros(2, 2), "targets": Targets.none(2), "seeds": (0, 1)}
    assert len(Batch(**good)) == 2
    with pytest.raises(InvalidRequest, match="differ in rows"):
        Batch(**{**good, **fields})


def test_a_plugin_without_run_cannot_be_made():
    class Empty(Plugin[SomeParams, SomeResult]):
        """Does nothing."""

    with pytest.raises(TypeError, match="abstract"):
        Empty()
