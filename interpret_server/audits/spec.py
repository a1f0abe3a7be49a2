"""What an audit is asked to do; checked as plugins' parameters are."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SuiteName = Literal["quick", "standard", "black_box", "corruption"]
NormName = Literal["linf", "l2", "l1"]
Radius = Annotated[float, Field(gt=0)]

MAX_BATCH = 1024
MAX_EPSILONS = 16
MAX_SEED = (1 << 63) - 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Threat(_Model):
    """Changes of at most `epsilons` in a norm, in the units of the model's bounds."""

    norm: NormName = Field("linf", description="Norm that a change is measured in.")
    epsilons: tuple[Radius, ...] = Field(
        min_length=1,
        max_length=MAX_EPSILONS,
        description="Radii, in the units of the model's bounds; each gets the whole suite.",
    )

    @field_validator("epsilons")
    @classmethod
    def _ascending(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(value)))


class AuditAttack(_Model):
    """An attack of a suite that the caller writes."""

    plugin: str = Field(min_length=1, max_length=128, description="Name of an attack plugin.")
    name: str = Field(
        "",
        max_length=64,
        pattern=r"^[A-Za-z0-9_.-]*$",
        description="What the report calls it; the plugin's name if left out.",
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="Parameters of the plugin; norm and epsilon come from the threat model.",
    )

    @property
    def label(self) -> str:
        """What the report calls it."""
        return self.name or self.plugin


class Budget(_Model):
    """What an audit may spend; what it leaves undone is told in the report."""

    seconds: float | None = Field(
        None, gt=0, description="Computing time after which no further batch begins."
    )
    queries: int | None = Field(
        None,
        ge=100,
        le=10_000_000,
        description="Queries that each black-box attack may spend on a sample.",
    )


class AuditSpec(_Model):
    """A request for an audit."""

    model: str = Field(min_length=1, max_length=128, description="Name of a loaded model.")
    title: str = Field("", max_length=200, description="Shown at the head of the report.")
    suite: SuiteName = Field(
        "standard",
        description="quick: few steps of gradient attacks; standard: the attacks of AutoAttack and "
        "smallest changes; black_box: attacks that need answers alone; corruption: everyday "
        "faults of images.",
    )
    attacks: tuple[AuditAttack, ...] = Field(
        (), max_length=32, description="Attacks in turn, instead of those of a suite."
    )
    threats: tuple[Threat, ...] = Field(
        (), max_length=8, description="Threat models, one for each norm; none for corruptions."
    )
    minimal: bool = Field(
        True, description="Seek the smallest change of every sample too; not in the suite quick."
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Sample i draws from seed + i.")
    batch_size: int | None = Field(
        None,
        ge=1,
        le=MAX_BATCH,
        description="Samples of a batch; null: as many as the model takes at once, at most 128.",
    )
    budget: Budget = Field(default_factory=Budget, description="What may be spent.")
    confirm_small_epsilon: bool = Field(
        False,
        description="Accept an epsilon under a thousandth of the width of the bounds, which is "
        "usually a mistake of units.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        norms = [threat.norm for threat in self.threats]
        if len(set(norms)) != len(norms):
            raise ValueError("threats: name each norm once, with all of its epsilons")
        labels = [attack.label for attack in self.attacks]
        if len(set(labels)) != len(labels):
            raise ValueError("attacks: two attacks bear one name; give each a name of its own")
        if self.suite == "corruption" and not self.attacks:
            if self.threats:
                raise ValueError("threats: corruptions have no norm and no epsilon")
        elif not self.threats:
            raise ValueError("threats: name a norm and at least one epsilon")
        return self
