"""A second plugin that a request names among the parameters of the first."""

from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    PrivateAttr,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


class Method(BaseModel):
    """A plugin by name, with parameters of its own; its name alone stands for the defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    plugin: str = Field(min_length=1, max_length=80, description="Name of the plugin.")
    params: dict[str, JsonValue] = Field({}, description="Its parameters; others are defaults.")
    _field: str = PrivateAttr("params.method")

    @property
    def field(self) -> str:
        """Where it stands in the request, such as `params.method`."""
        return self._field

    def resolved(self, field: str, params: dict[str, JsonValue]) -> "Method":
        """The same with every parameter filled in, and with its place in the request."""
        whole = Method(plugin=self.plugin, params=params)
        whole._field = field
        return whole

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"plugin": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        whole = handler.resolve_ref_schema(handler(core_schema))
        name = {"type": "string", "minLength": 1, "maxLength": 80}
        schema: JsonSchemaValue = {"anyOf": [name, whole]}
        return schema
