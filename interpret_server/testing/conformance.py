"""Does a plugin keep the contract? Run this on every plugin, as its authors' own tests do."""

import random
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from typing import Any

import numpy
import torch
from pydantic import ValidationError
from torch import Tensor

from ..engine.methods import Methods
from ..errors import Cancelled, InterpretError
from ..models.classifier import Classifier
from ..models.targets import TargetKind
from ..plugin import (
    Batch,
    Inputs,
    Job,
    ModelOutput,
    Params,
    Plugin,
    Rows,
    result_tensors,
    role_of,
)
from ..registry import Registry
from .declarations import declaration_breaches
from .outcomes import close, may_lack, tensor_problem, told
from .seconds import fill_roles
from .subjects import Bare, batch_of, copy_of, subjects, take, targets_to_try
from .witness import Surroundings, Witness, passes

__all__ = ["ConformanceError", "conformance"]

AnyPlugin = Plugin[Any, Any]
MakeTensors = Callable[[Classifier, int], Mapping[str, Tensor]]

_ROWS = 3
_ORDER = [2, 0, 1]


class ConformanceError(AssertionError):
    """A plugin breaks the contract; `breaches` has one sentence for each way in which it does."""

    def __init__(self, name: str, breaches: Sequence[str]) -> None:
        self.breaches = tuple(breaches)
        lines = "".join(f"\n- {breach}" for breach in breaches)
        super().__init__(f"{name} breaks the plugin contract:{lines}")


def conformance(
    plugin: AnyPlugin | type[AnyPlugin],
    *,
    params: Mapping[str, Any] | None = None,
    tensors: MakeTensors | None = None,
    models: Sequence[Classifier] | None = None,
) -> None:
    """Check that a plugin keeps the contract of `interpret_server.plugin`.

    The plugin's declarations are read, and it is run on several small classifiers, those that have
    the capabilities it requires and that its `check` does not refuse. Checked are: the shape,
    finiteness and description of every result; that inputs, targets, model, hooks, modes and
    random generators are left as they were; that equal seeds give equal results; that a row's
    result depends neither on its batch mates nor on their order (unless the rows belong together),
    to 1e-6 of a field's largest value in float64 and 1e-3 in float32; that a COLLECTION goes
    through the model in passes of at most `job.max_rows`; that cancellation stops it;
    that progress is reported, and that between two steps nothing of it disturbs other callers;
    every declared kind of target; and that it needs no capability beyond those it requires. Every
    role of a second model that a call must fill is filled by the model itself, or by a small
    network of values.

    Args:
        plugin: the class, or an instance.
        params: parameters other than the defaults; fewer steps make the suite faster.
        tensors: makes the auxiliary tensors for a model and a number of rows. Without it, required
            ones shaped like the input are made up, and optional ones left out.
        models: classifiers to use in place of the suite's own.

    Raises:
        ConformanceError: with every breach that was found.
    """
    instance = plugin() if isinstance(plugin, type) else plugin
    name = str(getattr(instance, "name", type(instance).__name__))
    breaches = list(declaration_breaches(instance))
    if breaches:
        raise ConformanceError(name, breaches)
    try:
        made = instance.params_type.model_validate(dict(params or {}))
    except ValidationError as error:
        what = "the parameters given to the suite" if params else "the default parameters"
        raise ConformanceError(name, [f"{what} are not valid: {error}"]) from error
    examination = _Examination(instance, made, tensors)
    with _undisturbed():
        examination.run(subjects() if models is None else models)
    if examination.found:
        reports = [
            f"{message} (on {', '.join(names)})" if names else message
            for message, names in examination.found.items()
        ]
        raise ConformanceError(name, reports) from examination.cause


@contextmanager
def _undisturbed() -> Iterator[None]:
    python, legacy = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(legacy)


class _Failure(Exception):
    """A run ended in a breach, so that what follows from it cannot be checked."""


class _Examination:
    """The runs of one plugin, and the breaches that they show: message -> models."""

    def __init__(self, plugin: AnyPlugin, params: Params, tensors: MakeTensors | None) -> None:
        self.plugin, self.params, self.tensors = plugin, params, tensors
        others = Registry.installed() if plugin.uses else ()
        self.others = {item.plugin.name: item for item in others}
        self.requires = plugin.requires  # with what the plugins that it uses require
        self.filled: dict[str, dict[str, Classifier]] = {}  # by model: its second models
        self.found: dict[str, list[str]] = {}
        self.cause: BaseException | None = None

    def run(self, models: Sequence[Classifier]) -> None:
        """Examine the plugin on every model that suits it."""
        refusals = [
            f"the auxiliary tensor {name} has a shape of its own: pass `tensors`"
            for name, tensor in self.plugin.tensors.items()
            if tensor.required and not tensor.like_input and self.tensors is None
        ]
        suited = [] if refusals else [m for m in models if self._suits(m, refusals)]
        if not suited:
            self.found[f"it cannot be tried: {'; '.join(refusals)}; pass `models`"] = []
        for model in suited:
            with suppress(_Failure):
                self._examine(model)
        if suited:
            with suppress(_Failure):
                self._check_targets(suited[0])
            with suppress(_Failure):
                self._check_requirements(suited[0])

    def _seconds(self, model: Classifier) -> dict[str, Classifier]:
        if model.name not in self.filled:
            self.filled[model.name] = fill_roles(self.plugin.models, model)
        return self.filled[model.name]

    def _job(self, model: Classifier) -> Job:
        return Job(self._seconds(model))

    def _suits(self, model: Classifier, refusals: list[str]) -> bool:
        roles = [role.requires for role in self.plugin.models.values() if role.required]
        outputs = {role.output for role in self.plugin.models.values() if role.required}
        if ModelOutput.LIKE_INPUT in outputs and None in model.input_sizes:
            refusals.append(f"{model.name} has free sizes, which no network of values takes")
            return False
        seconds = self._seconds(model)
        methods = Methods(model, self.others, self.plugin.tensors.keys(), seconds)
        if missing := self.plugin.requires.union(*roles) - model.capabilities:
            refusals.append(f"{model.name} lacks {', '.join(sorted(missing))}")
            return False
        try:
            self.plugin.check(model, self.params)
            methods.resolve(self.plugin, self.params)
        except InterpretError as error:
            refusals.append(f"{model.name} is refused: {error}")
            return False
        self.requires = self.requires.union(*(item.requires for item in methods.found))
        return True

    def _examine(self, model: Classifier) -> None:
        batch = self._usual_batch(model)
        witness = Witness(model, len(batch), models=self._seconds(model))
        result = self._run(model, batch, witness)
        if not any(witness.loops):
            self._breach(
                model,
                "never calls job.track, so that it reports no progress and cannot be cancelled; "
                "even a single step belongs in `for _ in job.track(1)`",
            )
        torch.manual_seed(1)
        self._compare(
            model,
            self._run(model, batch, self._job(model)),
            result,
            "two runs with the same seeds differ",
        )
        if self.plugin.rows is Rows.INDEPENDENT:
            self._check_rows(model, batch, result)
        if self.plugin.rows is Rows.COLLECTION:
            self._check_passes(model, batch, result)
        if any(witness.loops):
            for boundary in sorted({0, witness.boundaries // 2, witness.boundaries - 1}):
                self._check_cancellation(model, batch, boundary)
        if self.plugin.inputs is Inputs.OPTIONAL:
            self._check_without_inputs(model, batch)

    def _check_without_inputs(self, model: Classifier, batch: Batch) -> None:
        batch = replace(batch, inputs=model.neutral(len(batch)), has_inputs=False)
        if self.plugin.tensors and not self._takes(model, batch):
            return  # it may want one of its auxiliary tensors in their place
        self._run(model, batch, self._job(model), "without inputs")

    def _usual_batch(self, model: Classifier) -> Batch:
        kinds = self.plugin.target_kinds or {TargetKind.NONE}
        kind = min(kinds, key=lambda kind: (kind is not TargetKind.CLASS, kind))
        batches = self._batches(kind, model)
        return next((batch for batch in batches if self._takes(model, batch)), batches[-1])

    def _batches(self, kind: TargetKind, model: Classifier) -> list[Batch]:
        return [
            batch_of(self.plugin, model, targets, self.tensors)
            for targets in targets_to_try(kind, model, _ROWS)
        ]

    def _takes(self, model: Classifier, batch: Batch) -> bool:
        batch = copy_of(batch)
        try:
            with self._watching(model, batch):
                self.plugin.run(model, batch, self.params, self._job(model))
        except InterpretError:
            return False
        except Exception:
            return True  # the run that counts reports it
        return True

    def _check_rows(self, model: Classifier, batch: Batch, result: Mapping[str, Tensor]) -> None:
        for row in range(len(batch)):
            alone = self._run(model, take(batch, [row]), self._job(model), "on a single row")
            expected = {name: tensor[row : row + 1] for name, tensor in result.items()}
            self._compare(
                model,
                alone,
                expected,
                "a row's result depends on the other rows of its batch",
                result,
            )
        shuffled = self._run(
            model, take(batch, _ORDER), self._job(model), "on rows in another order"
        )
        expected = {name: tensor[_ORDER] for name, tensor in result.items()}
        self._compare(model, shuffled, expected, "a row's result depends on the order of the rows")

    def _check_passes(self, model: Classifier, batch: Batch, result: Mapping[str, Tensor]) -> None:
        narrow = Job()
        narrow.max_rows = _ROWS - 1
        with passes(model) as sizes:
            found = self._run(model, batch, narrow, "with few rows at a time")
        if max(sizes, default=0) > narrow.max_rows:
            self._breach(
                model,
                f"takes {max(sizes)} rows through the model at once where job.max_rows is "
                f"{narrow.max_rows}; a COLLECTION has many",
            )
        self._compare(
            model, found, result, "the result depends on how many rows go through the model at once"
        )

    def _check_cancellation(self, model: Classifier, batch: Batch, boundary: int) -> None:
        batch = copy_of(batch)
        job = Witness(model, len(batch), boundary, self._seconds(model))
        try:
            with self._watching(model, batch, " when it is cancelled"):
                self.plugin.run(model, batch, self.params, job)
        except Cancelled:
            pass
        except Exception as error:
            self._breach(model, f"turns a cancellation into {told(error)}", error)
        else:
            self._breach(model, "goes on when job.track raises Cancelled; let it pass through")

    def _check_targets(self, model: Classifier) -> None:
        for kind in sorted(self.plugin.target_kinds):
            refusals = []
            batches = self._batches(kind, model)
            for batch in batches:
                try:
                    with self._watching(model, batch):
                        result = self.plugin.run(model, batch, self.params, self._job(model))
                    self._checked(model, result, len(batch), f"with a {kind} target")
                except InterpretError as error:
                    refusals.append(error)
                except _Failure:
                    continue
                except Exception as error:
                    self._breach(model, f"fails on a {kind} target: {told(error)}", error)
            if len(refusals) == len(batches):
                self._breach(model, f"refuses the {kind} targets that it declares: {refusals[0]}")

    def _check_requirements(self, model: Classifier) -> None:
        bare = Bare(model, self.requires)
        seconds = {
            role: Bare(second, self.plugin.models[role].requires)
            for role, second in self._seconds(model).items()
        }
        kinds = self.plugin.target_kinds or {TargetKind.NONE}
        logits = {TargetKind.CLASS, TargetKind.NONE} & kinds
        if not logits:
            return
        batch = batch_of(
            self.plugin, model, targets_to_try(min(logits), model, _ROWS)[0], self.tensors
        )
        try:
            self.plugin.run(bare, batch, self.params, Job(seconds))
        except Exception as error:
            self._breach(
                model,
                f"needs a capability that it does not declare in `requires`: {told(error)}",
                error,
            )

    @contextmanager
    def _watching(self, model: Classifier, batch: Batch, when: str = "") -> Iterator[None]:
        before = Surroundings.capture(model, batch)
        try:
            yield
        finally:
            for message in before.breaches(Surroundings.capture(model, batch)):
                self._breach(model, message + when)
            torch.set_grad_enabled(True)

    def _run(
        self, model: Classifier, batch: Batch, job: Job, how: str = ""
    ) -> Mapping[str, Tensor]:
        batch = copy_of(batch)
        try:
            with self._watching(model, batch):
                result = self.plugin.run(model, batch, self.params, job)
        except Exception as error:
            self._breach(model, f"fails{' ' * bool(how)}{how}: {told(error)}", error)
            raise _Failure from error
        finally:
            for message in job.found if isinstance(job, Witness) else ():
                self._breach(model, message)
        return self._checked(model, result, len(batch), how)

    def _checked(
        self, model: Classifier, result: Any, rows: int, how: str = ""
    ) -> Mapping[str, Tensor]:
        expected = self.plugin.result_type
        if not isinstance(result, expected):
            self._breach(model, f"returns {type(result).__name__}, not {expected.__name__}")
            raise _Failure
        hints = typing.get_type_hints(expected)
        tensors = result_tensors(result)
        problems = {
            name: tensor_problem(value, role_of(expected, name), rows, model.classes)
            for name, value in tensors.items()
        }
        for field in dataclass_fields(expected):
            value = getattr(result, field.name)
            several = isinstance(value, Mapping) and all(map(torch.is_tensor, value.values()))
            if not (several or isinstance(value, Tensor) or may_lack(value, hints[field.name])):
                problems[field.name] = f"is {type(value).__name__}, not a tensor"
        for name, problem in problems.items():
            if problem:
                self._breach(model, f"the result's {name} {problem}{how and f' ({how})'}")
                raise _Failure
        return tensors

    def _compare(
        self,
        model: Classifier,
        found: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        message: str,
        whole: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Report what differs by more than a share of a field's largest value in `whole`."""
        for name in sorted(found.keys() | expected.keys()):
            if name not in found or name not in expected:
                self._breach(model, f"{message}: {name} is there only sometimes")
            elif found[name].shape != expected[name].shape:
                self._breach(model, f"{message}: {name} differs in shape")
            elif not close(found[name], expected[name], (whole or expected)[name]):
                self._breach(model, f"{message}: {name}")

    def _breach(self, model: Classifier, message: str, cause: BaseException | None = None) -> None:
        names = self.found.setdefault(message, [])
        if model.name not in names:
            names.append(model.name)
        self.cause = self.cause or cause
