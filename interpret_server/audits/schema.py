"""Parameters against a plugin's JSON schema, as pydantic writes them."""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from ..errors import Violation

Schema = Mapping[str, Any]

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
    "null": (type(None),),
}
_LIMITS: tuple[tuple[str, str, Callable[[float, float], bool]], ...] = (
    ("minimum", "at least", operator.ge),
    ("maximum", "at most", operator.le),
    ("exclusiveMinimum", "more than", operator.gt),
    ("exclusiveMaximum", "less than", operator.lt),
)
_SIZES = (("minItems", "maxItems", "items"), ("minLength", "maxLength", "characters"))


def violations(schema: Schema, value: Any, field: str) -> Iterator[Violation]:
    """What of a value its schema does not allow.

    Relations between fields are for the plugin itself to judge.

    Args:
        schema: with its `$defs`.
        value: as JSON gives it.
        field: where it stands in the request.
    """
    yield from _check(schema, value, field, schema.get("$defs", {}))


def _check(schema: Schema, value: Any, field: str, defs: Schema) -> Iterator[Violation]:
    if "$ref" in schema:
        schema = defs[schema["$ref"].rpartition("/")[2]]
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        found = [list(_check(choice, value, field, defs)) for choice in choices]
        if all(found):  # of those that it nearly is, else of the first
            yield from min(found, key=lambda wrong: all(item.field == field for item in wrong))
        return
    wrong = _mistake(schema, value)
    if wrong:
        yield Violation(field, wrong)
    elif isinstance(value, dict):
        yield from _check_object(schema, value, field, defs)
    elif isinstance(value, list | tuple) and "items" in schema:
        for place, item in enumerate(value):
            yield from _check(schema["items"], item, f"{field}.{place}", defs)


def _check_object(
    schema: Schema, value: Mapping[str, Any], field: str, defs: Schema
) -> Iterator[Violation]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            yield Violation(f"{field}.{name}", "it is required")
    for name, item in value.items():
        if name in known:
            yield from _check(known[name], item, f"{field}.{name}", defs)
        elif isinstance(others, Mapping):
            yield from _check(others, item, f"{field}.{name}", defs)
        elif not others:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            yield Violation(f"{field}.{name}", f"there is no such parameter; {hint}")


def _mistake(schema: Schema, value: Any) -> str:
    """Why a value is not allowed by itself; empty where it is."""
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    if allowed is not None:
        return "" if value in allowed else f"it must be {' or '.join(map(str, allowed))}"
    kind = schema.get("type")
    if kind is not None and not _is(kind, value):
        return f"it must be of type {kind}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        for key, words, holds in _LIMITS:
            if key in schema and not holds(value, schema[key]):
                return f"it must be {words} {schema[key]:g}"
    if isinstance(value, str | list | tuple):
        for least, most, noun in _SIZES:
            if not schema.get(least, 0) <= len(value) <= schema.get(most, len(value)):
                return f"it has {len(value)} {noun}"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        return f"it must match {schema['pattern']}"
    return ""


def _is(kind: str, value: Any) -> bool:
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
