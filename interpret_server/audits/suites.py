"""The suites: which attacks an audit runs in turn, and which of them need gradients."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .spec import AuditSpec, NormName

SEVERITIES = (1, 2, 3, 4, 5)
UNBOUNDED_STEPS = 100  # of the attack without a radius that checks for masked gradients

_ALL: tuple[NormName, ...] = ("linf", "l2", "l1")


@dataclass(frozen=True)
class SuiteAttack:
    """An attack of a suite, or of a caller's list.

    Args:
        name: what the report calls it.
        plugin: that runs it.
        params: of the plugin, without norm and epsilon.
        norms: in which it is run.
        place: where a caller's list names it, such as `attacks[2]`; empty in a suite.
    """

    name: str
    plugin: str
    params: Mapping[str, Any] = field(default_factory=dict)
    norms: tuple[NormName, ...] = _ALL
    place: str = ""


def _stage(name: str, **params: Any) -> SuiteAttack:
    return SuiteAttack(name, "auto_attack", {"attacks": [name], **params})


def _averaged(name: str) -> SuiteAttack:
    return _stage(name, version="random")


_SQUARE = SuiteAttack("square", "square", {"queries": 5000})
_QUICK = (
    SuiteAttack("fgsm", "fgsm", norms=("linf",)),
    SuiteAttack("fgm", "fgm", norms=("l2", "l1")),
    SuiteAttack("pgd", "pgd", {"steps": 20}),
    SuiteAttack("square", "square", {"queries": 300}),
)
_STANDARD = (
    _stage("apgd_cross_entropy"),
    _stage("apgd_targeted"),
    _stage("fab_targeted"),
    _SQUARE,
)
# AutoAttack's for classifiers that answer at random: each gradient is a mean of 20 passes.
_AT_RANDOM = (_averaged("apgd_cross_entropy"), _averaged("apgd_dlr"), _SQUARE)
_BLACK_BOX = (SuiteAttack("random_noise", "random_noise", {"samples": 50}), _SQUARE)
_SUITES = {"quick": _QUICK, "standard": _STANDARD, "black_box": _BLACK_BOX}
_MINIMAL = {
    "standard": (SuiteAttack("fab", "fab"),),
    "black_box": (
        SuiteAttack("hop_skip_jump", "hop_skip_jump", {"steps": 1000}, norms=("linf", "l2")),
        SuiteAttack("boundary", "boundary", norms=("l2",)),
    ),
}


def attacks_of(spec: AuditSpec, norm: NormName, *, at_random: bool) -> tuple[SuiteAttack, ...]:
    """The attacks on every radius of a norm, in turn; or the caller's, of every kind.

    Args:
        spec: of the audit.
        norm: of a threat model.
        at_random: the classifier answers the same input in several ways.
    """
    if spec.attacks:
        return tuple(
            SuiteAttack(item.label, item.plugin, item.params, place=f"attacks[{position}]")
            for position, item in enumerate(spec.attacks)
        )
    if spec.suite == "standard" and at_random:
        return _AT_RANDOM
    return tuple(item for item in _SUITES.get(spec.suite, ()) if norm in item.norms)


def minimal_of(spec: AuditSpec, norm: NormName) -> tuple[SuiteAttack, ...]:
    """The attacks of a suite that seek the smallest change in a norm."""
    if spec.attacks or not spec.minimal:
        return ()
    return tuple(item for item in _MINIMAL.get(spec.suite, ()) if norm in item.norms)
