"""`versions.toml`: which versions of a model are served, and under which names."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ...errors import InvalidRequest, Violation
from .paths import NAME, NAME_RULE, VERSIONS, read_text

LATEST, ALL = "latest", "all"
AT_START, ON_DEMAND = "at_start", "on_demand"
_BYTES = 1 << 20


class Serving(BaseModel):
    """What a `versions.toml` says; without one, the newest version is served alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    serve: str | tuple[str, ...] = Field(
        LATEST, description='"latest", "all", or a list of versions.'
    )
    default: str | None = Field(
        None, description="The version that the bare name means; the newest one that is served."
    )
    labels: dict[str, str] = Field({}, description="Other names of versions: label -> version.")

    load: str = Field(
        AT_START, description='"at_start", or "on_demand": when the model is first called.'
    )

    @field_validator("load", mode="before")
    @classmethod
    def _known_time(cls, value: Any) -> Any:
        if value not in (AT_START, ON_DEMAND):
            raise ValueError(f'give "{AT_START}" or "{ON_DEMAND}"')
        return value

    @field_validator("serve", mode="before")
    @classmethod
    def _known_choice(cls, value: Any) -> Any:
        words = isinstance(value, str) and value in (LATEST, ALL)
        listed = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
        if not words and not listed:
            raise ValueError('give "latest", "all", or a list of versions such as ["1", "3"]')
        return value

    @field_validator("default", mode="before")
    @classmethod
    def _one_version(cls, value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError('give one version in quotes, such as "2"')
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _labels_to_versions(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError('give a table such as {stable = "1", canary = "3"}')
        for label, version in value.items():
            if not isinstance(version, str):
                raise ValueError(f'{label} needs one version in quotes, such as "2"')
            if not NAME.fullmatch(label):
                raise ValueError(f"{label[:40]!r} is no label; use {NAME_RULE}")
        return value

    def wanted(self, versions: Sequence[str]) -> tuple[str, ...]:
        """Those of the versions, oldest first, that are to be served."""
        if self.serve == LATEST:
            return tuple(versions[-1:])
        return tuple(item for item in versions if self.serve == ALL or item in self.serve)

    def missing(self, versions: Sequence[str]) -> tuple[str, ...]:
        """The listed versions that are not there."""
        listed = () if isinstance(self.serve, str) else self.serve
        return tuple(dict.fromkeys(item for item in listed if item not in versions))


def read_serving(root: Path, name: str) -> Serving:
    """The `versions.toml` of a model.

    Raises:
        InvalidRequest: with one violation per wrong field, such as `versions.serve`.
    """
    text = read_text(root, root / name / VERSIONS, name, _BYTES)
    if text is None:
        return Serving.model_validate({})
    try:
        return Serving.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidRequest.field(
            "versions", f"the versions.toml of {name!r} is not TOML: {error}"
        ) from None
    except ValidationError as error:
        violations = [_violation(item) for item in error.errors()]
    text = "; ".join(f"{item.field}: {item.description}" for item in violations)
    raise InvalidRequest(f"the versions.toml of {name!r}: {text}", violations=violations)


def _violation(item: Any) -> Violation:
    field = f"versions.{item['loc'][0]}"
    if item["type"] == "extra_forbidden":
        return Violation(field, "no such field; there are serve, default, labels and load")
    return Violation(field, item["msg"].removeprefix("Value error, "))
