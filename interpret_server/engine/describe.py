"""What is told about a plugin, from its class, and about a classifier made without a file."""

import inspect
from typing import Any

from ..models.abilities import NO_CLASSES
from ..models.classifier import Capability, Classifier
from ..models.manifest import InputSpec, Manifest
from ..plugin import result_fields
from ..registry import AnyPlugin, Registration, summary
from .api import (
    AuxInfo,
    InputInfo,
    LayerInfo,
    ModelInfo,
    ModelRoleInfo,
    PluginInfo,
    ResultField,
    Verification,
)


def describe_plugin(registration: Registration) -> PluginInfo:
    """A plugin's page: its names, requirements, parameters and result."""
    plugin = type(registration.plugin)
    return PluginInfo(
        name=plugin.name,
        kind=plugin.kind.value,
        api=plugin.api,
        version=registration.version,
        distribution=registration.origin,
        summary=summary(plugin),
        description=inspect.cleandoc(plugin.__doc__ or ""),
        requires=frozenset(capability.value for capability in plugin.requires),
        rows=plugin.rows.value,
        inputs=plugin.inputs.value,
        target_kinds=frozenset(kind.value for kind in plugin.target_kinds),
        schema=_schema(plugin),
        fields=tuple(
            ResultField(name, role.value, description)
            for name, (role, description) in result_fields(plugin.result_type).items()
        ),
        tensors=tuple(
            AuxInfo(name, item.description, item.like_input, item.required)
            for name, item in plugin.tensors.items()
        ),
        models=describe_roles(registration.plugin),
    )


def describe_roles(plugin: AnyPlugin) -> tuple[ModelRoleInfo, ...]:
    """The second models that a plugin may be given."""
    return tuple(
        ModelRoleInfo(
            name,
            item.description,
            frozenset(capability.value for capability in item.requires),
            item.required,
            item.same_inputs,
            item.output.value,
        )
        for name, item in plugin.models.items()
    )


def _schema(plugin: type[AnyPlugin]) -> dict[str, Any]:
    schema: dict[str, Any] = plugin.params_type.model_json_schema()
    for name, kind in plugin.uses.items():
        schema["properties"][name]["x-plugin-kind"] = kind.value
    return schema


def describe_classifier(name: str, classifier: Classifier, max_batch: int) -> ModelInfo:
    """The page of a classifier that was made in this process, not read from a file."""
    bounds = classifier.bounds if Capability.BOUNDS in classifier.capabilities else None
    dtype = str(classifier.dtype).removeprefix("torch.")
    spec = InputSpec.model_validate(
        {"shape": classifier.input_shape, "layout": classifier.input_layout, "bounds": bounds}
    )
    return ModelInfo(
        name=name,
        version="1",
        format="module",
        form="graph",
        form_reason="given as a classifier, without a file",
        sha256=classifier.sha256,
        size=0,
        device=str(classifier.device),
        precision=dtype,
        input_name="input",
        output_name="logits",
        input_shape=classifier.input_shape,
        input_dtype=dtype,
        input_layout=classifier.input_layout,
        bounds=None if bounds is None else (bounds.lower, bounds.upper),
        classes=classifier.classes,
        labels=classifier.labels or (),
        logits_from="values"
        if classifier.lacking.get(Capability.SCORES) == NO_CLASSES
        else "logits",
        layers=tuple(
            LayerInfo(layer.name, layer.kind, layer.shape) for layer in classifier.layers.values()
        ),
        capabilities=frozenset(item.value for item in classifier.capabilities),
        lacking={item.value: why for item, why in classifier.lacking.items()},
        verification=Verification("none", 0.0, 0.0, (), 0),
        notes=(),
        manifest=Manifest(inputs=(spec,), labels=classifier.labels),
        max_batch=max_batch,
        inputs=(
            InputInfo(
                name="input",
                kind="values",
                shape=classifier.input_shape,
                dtype=dtype,
                layout=classifier.input_layout,
                bounds=None if bounds is None else (bounds.lower, bounds.upper),
            ),
        ),
        explained_shape=classifier.input_shape,
    )
