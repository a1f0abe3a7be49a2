"""What a plugin needs of a model, and its parameters as callers write them."""

import json
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from ..errors import InvalidRequest, MissingCapability, Violation
from ..models.classifier import Classifier
from ..registry import AnyPlugin


def check_capabilities(plugin: AnyPlugin, classifier: Classifier) -> None:
    """Refuse a plugin whose needs the model does not meet.

    Raises:
        MissingCapability: with the reason that was found when the model was loaded.
    """
    for capability in sorted(plugin.requires - classifier.capabilities):
        why = classifier.lacking.get(capability, f"{classifier.name} does not have it")
        raise MissingCapability(f"{plugin.name} requires {capability.value}: {why}")


def decode_params(plugin: AnyPlugin, text: str) -> Any:
    """The plugin's parameters from JSON text; empty text means the defaults.

    Raises:
        InvalidRequest: with one violation `params.<name>` per wrong parameter.
    """
    try:
        return plugin.params_type.model_validate_json(text or "{}")
    except ValidationError as error:
        items = error.errors(include_url=False, include_context=False)
    names = list(plugin.params_type.model_fields)
    given = _parsed(text)
    wrong: dict[str, list[str]] = {}  # a parameter of several types is wrong once for each
    for item in items:
        field = ".".join(["params", *_place(item, given)])
        wrong.setdefault(field, []).append(_describe(plugin.name, names, item))
    violations = [
        Violation(field, ", or ".join(dict.fromkeys(found)))
        for field, found in wrong.items()
        if not any(other.startswith(f"{field}.") for other in wrong)  # which says it better
    ]
    message = "; ".join(f"{item.field}: {item.description}" for item in violations)
    raise InvalidRequest(message, violations=violations)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except ValueError:
        return None


def _place(item: Any, given: Any) -> list[str]:
    """Where in the parameters something is wrong, without the types that were tried there."""
    place: list[str] = []
    for part in item["loc"]:
        if isinstance(given, dict) and (part in given or item["type"] == "missing"):
            given = given.get(part)
        elif isinstance(given, list) and isinstance(part, int) and part < len(given):
            given = given[part]
        elif place:
            continue
        place.append(str(part))
    return place


def _describe(plugin: str, names: list[str], item: Any) -> str:
    if item["type"] == "extra_forbidden":
        if len(item["loc"]) > 1:
            return "there is no such parameter"
        close = get_close_matches(str(item["loc"][-1]), names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names) or 'none'}"
        return f"{plugin} has no such parameter; {hint}"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message[:1].lower() + message[1:]
