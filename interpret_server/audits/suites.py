"""The suites: which attacks an audit runs in turn, and which of them need gradients."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .spec import AuditSpec, NormName

SEVERITIES = (1, 2, 3, 4, 5)

_ALL: tuple[NormName, ...] = ("linf", "l2", "l1")


@dataclass(frozen=True)
class SuiteAttack:
    """An attack of a suite.

    Args:
        name: what the report calls it.
        plugin: that runs it.
        params: of the plugin, without norm and epsilon.
        norms: in which it is run.
        budgeted: the parameter that a budget of queries sets; empty where there is none.
    """

    name: str
    plugin: str
    params: Mapping[str, Any] = field(default_factory=dict)
    norms: tuple[NormName, ...] = _ALL
    budgeted: str = ""


def _stage(name: str, **params: Any) -> SuiteAttack:
    return SuiteAttack(name, "auto_attack", {"attacks": [name], **params})


_QUICK = (
    SuiteAttack("fgsm", "fgsm", norms=("linf",)),
    SuiteAttack("fgm", "fgm", norms=("l2",)),
    SuiteAttack("pgd", "pgd", {"steps": 20}),
    SuiteAttack("square", "square", {"queries": 300}, budgeted="queries"),
)
_STANDARD = (
    _stage("apgd_cross_entropy"),
    _stage("apgd_targeted"),
    _stage("fab_targeted"),
    SuiteAttack("square", "square", {"queries": 5000}, budgeted="queries"),
)
_BLACK_BOX = (
    SuiteAttack("random_noise", "random_noise", {"samples": 50}),
    SuiteAttack("square", "square", {"queries": 5000}, budgeted="queries"),
)
_SUITES = {"quick": _QUICK, "standard": _STANDARD, "black_box": _BLACK_BOX}
_MINIMAL = {
    "standard": (SuiteAttack("fab", "fab"),),
    "black_box": (
        SuiteAttack("hop_skip_jump", "hop_skip_jump", norms=("linf", "l2"), budgeted="queries"),
    ),
}


def attacks_of(spec: AuditSpec, norm: NormName) -> tuple[SuiteAttack, ...]:
    """The attacks on every radius of a norm, in turn."""
    if spec.attacks:
        return tuple(SuiteAttack(item.label, item.plugin, item.params) for item in spec.attacks)
    return tuple(item for item in _SUITES.get(spec.suite, ()) if norm in item.norms)


def minimal_of(spec: AuditSpec, norm: NormName) -> tuple[SuiteAttack, ...]:
    """The attacks that seek the smallest change in a norm."""
    if spec.attacks or not spec.minimal:
        return ()
    return tuple(item for item in _MINIMAL.get(spec.suite, ()) if norm in item.norms)
