"""Where plugins come from: entry points of installed distributions, and folders of single files.

A plugin that cannot be used stops the start-up with a `PluginLoadError` that names where it came
from; nothing is skipped.
"""

import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Self, get_args

from .plugin import (
    API_VERSION,
    AuxTensor,
    Kind,
    Method,
    ModelRole,
    Params,
    Plugin,
    Role,
    Rows,
    result_fields,
)

GROUP = "interpret_server.plugins"
_NAME = re.compile(r"[a-z][a-z0-9_]*")

AnyPlugin = Plugin[Any, Any]


class PluginLoadError(Exception):
    """A plugin that cannot be used; the message names its distribution or file, and the cause."""


@dataclass(frozen=True)
class Registration:
    """A plugin and where it comes from.

    Args:
        plugin: the instance that serves every call.
        origin: the distribution's or the file's name.
        version: the plugin's own, else that of its distribution.
    """

    plugin: AnyPlugin
    origin: str
    version: str


class Registry:
    """Plugins by name."""

    def __init__(self) -> None:
        self._entries: dict[str, Registration] = {}

    @classmethod
    def installed(cls) -> Self:
        """Every plugin of the entry-point group `interpret_server.plugins`.

        Raises:
            PluginLoadError: one of them cannot be used; the message names its distribution.
        """
        registry = cls()
        for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name):
            distribution = point.dist.name if point.dist else "an unknown distribution"
            version = point.dist.version if point.dist else ""
            try:
                loaded = point.load()
            except Exception as error:
                raise PluginLoadError(
                    f"{distribution}: the entry point {point.name!r} ({point.value}) does not "
                    f"load: {_sentence(error)}"
                ) from error
            registry.add(loaded, distribution, version)
            name = registry._newest()
            if name != point.name:
                raise PluginLoadError(
                    f"{distribution}: the entry point {point.name!r} loads a plugin that calls "
                    f"itself {name!r}; the two names must agree"
                )
        return registry

    def add(
        self, plugin: AnyPlugin | type[AnyPlugin], origin: str, version: str | None = None
    ) -> None:
        """Add a plugin, given as its class or as an instance.

        Args:
            plugin: what to add.
            origin: the distribution or file to name in messages.
            version: the distribution's; a plugin that states its own keeps that.

        Raises:
            PluginLoadError: it is no plugin, lacks a part, is written for another version of the
                contract, or its name is taken.
        """
        instance = _instance(plugin, origin)
        _check(type(instance), origin)
        if instance.name in self._entries:
            raise PluginLoadError(
                f"{origin}: {type(instance).__name__} has the name {instance.name!r}, taken by "
                f"{self._entries[instance.name].origin}"
            )
        self._entries[instance.name] = Registration(
            instance, origin, instance.version or version or ""
        )

    def add_folder(self, path: Path) -> None:
        """Add every plugin defined in the `.py` files of a folder.

        Files whose names start with `_` are left alone; a file without a plugin is refused.

        Raises:
            PluginLoadError: the folder is missing, or one of its files cannot be used; the message
                names the file.
        """
        if not path.is_dir():
            raise PluginLoadError(f"the plugin folder {path} does not exist")
        for file in sorted(path.glob("*.py")):
            if file.name.startswith("_"):
                continue
            module = _execute(file)
            found = [
                value
                for value in vars(module).values()
                if isinstance(value, type)
                and issubclass(value, Plugin)
                and value.__module__ == module.__name__
                and not inspect.isabstract(value)
            ]
            if not found:
                raise PluginLoadError(f"{file.name}: the file defines no subclass of Plugin")
            for plugin in found:
                self.add(plugin, file.name)

    def names(self) -> tuple[str, ...]:
        """The plugins' names, in alphabetical order."""
        return tuple(sorted(self._entries))

    def get(self, name: str) -> Registration | None:
        """A plugin by name, or None."""
        return self._entries.get(name)

    def __iter__(self) -> Iterator[Registration]:
        return (self._entries[name] for name in self.names())

    def __len__(self) -> int:
        return len(self._entries)

    def _newest(self) -> str:
        return next(reversed(self._entries))


def _instance(plugin: Any, origin: str) -> AnyPlugin:
    if isinstance(plugin, Plugin):
        return plugin
    if not (isinstance(plugin, type) and issubclass(plugin, Plugin)):
        raise PluginLoadError(
            f"{origin}: {_called(plugin)} is not a subclass of interpret_server.plugin.Plugin"
        )
    try:
        return plugin()
    except Exception as error:
        raise PluginLoadError(
            f"{origin}: {plugin.__name__} cannot be made: {_sentence(error)}"
        ) from error


def _check(plugin: type[AnyPlugin], origin: str) -> None:
    def refuse(reason: str) -> PluginLoadError:
        return PluginLoadError(f"{origin}: {plugin.__name__} {reason}")

    api = getattr(plugin, "api", None)
    if api != API_VERSION:
        raise refuse(
            f"is written for version {api} of the plugin contract; this server has {API_VERSION}"
        )
    name = getattr(plugin, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise refuse(
            f"has the name {name!r}; give it `name`, in lowercase letters, digits and underscores"
            if name is not None
            else "has no `name`"
        )
    if not isinstance(getattr(plugin, "kind", None), Kind):
        raise refuse(f"has no `kind`; choose one of {', '.join(f'Kind.{k.name}' for k in Kind)}")
    if not isinstance(plugin.rows, Rows):
        raise refuse(f"has `rows` that is none of {', '.join(f'Rows.{r.name}' for r in Rows)}")
    if not summary(plugin):
        raise refuse("has no docstring; its first line is the plugin's summary")
    params = getattr(plugin, "params_type", None)
    if not (isinstance(params, type) and issubclass(params, Params)):
        raise refuse("does not name its parameters: derive it from Plugin[YourParams, YourResult]")
    result = getattr(plugin, "result_type", None)
    if not (isinstance(result, type) and is_dataclass(result)):
        raise refuse("has a result type that is not a dataclass")
    roles = {role for role, _ in result_fields(result).values()}
    if Role.GROUP in roles and plugin.rows is Rows.INDEPENDENT:
        raise refuse("has a `group_output`, and rows that are independent")
    if not all(isinstance(item, AuxTensor) for item in plugin.tensors.values()):
        raise refuse("declares `tensors` that are not AuxTensor")
    if not all(isinstance(item, ModelRole) for item in plugin.models.values()):
        raise refuse("declares `models` that are not ModelRole")
    naming = {name for name, item in params.model_fields.items() if _mentions(item.annotation)}
    if naming != plugin.uses.keys() or not all(isinstance(k, Kind) for k in plugin.uses.values()):
        told = ", ".join(sorted(naming)) or "none"
        raise refuse(f"must declare in `uses` a Kind for each parameter of type Method: {told}")
    needed = {name for name, role in plugin.models.items() if role.required}
    if not (plugin.runs_on.keys() <= naming and needed.issuperset(plugin.runs_on.values())):
        raise refuse("must give in `runs_on` parameters of type Method and required roles")


def _mentions(annotation: Any) -> bool:
    return annotation is Method or any(_mentions(item) for item in get_args(annotation))


def installed(name: str) -> AnyPlugin | None:
    """The installed plugin of a name, or None.

    Raises:
        PluginLoadError: it cannot be used.
    """
    points = metadata.entry_points(group=GROUP, name=name)
    return next((_instance(point.load(), name) for point in points), None)


def summary(plugin: type[AnyPlugin]) -> str:
    """The first line of a plugin's own docstring; empty where it has none."""
    lines = inspect.cleandoc(plugin.__doc__ or "").splitlines()
    return lines[0].strip() if lines else ""


def _execute(file: Path) -> ModuleType:
    # The digest keeps files of the same name in two folders apart.
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]
    name = f"_interpret_plugin_{file.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PluginLoadError(f"{file.name}: the file cannot be read as a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PluginLoadError(f"{file.name}: the file does not load: {_sentence(error)}") from error
    return module


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _called(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)
