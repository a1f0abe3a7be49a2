"""The steps of an audit, settled when it is created and stored with it.

An audit is a table of units: every stage on every batch of samples, batch by batch. A unit is done
whole or not at all, and what it computes depends on its stage, its samples, the seed and what
earlier units of the same batch found.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ..engine.api import ModelInfo, PluginInfo
from ..errors import FailedPrecondition, InvalidRequest, NotFound
from .spec import AuditSpec, NormName, Threat
from .suites import SEVERITIES, SuiteAttack, attacks_of, minimal_of

FORMAT = 1
_BATCH = 128
_STEPS = 100  # of the attack without a radius that checks for masked gradients
_CORRUPTIONS = "corruptions"


class StageKind(StrEnum):
    """What a stage does with its samples."""

    CLEAN = "clean"  # the original file's answers to the samples as they are
    ATTACK = "attack"  # at a radius, on samples that stand so far
    MINIMAL = "minimal"  # the smallest change, of every sample that is classified correctly
    CORRUPTION = "corruption"  # the same of every such sample
    UNBOUNDED = "unbounded"  # without a radius every sample must fall, or gradients are masked


class Stage(BaseModel):
    """What is done with every batch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str  # such as `linf:0.3:square`; of this plan alone
    kind: StageKind
    attack: str = ""  # what the report calls it
    plugin: str = ""
    params: dict[str, Any] = Field(default_factory=dict)  # norm, epsilon and all
    norm: NormName | None = None
    epsilon: float | None = None
    severity: int | None = None
    gradients: bool = False  # whether the plugin needs them
    first_batch: bool = False  # done with the first batch alone


class Unit(NamedTuple):
    """A stage on a batch."""

    batch: int
    stage: int


class Plan(BaseModel):
    """The units of an audit, in order: batch by batch, stage by stage.

    Args:
        format: of everything that is stored.
        samples: how many.
        batch_size: rows of a batch, but for the last one.
        stages: in turn.
        notes: what of the suite was left out, and why.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    samples: int
    batch_size: int
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()

    @property
    def batches(self) -> int:
        """How many."""
        return -(-self.samples // self.batch_size)

    def rows(self, batch: int) -> range:
        """The samples of a batch."""
        start = batch * self.batch_size
        return range(start, min(start + self.batch_size, self.samples))

    def units(self) -> Iterator[Unit]:
        """All of them, in order."""
        for batch in range(self.batches):
            for number, stage in enumerate(self.stages):
                if batch == 0 or not stage.first_batch:
                    yield Unit(batch, number)

    def stage(self, key: str) -> Stage:
        """The stage of a key."""
        return next(stage for stage in self.stages if stage.key == key)


def make_plan(
    spec: AuditSpec, model: ModelInfo, plugins: Sequence[PluginInfo], samples: int
) -> Plan:
    """Settle what an audit does.

    Raises:
        InvalidRequest: the model takes tokens or several inputs, or a radius or a parameter makes
            no sense for it.
        NotFound: there is no such plugin.
        FailedPrecondition: the model lacks what an attack needs.
    """
    _check_model(model)
    planner = _Planner(spec, model, {item.name: item for item in plugins})
    stages = tuple(planner.stages())
    if len(stages) == 1:
        raise FailedPrecondition(
            f"suite: no attack of it can run on {model.name}: {' '.join(planner.notes)}"
        )
    size = min(spec.batch_size or min(_BATCH, model.max_batch), model.max_batch, samples)
    return Plan(samples=samples, batch_size=size, stages=stages, notes=tuple(planner.notes))


def _check_model(model: ModelInfo) -> None:
    if len(model.inputs) > 1 or any(item.kind != "values" for item in model.inputs):
        raise InvalidRequest.field(
            "model", f"{model.name} takes several inputs or tokens; audits change one array"
        )
    if model.bounds is None:
        raise FailedPrecondition(
            f"model: {model.name} states no bounds of its input; load it with `bounds` in its "
            "manifest, so that a radius means something"
        )


class _Planner:
    def __init__(
        self, spec: AuditSpec, model: ModelInfo, plugins: Mapping[str, PluginInfo]
    ) -> None:
        assert model.bounds is not None
        self._spec, self._model, self._plugins = spec, model, plugins
        self._width = model.bounds[1] - model.bounds[0]
        self.notes: list[str] = []

    def stages(self) -> Iterator[Stage]:
        yield Stage(key="clean", kind=StageKind.CLEAN)
        if self._spec.suite == "corruption" and not self._spec.attacks:
            yield from self._corruptions()
        for position, threat in enumerate(self._spec.threats):
            self._check_radii(position, threat)
            for epsilon in threat.epsilons:
                for attack in self._able(attacks_of(self._spec, threat.norm)):
                    yield self._attack(attack, threat.norm, epsilon)
            for attack in self._able(minimal_of(self._spec, threat.norm)):
                yield self._minimal(attack, threat.norm)
            yield from self._unbounded(threat.norm)

    def _attack(self, attack: SuiteAttack, norm: NormName, epsilon: float) -> Stage:
        params = {"norm": norm, **self._params(attack), "epsilon": epsilon}
        if self._spec.confirm_small_epsilon:
            params["confirm_small_epsilon"] = True
        known = self._plugins[attack.plugin].schema.get("properties", {})
        for name in ("epsilon", "norm"):
            if name not in known and (name == "epsilon" or norm != "linf"):
                raise InvalidRequest.field(
                    "attacks", f"{attack.name}: {attack.plugin} takes no {name} for a threat model"
                )
        return Stage(
            key=f"{norm}:{epsilon:g}:{attack.name}",
            kind=StageKind.ATTACK,
            attack=attack.name,
            plugin=attack.plugin,
            params={name: value for name, value in params.items() if name in known},
            norm=norm,
            epsilon=epsilon,
            gradients=self._needs_gradients(attack.plugin),
        )

    def _minimal(self, attack: SuiteAttack, norm: NormName) -> Stage:
        return Stage(
            key=f"minimal:{norm}:{attack.name}",
            kind=StageKind.MINIMAL,
            attack=attack.name,
            plugin=attack.plugin,
            params={"norm": norm, **self._params(attack)},
            norm=norm,
            gradients=self._needs_gradients(attack.plugin),
        )

    def _unbounded(self, norm: NormName) -> Iterator[Stage]:
        if norm != "linf" or not self._can_run("pgd") or self._spec.suite == "black_box":
            return
        yield Stage(
            key=f"unbounded:{norm}",
            kind=StageKind.UNBOUNDED,
            attack="pgd without a radius",
            plugin="pgd",
            params={"norm": norm, "epsilon": self._width, "steps": _STEPS},
            norm=norm,
            epsilon=self._width,
            gradients=True,
            first_batch=True,
        )

    def _corruptions(self) -> Iterator[Stage]:
        plugin = self._find(_CORRUPTIONS)
        for name in plugin.schema["properties"]["corruptions"]["default"]:
            for severity in SEVERITIES:
                yield Stage(
                    key=f"corruption:{name}:{severity}",
                    kind=StageKind.CORRUPTION,
                    attack=name,
                    plugin=_CORRUPTIONS,
                    params={"corruptions": [name], "severity": severity},
                    severity=severity,
                )

    def _check_radii(self, position: int, threat: Threat) -> None:
        field, smallest = f"threats[{position}].epsilons", threat.epsilons[0]
        if smallest < self._width / 1000 and not self._spec.confirm_small_epsilon:
            raise InvalidRequest.field(
                field,
                f"{smallest:g} is under a thousandth of the width of the bounds, {self._width:g}; "
                "epsilon is in their units: scale it, or set confirm_small_epsilon",
            )
        if threat.norm == "linf" and threat.epsilons[-1] > self._width:
            raise InvalidRequest.field(
                field, f"{threat.epsilons[-1]:g} is more than the width of the bounds"
            )

    def _params(self, attack: SuiteAttack) -> dict[str, Any]:
        params = dict(attack.params)
        if attack.budgeted and self._spec.budget.queries is not None:
            params[attack.budgeted] = self._spec.budget.queries
        return params

    def _able(self, attacks: Sequence[SuiteAttack]) -> Iterator[SuiteAttack]:
        """The attacks that the model can be attacked by; the black-box suite leaves out others."""
        for attack in attacks:
            lacking = self._lacking(attack.plugin)
            if not lacking:
                yield attack
            elif self._spec.suite != "black_box" or self._spec.attacks:
                why = self._model.lacking.get(lacking[0], f"it lacks {lacking[0]}")
                raise FailedPrecondition(
                    f"suite: {attack.name} cannot run on {self._model.name} ({why}); the suite "
                    "black_box needs answers alone"
                )
            else:
                note = f"{attack.name} is left out: the model lacks {' and '.join(lacking)}."
                if note not in self.notes:
                    self.notes.append(note)

    def _can_run(self, plugin: str) -> bool:
        return plugin in self._plugins and not self._lacking(plugin)

    def _lacking(self, plugin: str) -> list[str]:
        return sorted(self._find(plugin).requires - self._model.capabilities)

    def _needs_gradients(self, plugin: str) -> bool:
        return "gradient" in self._find(plugin).requires

    def _find(self, name: str) -> PluginInfo:
        found = self._plugins.get(name)
        if found is None:
            raise NotFound(f"attacks: there is no plugin {name[:80]!r}")
        if found.kind != "attack":
            raise InvalidRequest.field("attacks", f"{name} is no attack")
        return found
