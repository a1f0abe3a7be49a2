"""Two audits side by side: what differs, by how much, and whether chance explains it.

Where one audit's samples are all among the other's, by their digests, the same samples are compared
in pairs: McNemar's exact test, and Newcombe's interval for paired proportions. Otherwise all
samples of each are: Fisher's exact test, and Newcombe's interval for two. p values are adjusted for
how many conditions are compared (Holm); differences are second minus first.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .plan import StageKind
from .report.bundle import Report
from .report.evidence import Evidence
from .report.html import curve, page
from .report.statistics import (
    Pairs,
    difference,
    fisher,
    holm,
    mcnemar,
    paired_difference,
    rounded,
    share,
)
from .report.words import NORMS, percent

FORMAT = 1
ALPHA = 0.05
_UNLIKE = ("title",)  # fields of a specification that say nothing of figures


class Key(NamedTuple):
    """A sample, whichever audit it is in: its digest, and which of the samples alike it is."""

    digest: str
    copy: int


class Condition(NamedTuple):
    """What samples are judged under; all None for the samples as they are."""

    norm: str | None = None
    epsilon: float | None = None
    corruption: str | None = None
    severity: int | None = None

    @property
    def words(self) -> str:
        """As a reader has it."""
        if self.norm is not None:
            return f"{NORMS[self.norm]} ≤ {self.epsilon:g}"
        if self.corruption is not None:
            return f"{self.corruption.replace('_', ' ')} {self.severity}"
        return "as they are"


@dataclass(frozen=True)
class Gate:
    """Whether a report reaches a threshold, and the sentence that says so."""

    passed: bool
    accuracy: float | None
    sentence: str


class _Side:
    """One audit's samples, and which of them stand under which condition."""

    def __init__(self, report: Report) -> None:
        self.evidence = Evidence(report.findings)
        copies: Counter[str] = Counter()
        self.rows: dict[Key, int] = {}
        for sample in report.findings.samples:
            self.rows[Key(sample.digest, copies[sample.digest])] = sample.row
            copies[sample.digest] += 1

    def conditions(self) -> Iterator[Condition]:
        yield Condition()
        for norm in self.evidence.norms:
            for radius in self.evidence.radii(norm):
                yield Condition(norm, radius)
        for stage in self.evidence.stages(StageKind.CORRUPTION):
            yield Condition(corruption=stage.attack, severity=stage.severity)

    def standing(self, condition: Condition) -> set[Key]:
        """The samples that are classified correctly, and not broken under a condition."""
        standing = self.evidence.correct - self._broken(condition)
        return {key for key, row in self.rows.items() if row in standing}

    def _broken(self, condition: Condition) -> set[int]:
        if condition.norm is not None and condition.epsilon is not None:
            return self.evidence.broken(condition.norm, condition.epsilon)
        return {
            item.row
            for stage in self.evidence.stages(StageKind.CORRUPTION)
            if (stage.attack, stage.severity) == (condition.corruption, condition.severity)
            for item in self.evidence.by_stage[stage.key]
            if item.confirmed
        }


def compare(first: Report, second: Report) -> dict[str, Any]:
    """Compare two reports.

    Returns:
        As JSON: `paired`, `samples` of each that count, `conditions` with both accuracies, their
        difference with its 95% interval and p, `classes` with the same by class, `provenance` with
        what differs between the audits, and `verdict`.
    """
    sides = _Side(first), _Side(second)
    keys = [set(side.rows) for side in sides]
    common = keys[0] & keys[1]
    paired = bool(common) and common in keys
    if paired:
        keys = [common, common]
    known = list(sides[1].conditions())
    shared = [condition for condition in sides[0].conditions() if condition in known]
    by_condition = {
        condition: (sides[0].standing(condition), sides[1].standing(condition))
        for condition in shared
    }
    lines = _adjusted(
        [
            _described(condition) | _line(stands, keys, paired)
            for condition, stands in by_condition.items()
        ]
    )
    result: dict[str, Any] = {
        "format": FORMAT,
        "first": _identity(first),
        "second": _identity(second),
        "paired": paired,
        "test": "McNemar, exact" if paired else "Fisher, exact",
        "samples": [len(some) for some in keys],
        "left_out": [len(side.rows) - len(some) for side, some in zip(sides, keys, strict=True)],
        "conditions": lines,
        "unshared": [
            _described(condition)
            for condition in (*sides[0].conditions(), *known)
            if condition not in by_condition
        ],
        "classes": _classes(sides, keys, paired, by_condition),
        "provenance": _unlike(first.document, second.document),
    }
    result["verdict"] = _verdict(result)
    return result


def regression(comparison: Mapping[str, Any], alpha: float = ALPHA) -> list[dict[str, Any]]:
    """The conditions under which the second audit is significantly worse; none if all is well.

    Args:
        comparison: by `compare`.
        alpha: adjusted p values below this are significant.
    """
    return [
        line
        for line in comparison["conditions"]
        if line["p_adjusted"] < alpha and line["difference"] < 0
    ]


def gate(document: Mapping[str, Any], fail_under: float) -> Gate:
    """Whether a report's robust accuracy reaches a threshold under every threat model.

    The least accuracy over all threat models and radii counts; of an audit of corruptions their
    mean. Without any finished batch no threshold is reached.

    Args:
        document: of a report.
        fail_under: in [0, 1].
    """
    found = {
        f"robust accuracy at {NORMS[threat['norm']]} ≤ {at['epsilon']:g}": at["accuracy"]
        for threat in document["threats"]
        for at in threat["radii"]
    }
    if not found and document["corruptions"]:
        found = {"mean accuracy under corruptions": document["corruptions"]["mean"]}
    known = {name: value for name, value in found.items() if value is not None}
    if not known:
        return Gate(False, None, "No batch was finished, so no threshold is reached.")
    name, worst = min(reversed(known.items()), key=lambda item: item[1])
    passed = worst >= fail_under
    relation = "reaches" if passed else "is under"
    told = f"The {name}, {100 * worst:.6g}%, {relation} {100 * fail_under:.6g}%."
    return Gate(passed, worst, told)


def table(comparison: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    """The conditions as lines of text, after a line of headings."""
    lines = [("condition", "first", "second", "difference", "95% interval", "p (adjusted)")]
    lines += [
        (
            line["words"],
            percent(line["first"]["accuracy"]),
            percent(line["second"]["accuracy"]),
            points(line["difference"]),
            f"{points(line['interval'][0])} to {points(line['interval'][1])}",
            probability(line["p_adjusted"]),
        )
        for line in comparison["conditions"]
    ]
    return lines


def render(comparison: Mapping[str, Any], first: Report, second: Report) -> str:
    """The comparison as one self-contained page."""
    curves = {}
    threats = [
        {item["norm"]: item for item in side.document["threats"]} for side in (first, second)
    ]
    names = [_name(comparison, side) for side in ("first", "second")]
    for norm in threats[0]:
        if norm in threats[1]:
            pair = [(name, side[norm]) for name, side in zip(names, threats, strict=True)]
            curves[norm] = curve(pair)
    return page(
        "compare.html.j2",
        names=first.document["origin"]["labels"] or second.document["origin"]["labels"],
        title=f"{names[0]} and {names[1]}",
        compared=comparison,
        sides=names,
        curves=curves,
        alpha=ALPHA,
        points=points,
        probability=probability,
    )


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return "–" if value is None else f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def probability(value: float) -> str:
    """A p value as journals have it."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _described(condition: Condition) -> dict[str, Any]:
    known = {name: value for name, value in condition._asdict().items() if value is not None}
    return known | {"words": condition.words}


def _line(
    stands: tuple[set[Key], set[Key]], keys: Sequence[set[Key]], paired: bool
) -> dict[str, Any]:
    """Both accuracies among some samples of each, and their difference."""
    one, two = stands[0] & keys[0], stands[1] & keys[1]
    totals = len(keys[0]), len(keys[1])
    found: dict[str, Any] = {
        side: {"standing": len(standing), "samples": total, "accuracy": share(len(standing), total)}
        for side, standing, total in zip(("first", "second"), (one, two), totals, strict=True)
    }
    if paired:
        pairs = Pairs(len(one & two), len(one - two), len(two - one), len(keys[0] - one - two))
        found |= {"pairs": pairs._asdict(), "p": mcnemar(pairs)}
        interval = paired_difference(pairs)
    else:
        counts = len(one), totals[0], len(two), totals[1]
        found |= {"pairs": None, "p": fisher(*counts)}
        interval = difference(*counts)
    known = totals[0] and totals[1]
    change = rounded(len(two) / totals[1] - len(one) / totals[0]) if known else 0.0
    return found | {"difference": change, "interval": list(interval)}


def _adjusted(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    values = holm([line["p"] for line in lines])
    return [line | {"p_adjusted": value} for line, value in zip(lines, values, strict=True)]


def _classes(
    sides: tuple[_Side, _Side],
    keys: Sequence[set[Key]],
    paired: bool,
    by_condition: Mapping[Condition, tuple[set[Key], set[Key]]],
) -> list[dict[str, Any]]:
    """The same for the samples of each class; p adjusted over the classes of a condition."""
    of_class: dict[int, tuple[set[Key], set[Key]]] = {}
    for place, (side, counted) in enumerate(zip(sides, keys, strict=True)):
        for key in counted:
            label = side.evidence.samples[side.rows[key]].label
            of_class.setdefault(label, (set(), set()))[place].add(key)
    labels = sorted(of_class)
    found = [
        {"label": label, "name": sides[0].evidence.name(label), "conditions": list[Any]()}
        for label in labels
    ]
    for condition, stands in by_condition.items():
        lines = _adjusted([_line(stands, of_class[label], paired) for label in labels])
        for item, line in zip(found, lines, strict=True):
            item["conditions"].append(_described(condition) | line)  # type: ignore[attr-defined]
    return found


def _identity(report: Report) -> dict[str, Any]:
    origin, spec = report.document["origin"], report.document["spec"]
    return {
        "folder": report.folder.name,
        "title": spec["title"],
        "model": origin["model"],
        "model_version": origin["model_version"],
        "model_sha256": origin["model_sha256"],
        "data": origin["data"],
        "suite": spec["suite"],
        "samples": report.document["samples"],
    }


def _name(comparison: Mapping[str, Any], side: str) -> str:
    """What a side is called: as little as tells the two apart."""
    item = comparison[side]
    name = item["title"] or item["model"]
    other = comparison["second" if side == "first" else "first"]
    if name == (other["title"] or other["model"]):
        return f"{'A' if side == 'first' else 'B'}: {name}"
    return str(name)


def _unlike(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of origin and specification that differ."""
    sides = [
        dict(_flat({"origin": document["origin"], "spec": document["spec"]}))
        for document in (first, second)
    ]
    names = sorted({*sides[0], *sides[1]})
    return [
        {"field": name, "first": sides[0].get(name), "second": sides[1].get(name)}
        for name in names
        if sides[0].get(name) != sides[1].get(name) and name.rpartition(".")[2] not in _UNLIKE
    ]


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{before}{name}.")
        else:
            yield f"{before}{name}", item


def _verdict(comparison: Mapping[str, Any]) -> str:
    """The samples as they are, then every threat model at its largest shared radius."""
    names = [_name(comparison, side) for side in ("first", "second")]
    counts = comparison["samples"]
    if not all(counts):
        return "One of the audits finished no batch, so there is nothing to compare."
    if comparison["paired"]:
        head = f"On the same {counts[0]:,} samples"
    else:
        head = f"On different samples ({counts[0]:,} and {counts[1]:,})"
    last = {line.get("norm"): line for line in comparison["conditions"] if "corruption" not in line}
    told = [f"{line['words']} {_judged(line)}" for line in last.values()]
    worse = len([line for line in _corrupted(comparison) if _significant(line) < 0])
    better = len([line for line in _corrupted(comparison) if _significant(line) > 0])
    if _corrupted(comparison):
        told.append(
            f"of {len(_corrupted(comparison))} corruptions, significantly better under {better} "
            f"and worse under {worse}"
        )
    return f"{head}, {names[1]} against {names[0]}: {'; '.join(told)}."


def _corrupted(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [line for line in comparison["conditions"] if "corruption" in line]


def _significant(line: Mapping[str, Any]) -> int:
    """1 for significantly better, -1 for worse, 0 for neither."""
    if line["p_adjusted"] >= ALPHA or not line["difference"]:
        return 0
    return 1 if line["difference"] > 0 else -1


def _judged(line: Mapping[str, Any]) -> str:
    accuracies = (
        f"{percent(line['second']['accuracy'])} against {percent(line['first']['accuracy'])}"
    )
    how = {1: "significantly higher", -1: "significantly lower", 0: "no significant difference"}
    p = probability(line["p_adjusted"])
    return f"{accuracies}, {how[_significant(line)]} (p {p if p[0] == '<' else f'= {p}'})"
