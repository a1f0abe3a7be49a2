"""What a plugin needs of a model, and its parameters as callers write them."""

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
        names = list(plugin.params_type.model_fields)
        violations = [
            Violation(
                ".".join(["params", *(str(part) for part in item["loc"])]),
                _describe(plugin.name, names, item),
            )
            for item in error.errors(include_url=False, include_context=False)
        ]
    message = "; ".join(f"{item.field}: {item.description}" for item in violations)
    raise InvalidRequest(message, violations=violations)


def _describe(plugin: str, names: list[str], item: Any) -> str:
    if item["type"] == "extra_forbidden":
        close = get_close_matches(str(item["loc"][-1]), names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(names) or 'none'}"
        return f"{plugin} has no such parameter; {hint}"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return message[:1].lower() + message[1:]
