"""The contract between the server and a plugin; all that a plugin's author needs to import.

A plugin is one class: its parameters (`Params`), its result (a frozen dataclass of tensors whose
first axis is the batch) and one method, `run`. See docs/plugins.md for a walk through one.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, get_args, get_origin

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from .errors import Cancelled, DeadlineExceeded, InvalidRequest
from .method import Method
from .models.classifier import Capability, Classifier
from .models.execution import Nearby, Window
from .models.targets import TargetKind, Targets
from .noise import normal_rows, uniform_rows

__all__ = [
    "API_VERSION",
    "AuxTensor",
    "Batch",
    "Cancelled",
    "Capability",
    "Classifier",
    "DeadlineExceeded",
    "Inputs",
    "InvalidRequest",
    "Job",
    "Kind",
    "Method",
    "ModelOutput",
    "ModelRole",
    "Nearby",
    "Params",
    "Plugin",
    "Role",
    "Rows",
    "TargetKind",
    "Targets",
    "Window",
    "group_output",
    "logits_after",
    "logits_before",
    "metric",
    "output",
]

if TYPE_CHECKING:
    from .bound import BoundPlugin

API_VERSION = 1


class Kind(StrEnum):
    """What a plugin is for; decides how its result is summarised and drawn."""

    ATTRIBUTION = "attribution"
    SYNTHESIS = "synthesis"
    ATTACK = "attack"
    METRIC = "metric"
    PRIOR = "prior"
    INTERNALS = "internals"
    PRIMITIVE = "primitive"


class Rows(StrEnum):
    """How the rows of a batch relate."""

    INDEPENDENT = "independent"  # may be merged with other callers' rows
    GROUP = "group"  # the rows of one call belong together and are never merged
    COLLECTION = "collection"  # the same for many rows, of which the plugin takes few at once


class Inputs(StrEnum):
    """Whether a request must bring inputs."""

    REQUIRED = "required"
    OPTIONAL = "optional"
    FORBIDDEN = "forbidden"


class Role(StrEnum):
    """What a field of a result is."""

    TENSOR = "tensor"
    METRIC = "metric"  # one number per row
    GROUP = "group"  # a tensor about all rows of a call together
    LOGITS_BEFORE = "logits_before"  # (N, K) of the inputs as given
    LOGITS_AFTER = "logits_after"  # (N, K) of the inputs that the plugin made


class Params(BaseModel):
    """Base of every plugin's parameters; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class AuxTensor:
    """An auxiliary tensor that a plugin accepts by name, one row per input row.

    Args:
        description: one sentence for the plugin's page.
        like_input: the row shape must be that of the inputs.
        required: a request without it is refused.
    """

    description: str
    like_input: bool = True
    required: bool = False


class ModelOutput(StrEnum):
    """What a second model must give for each row."""

    CLASSES = "classes"  # scores of classes
    NUMBER = "number"  # one number, such as a log-density
    LIKE_INPUT = "like_input"  # as many values as its input has: a score, a denoised input
    ANY = "any"


@dataclass(frozen=True)
class ModelRole:
    """A second model that a request may name, in a role of the plugin; `Job.model` gives it.

    Args:
        description: one sentence for the plugin's page.
        requires: capabilities that it must have.
        required: a request without it is refused.
        same_inputs: it must take rows as the first model does: shape, type and bounds.
        output: what it must give; the values of a network that is no classifier come as `(N, K)`.
    """

    description: str
    requires: frozenset[Capability] = frozenset()
    required: bool = False
    same_inputs: bool = True
    output: ModelOutput = ModelOutput.CLASSES


def output(description: str, *, like_input: bool = True, shared: bool = False) -> Any:
    """Describe a tensor field of a result, `(N, ...)`.

    Args:
        description: one sentence for the plugin's page.
        like_input: where its rows have the shape of the inputs' rows they hold one value for each
            input value, and are sent by input for a model of several; False for what has that
            shape by chance alone.
        shared: a value holds what its whole group got (a window, a superpixel, all values of a
            token), not its own part of that; the values of a group are then not summed.
    """
    metadata = {
        "role": Role.TENSOR,
        "description": description,
        "like_input": like_input,
        "shared": shared,
    }
    return field(metadata=metadata)


def group_output(description: str) -> Any:
    """Describe a tensor of any shape about all rows of a call; not where they are INDEPENDENT."""
    return field(metadata={"role": Role.GROUP, "description": description})


def metric(description: str, *, better: Literal["low", "high"] | None = None) -> Any:
    """Describe a per-row number of a result, `(N,)`.

    Args:
        description: one sentence for the plugin's page.
        better: which values are good, for a number that ranks what a plugin judges.
    """
    metadata = {"role": Role.METRIC, "description": description, "better": better}
    return field(metadata=metadata)


def logits_before() -> Any:
    """The field holds the logits `(N, K)` of the inputs as they were given."""
    return field(metadata={"role": Role.LOGITS_BEFORE, "description": "Logits of the inputs."})


def logits_after() -> Any:
    """The field holds the logits `(N, K)` of the inputs that the plugin made."""
    return field(metadata={"role": Role.LOGITS_AFTER, "description": "Logits of the outputs."})


@dataclass(frozen=True)
class Batch:
    """N examples. Row i of every field is example i, independent of the others.

    Args:
        inputs: `(N, *input_shape)` in the classifier's bounds; the classifier's neutral input in
            every row where the caller brought none.
        targets: what to explain or reach, one per row.
        seeds: one per row; noise for row i comes from seed i and the step number alone.
        tensors: the auxiliary tensors that the plugin declares and the caller brought.
        has_inputs: whether the caller brought inputs.
    """

    inputs: Tensor
    targets: Targets
    seeds: tuple[int, ...]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    has_inputs: bool = True

    def __post_init__(self) -> None:
        counts = {len(self.inputs), len(self.targets), len(self.seeds)}
        counts |= {len(tensor) for tensor in self.tensors.values()}
        if len(counts) != 1:
            raise InvalidRequest.field(
                "inputs", f"inputs, targets, seeds and tensors differ in rows: {sorted(counts)}"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def normal(self, step: int = 0) -> Tensor:
        """Standard normal noise like `inputs`; row i depends on seed i and `step` alone."""
        return normal_rows(self.seeds, step, self.inputs)

    def uniform(self, low: float, high: float, step: int = 0) -> Tensor:
        """Uniform noise in [low, high) like `inputs`; row i depends on seed i and `step` alone."""
        return uniform_rows(self.seeds, step, self.inputs) * (high - low) + low


class Job:
    """A plugin's line to its callers. `Job()` is inert: it reports nothing and never stops.

    The server hands out a subclass; a plugin only calls these methods.

    Args:
        models: the second models, by role.

    Attributes:
        max_rows: most rows that should go through the model at once, at least 1; for plugins that
            try several variants of each row in one pass.
        models: the second models that the request names, by role.
    """

    max_rows: int = 64
    models: Mapping[str, Classifier] = MappingProxyType({})

    def __init__(self, models: Mapping[str, Classifier] = MappingProxyType({})) -> None:
        self.models = models

    def track(self, total: int) -> Iterator[int]:
        """Like `range(total)`, reporting each step and observing cancellation and deadlines.

        Between two steps the server may run another caller's work, so no hook, mode or ReLU rule
        may be active across an iteration.

        Raises:
            Cancelled: every caller of this batch has gone.
            DeadlineExceeded: every caller's deadline has passed.
        """
        yield from range(total)

    def preview(self, **tensors: Tensor | Callable[[], Tensor]) -> None:
        """Show intermediate tensors `(N, ...)`; only callers that asked for previews get them.

        What takes work to make may be given as a function, which is called only where it is shown.
        """

    def warn(self, rows: Tensor, message: str) -> None:
        """Attach `message` to the results of the rows where the `(N,)` boolean mask is true."""

    def model(self, role: str) -> Classifier:
        """The second model in a role of the plugin; on the device of the first one.

        Raises:
            InvalidRequest: the request names none.
        """
        if role not in self.models:
            raise InvalidRequest.field(f"models.{role}", "name a loaded model for this role")
        return self.models[role]

    def plugin(self, method: Method) -> "BoundPlugin":
        """The second plugin that a parameter of the first names.

        Raises:
            InvalidRequest: there is none of that name, or its parameters are wrong; the server
                has refused such a request before.
        """
        from .bound import BoundPlugin

        plugin = self.find(method.plugin)
        if plugin is None:
            raise InvalidRequest.field(
                f"{method.field}.plugin", f"there is no plugin {method.plugin!r}"
            )
        try:
            params = plugin.params_type.model_validate_json(json.dumps(method.params))
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            place = ".".join([f"{method.field}.params", *map(str, wrong["loc"])])
            raise InvalidRequest.field(place, wrong["msg"]) from None
        return BoundPlugin(plugin, params, self, method.field)

    def find(self, name: str) -> "Plugin[Any, Any] | None":
        """A plugin that `plugin` may give; an inert job finds every installed one."""
        from .registry import installed

        return installed(name)


P = TypeVar("P", bound=Params)
R = TypeVar("R")


class Plugin(ABC, Generic[P, R]):
    """One interpretability method.

    `P` gives the JSON schema of the parameters; `R` is a frozen dataclass whose fields are made
    with `output`, `metric`, `logits_before` and `logits_after`.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    api: ClassVar[int] = API_VERSION
    version: ClassVar[str | None] = None  # None: the version of the plugin's distribution
    requires: ClassVar[frozenset[Capability]] = frozenset()
    rows: ClassVar[Rows] = Rows.INDEPENDENT
    inputs: ClassVar[Inputs] = Inputs.REQUIRED
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset(TargetKind) - {TargetKind.NONE}
    tensors: ClassVar[Mapping[str, AuxTensor]] = {}
    models: ClassVar[Mapping[str, ModelRole]] = {}
    uses: ClassVar[Mapping[str, Kind]] = {}  # parameters that name second plugins, and their kind
    runs_on: ClassVar[Mapping[str, str]] = {}  # those that run on a second model, and its role
    params_type: ClassVar[type[Any]]
    result_type: ClassVar[type[Any]]

    def __init_subclass__(cls) -> None:
        for base in cls.__dict__.get("__orig_bases__", ()):
            if isinstance(get_origin(base), type) and issubclass(get_origin(base), Plugin):
                arguments = get_args(base)
                if len(arguments) == 2 and not any(isinstance(a, TypeVar) for a in arguments):
                    cls.params_type, cls.result_type = arguments

    def check(self, model: Classifier, params: P) -> None:
        """Refuse, before queueing, parameters that make no sense for this model.

        Raises:
            InvalidRequest: with the field that is wrong.
        """

    def check_seconds(
        self,
        params: P,
        plugins: "Mapping[str, Sequence[Plugin[Any, Any]]]",
        models: Mapping[str, Classifier],
    ) -> None:
        """Refuse, before queueing, second plugins and models that do not suit together.

        Args:
            plugins: those that a parameter names, in its order, by the parameter's name in `uses`.
            models: the second models of the request, by role.

        Raises:
            InvalidRequest: with the field that is wrong, such as `params.priors.1`.
        """

    @abstractmethod
    def run(self, model: Classifier, batch: Batch, params: P, job: Job) -> R:
        """Compute the result; every tensor in it but a `group_output` has `len(batch)` rows."""


def result_fields(result_type: type[Any]) -> dict[str, tuple[Role, str]]:
    """Name -> (role, description) of the fields of a result type."""
    return {
        item.name: (item.metadata.get("role", Role.TENSOR), item.metadata.get("description", ""))
        for item in dataclass_fields(result_type)
    }


def fields_like_input(result_type: Any) -> frozenset[str]:
    """The fields of a result type that may have the inputs' shape; none of a plain mapping."""
    return _fields_with(result_type, "like_input")


def shared_fields(result_type: Any) -> frozenset[str]:
    """The fields of a result type in which a value holds what its whole group got."""
    return _fields_with(result_type, "shared")


def _fields_with(result_type: Any, mark: str) -> frozenset[str]:
    if not isinstance(result_type, type):
        return frozenset()
    return frozenset(item.name for item in dataclass_fields(result_type) if item.metadata.get(mark))


def result_tensors(result: Any) -> dict[str, Tensor]:
    """The tensors of a result by field name; `<field>.<key>` for those of a field of several."""
    tensors: dict[str, Tensor] = {}
    for item in dataclass_fields(result):
        value = getattr(result, item.name)
        if isinstance(value, torch.Tensor):
            tensors[item.name] = value
        elif isinstance(value, Mapping):
            tensors |= {f"{item.name}.{key}": part for key, part in value.items()}
    return tensors


def role_of(result_type: type[Any], name: str) -> Role:
    """What one of `result_tensors` is."""
    roles = {field: role for field, (role, _) in result_fields(result_type).items()}
    return roles[name if name in roles else name.partition(".")[0]]
