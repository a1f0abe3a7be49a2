"""The steps of an audit, settled when it is created and stored with it.

An audit is a table of units: every stage on every batch of samples, batch by batch. A unit is done
whole or not at all, and what it computes depends on its stage, its samples, the seed and what
earlier units of the same batch found.
"""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ..engine.api import ModelInfo, PluginInfo
from ..errors import FailedPrecondition, InvalidRequest, NotFound
from .schema import violations
from .spec import AuditSpec, NormName, Threat
from .suites import SEVERITIES, UNBOUNDED_STEPS, SuiteAttack, attacks_of, minimal_of

FORMAT = 1
_BATCH = 128
_CORRUPTIONS = "corruptions"
_OURS = ("norm", "epsilon", "confirm_small_epsilon")  # parameters that the threat models settle
_AT_RANDOM = (
    "The model answers at random, so the gradients of the suite standard are means of 20 passes."
)


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

    @property
    def total(self) -> int:
        """How many units there are."""
        once = sum(stage.first_batch for stage in self.stages)
        return self.batches * (len(self.stages) - once) + once

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
        InvalidRequest: the model takes tokens or several inputs, or a radius, an attack or a
            parameter makes no sense for it.
        NotFound: there is no such plugin.
        FailedPrecondition: the model lacks what an attack needs.
    """
    if samples < 1:
        raise InvalidRequest.field("inputs", "there are no samples")
    _check_model(model)
    planner = _Planner(spec, model, {item.name: item for item in plugins})
    stages = (Stage(key="clean", kind=StageKind.CLEAN), *planner.stages())
    if len(stages) == 1:
        raise FailedPrecondition(
            f"suite: no attack of it can run on {model.name}: {' '.join(planner.notes)}"
        )
    size = min(spec.batch_size or _BATCH, model.max_batch, samples)
    return Plan(samples=samples, batch_size=size, stages=stages, notes=planner.notes)


def _check_model(model: ModelInfo) -> None:
    if len(model.inputs) > 1 or any(item.kind != "values" for item in model.inputs):
        raise InvalidRequest.field(
            "model", f"{model.name} takes several inputs or tokens; audits change one array"
        )
    if model.logits_from == "values":
        raise InvalidRequest.field("model", f"{model.name} gives values, and names no class")
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
        self._notes: dict[str, None] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._notes)

    def stages(self) -> Iterator[Stage]:
        """All but the first."""
        if self._spec.suite == "corruption" and not self._spec.attacks:
            yield from self._corruptions()
            return
        at_random = "deterministic" not in self._model.capabilities
        if at_random and self._spec.suite == "standard" and not self._spec.attacks:
            self._note(_AT_RANDOM)
        gradients = False
        self._check_attacks()
        for position, threat in enumerate(self._spec.threats):
            self._check_radii(position, threat)
            attacks = self._able(attacks_of(self._spec, threat.norm, at_random=at_random))
            within = [item for item in attacks if self._has(item.plugin, "epsilon")]
            nearest = [item for item in attacks if item not in within]
            nearest += self._able(minimal_of(self._spec, threat.norm))
            within, nearest = (self._in_norm(some, threat.norm) for some in (within, nearest))
            for epsilon in threat.epsilons:
                yield from (self._attack(item, threat.norm, epsilon) for item in within)
            yield from (self._minimal(item, threat.norm) for item in nearest)
            if not nearest and self._spec.suite == "black_box" and self._seeks_smallest:
                self._note(f"No attack of the suite seeks the smallest change in {threat.norm}.")
            gradients |= any(self._needs_gradients(item.plugin) for item in within + nearest)
        if gradients and "pgd" in self._plugins and not self._lacking("pgd"):
            yield self._unbounded()

    @property
    def _seeks_smallest(self) -> bool:
        return self._spec.minimal and not self._spec.attacks

    def _attack(self, attack: SuiteAttack, norm: NormName, epsilon: float) -> Stage:
        params = self._params(attack, norm) | {"epsilon": epsilon}
        if self._spec.confirm_small_epsilon and self._has(attack.plugin, "confirm_small_epsilon"):
            params["confirm_small_epsilon"] = True
        return Stage(
            key=f"{norm}:{epsilon!r}:{attack.name}",
            kind=StageKind.ATTACK,
            attack=attack.name,
            plugin=attack.plugin,
            params=params,
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
            params=self._params(attack, norm),
            norm=norm,
            gradients=self._needs_gradients(attack.plugin),
        )

    def _unbounded(self) -> Stage:
        """PGD anywhere within the bounds: what stands there has gradients that lead nowhere."""
        return Stage(
            key="unbounded:linf",
            kind=StageKind.UNBOUNDED,
            attack="pgd without a radius",
            plugin="pgd",
            params={"norm": "linf", "steps": UNBOUNDED_STEPS, "epsilon": self._width},
            norm="linf",
            epsilon=self._width,
            gradients=True,
            first_batch=True,
        )

    def _corruptions(self) -> Iterator[Stage]:
        if len(self._model.input_shape) != 3:
            raise InvalidRequest.field(
                "suite", f"{self._model.name} takes no images, which corruptions are made for"
            )
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

    def _check_attacks(self) -> None:
        """Refuse what a caller's list names that no audit can run."""
        norms = {threat.norm for threat in self._spec.threats}
        for position, attack in enumerate(self._spec.attacks):
            place = f"attacks[{position}]"
            plugin = self._find(attack.plugin, f"{place}.plugin")
            if plugin.rows != "independent":
                raise InvalidRequest.field(
                    f"{place}.plugin",
                    f"{plugin.name} changes its rows together, and samples are judged one by one",
                )
            needed = [role.required for role in plugin.models]
            needed += [tensor.required for tensor in plugin.tensors]
            if any(needed):
                raise InvalidRequest.field(
                    f"{place}.plugin", f"{plugin.name} takes more than a model and its inputs"
                )
            for name in _OURS:
                if name in attack.params:
                    raise InvalidRequest.field(
                        f"{place}.params.{name}", "the threat models say so; leave it out"
                    )
            if attack.params.get("targeted"):
                raise InvalidRequest.field(
                    f"{place}.params.targeted", "an audit leaves the true class; leave it out"
                )
            if wrong := tuple(violations(plugin.schema, attack.params, f"{place}.params")):
                told = "; ".join(f"{item.field}: {item.description}" for item in wrong)
                raise InvalidRequest(told, violations=wrong)
            if not norms & self._norms(plugin):
                raise InvalidRequest.field(
                    f"{place}.plugin", f"{plugin.name} takes no norm of the threat models"
                )

    def _params(self, attack: SuiteAttack, norm: NormName) -> dict[str, Any]:
        params, most = {"norm": norm, **attack.params}, self._spec.budget.queries
        counts = self._has(attack.plugin, "queries") and not self._needs_gradients(attack.plugin)
        if most is not None and counts:
            asked = attack.params.get("queries", most) if attack.place else most
            params["queries"] = min(most, asked) if isinstance(asked, int) else asked
        return params

    def _able(self, attacks: Sequence[SuiteAttack]) -> list[SuiteAttack]:
        """The attacks that the model can be attacked by; the black-box suite leaves out others."""
        able = []
        for attack in attacks:
            lacking = self._lacking(attack.plugin)
            if not lacking:
                able.append(attack)
                continue
            why = self._model.lacking.get(lacking[0], f"it lacks {lacking[0]}")
            if attack.place or self._spec.suite != "black_box":
                raise FailedPrecondition(
                    f"{attack.place or 'suite'}: {attack.name} cannot run on {self._model.name} "
                    f"({why}); the suite black_box needs answers alone"
                )
            self._note(f"{attack.name} is left out: {why}.")
        return able

    def _in_norm(self, attacks: Sequence[SuiteAttack], norm: NormName) -> list[SuiteAttack]:
        found = []
        for attack in attacks:
            if norm in self._norms(self._find(attack.plugin)):
                found.append(attack)
            else:
                self._note(f"{attack.name} is left out in {norm}, which it does not know.")
        return found

    @staticmethod
    def _norms(plugin: PluginInfo) -> set[str]:
        """Those of a plugin's parameter `norm`; none where it has no such parameter."""
        norm = plugin.schema.get("properties", {}).get("norm", {})
        return {*norm.get("enum", ()), *([norm["const"]] if "const" in norm else ())}

    def _has(self, plugin: str, param: str) -> bool:
        return param in self._find(plugin).schema.get("properties", {})

    def _lacking(self, plugin: str) -> list[str]:
        return sorted(self._find(plugin).requires - self._model.capabilities)

    def _needs_gradients(self, plugin: str) -> bool:
        return "gradient" in self._find(plugin).requires

    def _find(self, name: str, field: str = "suite") -> PluginInfo:
        found = self._plugins.get(name)
        if found is None:
            attacks = [item.name for item in self._plugins.values() if item.kind == "attack"]
            close = get_close_matches(name, attacks, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise NotFound(f"{field}: there is no plugin {name[:80]!r}{hint}")
        if found.kind != "attack":
            raise InvalidRequest.field(field, f"{name} is no attack")
        return found

    def _note(self, sentence: str) -> None:
        self._notes[sentence] = None
