"""The second models of a call, checked by what is known of them; imports no torch."""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from ..errors import InvalidRequest, MissingCapability, Violation
from .api import ModelInfo, ModelRoleInfo


def check_roles(plugin: str, roles: Sequence[ModelRoleInfo], given: Mapping[str, str]) -> None:
    """Refuse a role that the plugin does not have, and a call without one that it needs.

    Raises:
        InvalidRequest: naming `models.<role>`.
    """
    names = [role.name for role in roles]
    for name in given:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names) or 'none'}"
            raise InvalidRequest.field(
                f"models.{name[:80]}", f"{plugin} has no such role for a second model; {hint}"
            )
    for role in roles:
        if role.required and role.name not in given:
            raise InvalidRequest.field(
                f"models.{role.name}", f"{plugin} needs a second model here: {role.description}"
            )


def check_second(plugin: str, role: ModelRoleInfo, first: ModelInfo, second: ModelInfo) -> None:
    """Refuse a second model that does not suit its role.

    Raises:
        MissingCapability: it lacks what the role requires.
        InvalidRequest: it gives something else than the role wants, or takes other inputs than the
            first model where the role wants the same.
    """
    field = f"models.{role.name}"
    for capability in sorted(role.requires - second.capabilities):
        why = second.lacking.get(capability, f"{second.name} does not have it")
        description = f"{plugin} requires {capability} of it: {why}"
        raise MissingCapability(
            f"{field}: {description}", violations=[Violation(field, description)]
        )
    if problem := _output_problem(role.output, second):
        raise InvalidRequest.field(field, f"{plugin} needs {problem}")
    if role.same_inputs and first.name != second.name:
        difference = _difference(first, second)
        if difference:
            raise InvalidRequest.field(
                field, f"{plugin} needs a model that takes the inputs of {first.name}; {difference}"
            )


def _output_problem(wanted: str, info: ModelInfo) -> str:
    """What a role needs that a model does not give; empty where it does."""
    values = info.logits_from == "values"
    size = math.prod(info.input_shape) if -1 not in info.input_shape else -1
    told = 'load it with output.kind = "values" if it does'
    if wanted == "classes" and values:
        return f"a classifier; {info.name} gives values, and no scores of classes"
    if wanted == "number" and not (values and info.classes == 1):
        return f"a model that gives one number for each row, and {info.name} does not; {told}"
    if wanted == "like_input" and not (values and info.classes == size):
        return f"a model that gives as many values as it takes, and {info.name} does not; {told}"
    return ""


def _difference(first: ModelInfo, second: ModelInfo) -> str:
    """How the inputs of two models differ; empty where they do not."""
    for info in (first, second):
        if len(info.inputs) > 1 or any(item.kind != "values" for item in info.inputs):
            return f"{info.name} takes tokens or several inputs, which no two models share"
    if not _alike(first.input_shape, second.input_shape):
        return f"{_told(second)}, not {_sizes(first)}"
    if first.precision != second.precision:
        return f"{second.name} takes {second.precision}, not {first.precision}"
    if first.bounds != second.bounds:
        return f"{second.name} has {_range(second)}, not {_range(first)}"
    return ""


def _alike(first: Sequence[int], second: Sequence[int]) -> bool:
    return len(first) == len(second) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(first, second, strict=True)
    )


def _told(info: ModelInfo) -> str:
    return f"{info.name} takes rows of shape {_sizes(info)}"


def _sizes(info: ModelInfo) -> str:
    return f"[{', '.join('free' if size < 0 else str(size) for size in info.input_shape)}]"


def _range(info: ModelInfo) -> str:
    return (
        "no bounds" if info.bounds is None else f"bounds [{info.bounds[0]:g}, {info.bounds[1]:g}]"
    )
