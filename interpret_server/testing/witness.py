"""What a plugin leaves behind and lets be seen between two steps; for the conformance suite."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn.modules import module as nn_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..errors import Cancelled
from ..models.classifier import Capability, Classifier
from ..models.relu_rules import ReluRule
from ..models.targets import Targets
from ..plugin import Batch, Job
from .subjects import inputs_of

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_INTERRUPTIONS = 16  # boundaries at which another caller's work is tried


def open_modes() -> list[str]:
    """The names of the dispatch and function modes that are active."""
    functions = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    stacks = [*_get_current_dispatch_mode_stack(), *functions]
    return [type(mode).__name__ for mode in stacks]


def hooks(model: Classifier) -> frozenset[str]:
    """Where hooks hang: names of the model's modules, and `every module` for global hooks."""
    hooked = {
        name or "the model"
        for name, module in model.module.named_modules()
        if any(getattr(module, kind) for kind in _HOOKS) or "forward" in vars(module)
    }
    if any(getattr(nn_module, f"_global{kind}") for kind in _HOOKS):
        hooked.add("every module")
    return frozenset(hooked)


@contextmanager
def passes(model: Classifier) -> Iterator[list[int]]:
    """Grows by the rows of every pass through the model's network."""
    sizes: list[int] = []
    compute = model.module.compute

    def counted(form: Callable[[Tensor], Any], x: Tensor) -> Any:
        sizes.append(len(x))
        return compute(form, x)

    model.module.compute = counted  # type: ignore[method-assign]
    try:
        yield sizes
    finally:
        del model.module.compute


@dataclass(frozen=True)
class Surroundings:
    """Everything around a plugin that it must leave as it was."""

    values: dict[str, Tensor]
    flags: dict[str, object]
    hooked: frozenset[str]
    random: dict[str, object]

    @classmethod
    def capture(cls, model: Classifier, batch: Batch) -> "Surroundings":
        """As they are now, copied."""
        tensors = {"inputs": batch.inputs, "target indices": batch.targets.index}
        if batch.targets.direction is not None:
            tensors["target directions"] = batch.targets.direction
        tensors |= {f"tensors[{name!r}]": tensor for name, tensor in batch.tensors.items()}
        tensors |= {f"the model's {name}": item for name, item in model.module.state_dict().items()}
        flags: dict[str, object] = {
            "the grad mode": torch.is_grad_enabled(),
            "the inference mode": torch.is_inference_mode_enabled(),
            "the default dtype": torch.get_default_dtype(),
            "the number of threads": torch.get_num_threads(),
            "the open modes": tuple(open_modes()),
            "the use of cuDNN": torch.backends.cudnn.enabled,
        }
        owned = {**tensors, **dict(model.module.named_parameters())}
        for name, tensor in owned.items():
            flags[f"requires_grad of {name}"] = tensor.requires_grad
            flags[f"the stored gradient of {name}"] = tensor.grad is not None
        for name, module in model.module.named_modules():
            flags[f"the training flag of {name or 'the model'}"] = module.training
        numpy_state = numpy.random.get_state(legacy=False)["state"]
        return cls(
            {name: tensor.detach().clone() for name, tensor in tensors.items()},
            flags,
            hooks(model),
            {
                "torch": bytes(torch.get_rng_state().numpy()),
                "numpy": (bytes(numpy_state["key"]), numpy_state["pos"]),
                "Python": random.getstate(),
            },
        )

    def breaches(self, later: "Surroundings") -> list[str]:
        """What differs later, in words."""
        found = [
            f"changes {name}"
            for name, value in self.values.items()
            if name not in later.values or not torch.equal(value, later.values[name])
        ]
        found += [
            f"leaves {name} changed"
            for name, flag in self.flags.items()
            if later.flags.get(name) != flag
        ]
        found += [f"leaves a hook on {name}" for name in sorted(later.hooked - self.hooked)]
        found += [
            f"draws from {name}'s global random generator; use batch.normal or batch.uniform, "
            "which give each row its own noise"
            for name, state in self.random.items()
            if later.random[name] != state
        ]
        return found


class Witness(Job):
    """A job that checks every boundary between steps, and can stop at one of them.

    Args:
        model: that the plugin runs on.
        rows: of the batch.
        stop_at: the boundary at which to cancel, counted from 0.
        models: the second models, by role.
    """

    def __init__(
        self,
        model: Classifier,
        rows: int,
        stop_at: int | None = None,
        models: Mapping[str, Classifier] = MappingProxyType({}),
    ) -> None:
        super().__init__(models)
        self.boundaries = 0
        self.loops: list[int] = []
        self.found: dict[str, None] = {}  # in order of appearance
        self._rows, self._stop_at, self._depth = rows, stop_at, 0
        self._model, self._hooked = model, hooks(model)
        self._others = _others_work(model)
        self._expected = [work() for work in self._others]

    def track(self, total: int) -> Iterator[int]:
        if isinstance(total, bool) or not isinstance(total, int) or total < 0:
            self._breach(f"tracks {total!r} steps; the total is a whole number")
        if self._depth == 0:
            self.loops.append(total)
            if len(self.loops) > 1:
                self._breach(
                    "calls job.track several times in a row, so that progress starts over; call "
                    "it once, with the sum of the steps"
                )
        self._depth += 1
        try:
            self._boundary()
            for step in range(total):
                yield step
                self._boundary()
        finally:
            self._depth -= 1

    def preview(self, **tensors: Tensor | Callable[[], Tensor]) -> None:
        for name, given in tensors.items():
            tensor = given() if callable(given) else given
            if not isinstance(tensor, Tensor) or not tensor.dim() or len(tensor) != self._rows:
                self._breach(f"previews {name} without one row per input row")

    def warn(self, rows: Tensor, message: str) -> None:
        if tuple(rows.shape) != (self._rows,) or rows.dtype is not torch.bool:
            self._breach("warns with a mask that is not (N,) bool")
        if not message:
            self._breach("warns without a message")

    def _boundary(self) -> None:
        boundary, self.boundaries = self.boundaries, self.boundaries + 1
        if boundary == self._stop_at:
            raise Cancelled("the conformance suite cancels the job here")
        if modes := open_modes():
            self._breach(
                f"keeps {', '.join(modes)} open from one step of job.track to the next; open and "
                "close it within a step"
            )
        for name in sorted(hooks(self._model) - self._hooked):
            self._breach(
                f"keeps a hook on {name} from one step of job.track to the next; set and remove "
                "it within a step"
            )
        if boundary < _INTERRUPTIONS:
            for work, expected in zip(self._others, self._expected, strict=True):
                if not torch.allclose(work(), expected, rtol=1e-5, atol=1e-7):
                    self._breach(
                        "disturbs other callers: a gradient computed between two of its steps is "
                        "wrong"
                    )

    def _breach(self, message: str) -> None:
        self.found[message] = None


def _others_work(model: Classifier) -> list[Callable[[], Tensor]]:
    x = inputs_of(model, 2, stream=99)
    targets = Targets.classes(torch.arange(2) % model.classes)
    rules = {ReluRule.PLAIN: Capability.GRADIENT, ReluRule.GUIDED: Capability.RECTIFIERS}
    return [
        lambda rule=rule: model.gradient(x, targets, rule).inputs  # type: ignore[misc]
        for rule, needed in rules.items()
        if {Capability.GRADIENT, needed} <= model.capabilities
    ]
