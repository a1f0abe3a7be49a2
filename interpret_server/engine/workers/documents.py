"""What is known of models and plugins, and manifests, as JSON inside messages.

Not a number and infinity stand for themselves; what a manifest leaves out stays out.
"""

from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ...errors import InvalidRequest
from ...models.manifest import Manifest
from ..api import ModelInfo, PluginInfo
from .errors import ProtocolError

MAX_JSON = 12 << 20  # bytes; below the largest message
_INTEGERS = range(-(1 << 63), 1 << 63)

T = TypeVar("T")

_JSON = ConfigDict(ser_json_inf_nan="constants")
_MODEL: TypeAdapter[tuple[ModelInfo]] = TypeAdapter(tuple[ModelInfo], config=_JSON)
_PLUGINS: TypeAdapter[tuple[PluginInfo, ...]] = TypeAdapter(tuple[PluginInfo, ...], config=_JSON)
_MANIFEST: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def model_to_json(info: ModelInfo) -> str:
    """What is known of a model. Raises ProtocolError where that is too long or not Unicode."""
    return _to_json(_MODEL, (info,), "the model")


def model_from_json(text: str) -> ModelInfo:
    """What a worker says of its model. Raises ProtocolError."""
    (info,) = _from_json(_MODEL, text, "the model")
    _check_integers(_MODEL.dump_python((info,)))
    return info


def plugins_to_json(infos: tuple[PluginInfo, ...]) -> str:
    """The plugins. Raises ProtocolError where that is too long or not Unicode."""
    return _to_json(_PLUGINS, infos, "the plugins")


def plugins_from_json(text: str) -> tuple[PluginInfo, ...]:
    """The plugins that a nursery describes. Raises ProtocolError."""
    return _from_json(_PLUGINS, text, "the plugins")


def manifest_to_json(manifest: Manifest) -> str:
    """A manifest, with only the fields that were given.

    Raises:
        InvalidRequest: it is too long, or not Unicode.
    """
    try:
        return _to_json(_MANIFEST, manifest, "the manifest")
    except ProtocolError:
        raise InvalidRequest.field(
            "manifest", f"as JSON it must be Unicode text of at most {MAX_JSON >> 20} MiB"
        ) from None


def manifest_from_json(text: str) -> Manifest:
    """The manifest of `manifest_to_json`. Raises ProtocolError."""
    return _from_json(_MANIFEST, text, "the manifest")


def _to_json(adapter: TypeAdapter[T], value: T, what: str) -> str:
    try:
        data = adapter.dump_json(value, exclude_unset=True)
    except ValueError as error:
        raise ProtocolError(f"{what} has no JSON form: {error}") from None
    if len(data) > MAX_JSON:
        raise ProtocolError(f"{what} takes {len(data)} bytes to describe")
    return data.decode()


def _from_json(adapter: TypeAdapter[T], text: str, what: str) -> T:
    if len(text) > MAX_JSON:
        raise ProtocolError(f"{what} takes {len(text)} characters to describe")
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, wrong["loc"]))
        raise ProtocolError(f"{what} is described wrongly: {place}: {wrong['msg']}") from None


def _check_integers(value: Any) -> None:
    """Refuse numbers that no message to a caller can hold."""
    if isinstance(value, int) and value not in _INTEGERS:
        raise ProtocolError("the model is described by a number of more than 64 bits")
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list | set | frozenset):
        return
    for item in value:
        _check_integers(item)
