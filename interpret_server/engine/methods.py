"""The second plugins that a request names, checked before anything is queued."""

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from difflib import get_close_matches
from typing import Any

from ..errors import FailedPrecondition, InvalidRequest, MissingCapability, Violation
from ..models.classifier import Classifier
from ..models.targets import TargetKind
from ..plugin import Kind, Method, Rows
from ..registry import AnyPlugin, Registration
from .parameters import check_capabilities, decode_params

Plugins = Mapping[str, Registration]


class Methods:
    """The second plugins of one request.

    Args:
        classifier: that the request runs on.
        plugins: every plugin that there is.
        tensors: names of the auxiliary tensors that the first plugin declares and the caller gave.
        models: the second models, by the first plugin's role.

    Attributes:
        found: the plugins that were named, theirs included.
    """

    def __init__(
        self,
        classifier: Classifier,
        plugins: Plugins,
        tensors: AbstractSet[str],
        models: Mapping[str, Classifier],
    ) -> None:
        self._classifier, self._plugins, self._tensors = classifier, plugins, tensors
        self._models = models
        self.found: list[AnyPlugin] = []

    def resolve(self, plugin: AnyPlugin, params: Any) -> Any:
        """A plugin's parameters, with every default of the plugins that they name filled in.

        Raises:
            InvalidRequest, FailedPrecondition: naming the field that is wrong, such as
                `params.method.plugin` or `params.method.params.steps`.
        """
        return self._resolve([plugin], params, "params", self._classifier)

    def check_targets(self, kind: TargetKind) -> None:
        """Refuse targets that one of the plugins does not take.

        Raises:
            InvalidRequest: naming `target`.
        """
        for plugin in self.found:
            if plugin.target_kinds and kind not in plugin.target_kinds:
                told = "needs a target" if kind is TargetKind.NONE else f"takes no {kind} target"
                raise InvalidRequest.field("target", f"{plugin.name} {told}")

    def _resolve(self, users: list[AnyPlugin], params: Any, path: str, usual: Classifier) -> Any:
        update: dict[str, Any] = {}
        used: dict[str, list[AnyPlugin]] = {}
        for name, kind in users[-1].uses.items():
            value, field = getattr(params, name), f"{path}.{name}"
            role = users[-1].runs_on.get(name)
            model = usual if role is None else self._models[role]
            if isinstance(value, Method):
                update[name] = self._second(users, value, kind, field, model)
                used[name] = [self._plugins[value.plugin].plugin]
            elif value is not None:
                update[name] = type(value)(
                    self._second(users, item, kind, f"{field}.{index}", model)
                    for index, item in enumerate(value)
                )
                used[name] = [self._plugins[item.plugin].plugin for item in value]
        try:
            users[-1].check_seconds(params, used, self._models)
        except InvalidRequest as error:
            place = path.removesuffix("params").removesuffix(".")
            raise (error.within(place) if place else error) from None
        return params.model_copy(update=update) if update else params

    def _second(
        self, users: list[AnyPlugin], method: Method, kind: Kind, field: str, model: Classifier
    ) -> Method:
        plugin = self._find(users, method.plugin, kind, f"{field}.plugin")
        self._check_needs(users, plugin, f"{field}.plugin", model)
        try:
            params = decode_params(plugin, json.dumps(method.params))
            plugin.check(model, params)
        except InvalidRequest as error:
            raise error.within(field) from None
        except FailedPrecondition as error:
            raise type(error)(f"{field}.plugin: {error.message}") from None
        params = self._resolve([*users, plugin], params, f"{field}.params", model)
        self.found.append(plugin)
        return method.resolved(field, params.model_dump(mode="json"))

    def _find(self, users: list[AnyPlugin], name: str, kind: Kind, field: str) -> AnyPlugin:
        registration = self._plugins.get(name)
        fitting = sorted(
            item.plugin.name for item in self._plugins.values() if item.plugin.kind is kind
        )
        if registration is None:
            close = get_close_matches(name, fitting, n=3) or fitting[:3]
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise InvalidRequest.field(field, f"there is no plugin {name!r}{hint}")
        plugin = registration.plugin
        if plugin.kind is not kind:
            raise InvalidRequest.field(
                field,
                f"{name} is of kind {plugin.kind}, where {users[-1].name} takes one of {kind}",
            )
        if name in [user.name for user in users]:
            raise InvalidRequest.field(field, f"{name} cannot use itself")
        return plugin

    def _check_needs(
        self, users: list[AnyPlugin], plugin: AnyPlugin, field: str, model: Classifier
    ) -> None:
        try:
            check_capabilities(plugin, model)
        except MissingCapability as error:
            raise MissingCapability(
                f"{field}: {error.message}", violations=[Violation(field, error.message)]
            ) from None
        if plugin.rows is not Rows.INDEPENDENT and users[0].rows is Rows.INDEPENDENT:
            raise InvalidRequest.field(
                field,
                f"{plugin.name} treats the rows of a call as one group, which {users[0].name} "
                "does not",
            )
        for name, tensor in plugin.tensors.items():
            if tensor.required and name not in self._tensors:
                declared = name in users[0].tensors
                raise self._missing(
                    users, plugin, f"the auxiliary tensor {name!r}", declared, field
                )
        for name, role in plugin.models.items():
            if role.required and name not in self._models:
                declared = name in users[0].models
                raise self._missing(users, plugin, f"a second model {name!r}", declared, field)
            if name in self._models and (lack := role.requires - self._models[name].capabilities):
                raise MissingCapability(
                    f"models.{name}: {plugin.name} requires {', '.join(sorted(lack))} of it"
                )

    @staticmethod
    def _missing(
        users: list[AnyPlugin], plugin: AnyPlugin, what: str, declared: bool, field: str
    ) -> InvalidRequest:
        why = "was not given" if declared else f"{users[0].name} does not hand on"
        return InvalidRequest.field(field, f"{plugin.name} needs {what}, which {why}")
