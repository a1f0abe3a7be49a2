"""What is known of models and plugins, as messages."""

import json
from typing import Any

from interpret_api.v1 import model_service_pb2 as models
from interpret_api.v1 import plugin_service_pb2 as plugins

from ..engine import api


def from_model(info: api.ModelInfo) -> models.Model:
    """What is known of a model."""
    message = models.Model(
        name=info.name,
        version=info.version,
        format=info.format,
        form=info.form,
        form_reason=info.form_reason,
        sha256=info.sha256,
        size=info.size,
        device=info.device,
        precision=info.precision,
        input_name=info.input_name,
        output_name=info.output_name,
        input_shape=info.input_shape,
        input_dtype=info.input_dtype,
        input_layout=info.input_layout,
        classes=info.classes,
        labels=info.labels,
        logits_from=info.logits_from,
        layers=[
            models.Layer(name=layer.name, kind=layer.kind, shape=layer.shape)
            for layer in info.layers
        ],
        capabilities=sorted(info.capabilities),
        lacking=dict(info.lacking),
        verification=models.Verification(
            reference=info.verification.reference,
            max_difference=info.verification.max_difference,
            relative_difference=info.verification.relative_difference,
            batch_sizes=info.verification.batch_sizes,
            inputs=info.verification.inputs,
        ),
        notes=info.notes,
        manifest_json=info.manifest.model_dump_json(exclude_none=True),
        max_batch=info.max_batch,
        inputs=[_from_input(item) for item in info.inputs],
        explained_shape=info.explained_shape,
    )
    _fill_bounds(info.bounds, message)
    return message


def _from_input(item: api.InputInfo) -> models.ModelInput:
    message = models.ModelInput(
        name=item.name,
        kind=item.kind,
        shape=item.shape,
        dtype=item.dtype,
        layout=item.layout,
        limit=item.limit or 0,
        integers=item.integers,
        features=item.features,
    )
    _fill_bounds(item.bounds, message)
    return message


def _fill_bounds(bounds: tuple[float, float] | None, message: Any) -> None:
    if bounds is not None:
        message.bounds.lower, message.bounds.upper = bounds
        message.bounds.SetInParent()


def from_plugin(info: api.PluginInfo) -> plugins.Plugin:
    """What is known of a plugin."""
    return plugins.Plugin(
        name=info.name,
        kind=info.kind,
        api=info.api,
        version=info.version,
        distribution=info.distribution,
        summary=info.summary,
        description=info.description,
        requires=sorted(info.requires),
        rows=info.rows,
        inputs=info.inputs,
        target_kinds=sorted(info.target_kinds),
        params_schema_json=json.dumps(info.schema),
        result_fields=[
            plugins.ResultField(name=item.name, role=item.role, description=item.description)
            for item in info.fields
        ],
        tensors=[
            plugins.AuxTensor(
                name=item.name,
                description=item.description,
                like_input=item.like_input,
                required=item.required,
            )
            for item in info.tensors
        ],
        models=[
            plugins.ModelRole(
                name=item.name,
                description=item.description,
                requires=sorted(item.requires),
                required=item.required,
                same_inputs=item.same_inputs,
                output=item.output,
            )
            for item in info.models
        ],
    )
