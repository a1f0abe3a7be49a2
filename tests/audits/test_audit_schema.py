"""Parameters against JSON schemas: as pydantic itself judges the same values."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interpret_server.audits.schema import violations


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    plugin: str = Field(pattern="^[a-z]+$")
    params: dict[str, Any] = {}


class Params(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int = Field(3, ge=1, le=10)
    size: float | None = Field(None, gt=0, lt=2)
    norm: Literal["linf", "l2"] = "linf"
    only: Literal["l2"] = "l2"
    flag: bool = False
    names: list[Literal["a", "b"]] | None = Field(None, min_length=1, max_length=2)
    method: Inner | None = None
    several: tuple[Inner, ...] = ()


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"steps": 10, "size": 1.5, "norm": "l2", "only": "l2", "flag": True},
        {"steps": 2.0, "size": None, "names": ["a", "b"]},
        {"size": 1, "method": {"plugin": "pgd", "params": {"any": [1, {}]}}},
        {"several": [{"plugin": "pgd"}]},
    ],
)
def test_what_pydantic_takes_is_taken(good):
    Params.model_validate(good)
    assert list(violations(Params.model_json_schema(), good, "params")) == []


@pytest.mark.parametrize(
    ("bad", "field", "words"),
    [
        ({"steps": 0}, "steps", "at least 1"),
        ({"steps": 11}, "steps", "at most 10"),
        ({"steps": 2.5}, "steps", "of type integer"),
        ({"steps": None}, "steps", "of type integer"),
        ({"size": 0}, "size", "more than 0"),
        ({"size": 2}, "size", "less than 2"),
        ({"norm": "l1"}, "norm", "linf or l2"),
        ({"only": "l1"}, "only", "must be l2"),
        ({"flag": [1]}, "flag", "of type boolean"),
        ({"names": []}, "names", "0 items"),
        ({"names": ["a", "b", "a"]}, "names", "3 items"),
        ({"names": ["a", "c"]}, "names.1", "a or b"),
        ({"stepz": 1}, "stepz", "did you mean steps"),
        ({"method": {"plugin": "PGD"}}, "method.plugin", "match"),
        ({"method": {}}, "method.plugin", "required"),
        ({"method": {"plugin": "a", "more": 1}}, "method.more", "there are plugin, params"),
        ({"several": [{"plugin": "pgd"}, {}]}, "several.1.plugin", "required"),
    ],
)
def test_what_pydantic_refuses_is_refused_by_field(bad, field, words):
    with pytest.raises(ValidationError):
        Params.model_validate(bad)
    (found,) = violations(Params.model_json_schema(), bad, "params")
    assert found.field == f"params.{field}"
    assert words in found.description
