"""What a plugin declares of itself; for the conformance suite."""

import json
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from ..models.classifier import Capability
from ..models.targets import TargetKind
from ..plugin import (
    API_VERSION,
    AuxTensor,
    Inputs,
    Kind,
    ModelRole,
    Params,
    Plugin,
    Role,
    Rows,
    result_fields,
)


def declaration_breaches(plugin: Plugin[Any, Any]) -> Iterator[str]:
    """One sentence for each thing that is missing or of the wrong kind."""
    cls = type(plugin)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", str(getattr(cls, "name", ""))):
        yield "`name` must be lowercase letters, digits and underscores"
    if not isinstance(getattr(cls, "kind", None), Kind):
        yield "`kind` must be one of Kind"
    if cls.api != API_VERSION:
        yield f"`api` is {cls.api}; the contract's version is {API_VERSION}"
    if not (cls.__dict__.get("__doc__") or "").strip():
        yield "the class has no docstring; it is the plugin's page"
    sets = {"requires": Capability, "target_kinds": TargetKind}
    for attribute, member in sets.items():
        value = getattr(cls, attribute)
        if not isinstance(value, frozenset) or not all(isinstance(v, member) for v in value):
            yield f"`{attribute}` must be a frozenset of {member.__name__}"
    if not isinstance(cls.rows, Rows):
        yield "`rows` must be one of Rows"
    if not isinstance(cls.inputs, Inputs):
        yield "`inputs` must be one of Inputs"
    for name, tensor in cls.tensors.items():
        if not isinstance(tensor, AuxTensor) or not tensor.description:
            yield f"the auxiliary tensor {name} must be an AuxTensor with a description"
    for name, model in cls.models.items():
        if not isinstance(model, ModelRole) or not model.description:
            yield f"the second model {name} must be a ModelRole with a description"
    if not all(isinstance(kind, Kind) for kind in cls.uses.values()):
        yield "`uses` must give a Kind for each parameter that names a second plugin"
    yield from _params_breaches(getattr(cls, "params_type", None))
    yield from _result_type_breaches(getattr(cls, "result_type", None), cls.rows)


def _params_breaches(params: Any) -> Iterator[str]:
    if not (isinstance(params, type) and issubclass(params, Params)):
        yield "the parameters must derive from Params: class P(Plugin[MyParams, MyResult])"
        return
    if params.model_config.get("extra") != "forbid":
        yield "the parameters must forbid unknown names, as Params does"
    try:
        json.dumps(params.model_json_schema())
    except Exception as error:
        yield f"the parameters have no JSON schema: {error}"
    for name, field in params.model_fields.items():
        if not field.description:
            yield f"the parameter {name} has no description"


def _result_type_breaches(result: Any, rows: Any) -> Iterator[str]:
    if not (isinstance(result, type) and is_dataclass(result)):
        yield "the result must be a dataclass: class P(Plugin[MyParams, MyResult])"
        return
    if not getattr(result, "__dataclass_params__").frozen:  # noqa: B009
        yield "the result's dataclass must be frozen"
    for name, (role, description) in result_fields(result).items():
        if not description:
            yield f"the result's field {name} has no description; make it with output or metric"
        if role is Role.GROUP and rows is Rows.INDEPENDENT:
            yield f"the result's field {name} is about all rows, and `rows` is INDEPENDENT"
