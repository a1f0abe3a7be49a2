"""Two reports side by side, with figures worked out by hand."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from report_findings import ORIGIN, SPEC, make

from interpret_server.audits import compare as comparing
from interpret_server.audits.compare import compare, gate, regression, render, table
from interpret_server.audits.records import Findings
from interpret_server.audits.report import document as documents
from interpret_server.audits.report.bundle import Report


def report(findings: Findings, path="/reports/one") -> Report:
    return Report(Path(path), documents.build(findings), findings)


def fallen(count: int, total: int = 24, **changes: object) -> Report:
    """A report in which the first `count` samples fall at 0.3, and one at 0.1."""
    attacks = {
        "linf:0.1:pgd": {row: 0.1 if row == 0 else None for row in range(total)},
        "linf:0.3:pgd": {row: 0.3 if row < count else None for row in range(1, total)},
    }
    labels = [row % 3 for row in range(total)]
    return report(make(labels, labels, attacks, claims=frozenset(), **changes))


def by_words(comparison: dict) -> dict[str, dict]:
    return {line["words"]: line for line in comparison["conditions"]}


def test_the_same_samples_are_compared_in_pairs():
    comparison = compare(fallen(4), fallen(12))
    assert comparison["paired"]
    assert comparison["samples"] == [24, 24]
    line = by_words(comparison)["L∞ ≤ 0.3"]
    assert line["pairs"] == {"both": 12, "first": 8, "second": 0, "neither": 4}
    assert line["difference"] == pytest.approx(-1 / 3)
    assert line["p"] == pytest.approx(2 / 2**8)
    assert line["p_adjusted"] == pytest.approx(3 * 2 / 2**8)
    assert line["interval"][0] < -1 / 3 < line["interval"][1] < 0
    clean = by_words(comparison)["as they are"]
    assert (clean["difference"], clean["p"]) == (0, 1)


def test_the_verdict_and_regression():
    comparison = compare(fallen(4), fallen(12))
    assert comparison["verdict"] == (
        "On the same 24 samples, B: A test against A: A test: as they are 100.0% against 100.0%, "
        "no significant difference (p = 1.000); L∞ ≤ 0.3 50.0% against 83.3%, significantly lower "
        "(p = 0.023)."
    )
    assert [line["words"] for line in regression(comparison)] == ["L∞ ≤ 0.3"]
    assert regression(comparison, 0.01) == []
    assert regression(compare(fallen(12), fallen(4))) == []


def test_an_audit_that_ended_early_is_compared_on_what_both_have():
    comparison = compare(fallen(4), fallen(4, total=9))
    assert comparison["paired"]
    assert (comparison["samples"], comparison["left_out"]) == ([9, 9], [15, 0])
    assert by_words(comparison)["L∞ ≤ 0.3"]["first"] == {
        "standing": 5,
        "samples": 9,
        "accuracy": 0.5555555556,
    }


def test_other_samples_are_compared_by_fishers_test():
    one, two = fallen(4), fallen(12)
    samples = [dataclasses.replace(item, digest=item.digest[::-1]) for item in two.findings.samples]
    two = dataclasses.replace(two, findings=dataclasses.replace(two.findings, samples=samples))
    comparison = compare(one, two)
    assert not comparison["paired"]
    line = by_words(comparison)["L∞ ≤ 0.3"]
    assert line["pairs"] is None
    ways = {k: math.comb(24, k) * math.comb(24, 32 - k) for k in range(8, 25)}
    expected = sum(way for way in ways.values() if way <= ways[20]) / math.comb(48, 32)
    assert line["p"] == pytest.approx(expected)
    assert "On different samples (24 and 24)" in comparison["verdict"]


def test_samples_alike_are_counted_as_often_as_they_are_there():
    one = fallen(4)
    alike = [dataclasses.replace(item, digest="same") for item in one.findings.samples]
    one = dataclasses.replace(one, findings=dataclasses.replace(one.findings, samples=alike))
    comparison = compare(one, one)
    assert comparison["paired"]
    assert comparison["samples"] == [24, 24]
    assert by_words(comparison)["L∞ ≤ 0.3"]["pairs"] == {
        "both": 20,
        "first": 0,
        "second": 0,
        "neither": 4,
    }


def test_classes_add_up_to_all():
    comparison = compare(fallen(4), fallen(12))
    assert [item["name"] for item in comparison["classes"]] == ["cat", "dog", "=1+1"]
    for place, line in enumerate(comparison["conditions"]):
        inner = [item["conditions"][place] for item in comparison["classes"]]
        for side in ("first", "second"):
            assert sum(item[side]["standing"] for item in inner) == line[side]["standing"]
    cat = comparison["classes"][0]["conditions"][2]
    assert (cat["first"]["standing"], cat["second"]["standing"]) == (6, 4)
    assert (cat["pairs"]["first"], cat["p"]) == (2, 0.5)


def test_what_differs_in_provenance():
    origin = dataclasses.replace(ORIGIN, model_sha256="ef" * 32, versions={"numpy": "3"})
    spec = SPEC.model_copy(update={"seed": 7, "title": "Another"})
    comparison = compare(fallen(4), fallen(4, origin=origin, spec=spec))
    assert comparison["provenance"] == [
        {"field": "origin.model_sha256", "first": "ab" * 32, "second": "ef" * 32},
        {"field": "origin.versions.interpret-server", "first": "1.0", "second": None},
        {"field": "origin.versions.numpy", "first": "2", "second": "3"},
        {"field": "spec.seed", "first": 0, "second": 7},
    ]
    assert compare(fallen(4), fallen(9))["provenance"] == []


def test_conditions_of_one_audit_alone_are_named():
    threats = [{"norm": "linf", "epsilons": [0.1]}]
    spec = type(SPEC).model_validate({"model": "net", "threats": threats})
    attacks = {"linf:0.1:pgd": dict.fromkeys(range(24))}
    labels = [row % 3 for row in range(24)]
    comparison = compare(
        fallen(4), report(make(labels, labels, attacks, claims=frozenset(), spec=spec))
    )
    assert [line["words"] for line in comparison["conditions"]] == ["as they are", "L∞ ≤ 0.1"]
    assert [item["words"] for item in comparison["unshared"]] == ["L∞ ≤ 0.3"]


def test_corruptions_are_compared():
    def corrupted(broken: int) -> Report:
        attacks = {"corruption:fog:1": {row: 0.5 if row < broken else None for row in range(12)}}
        return report(make([0] * 12, [0] * 12, attacks, claims=frozenset()))

    comparison = compare(corrupted(0), corrupted(8))
    line = by_words(comparison)["fog 1"]
    assert (line["pairs"]["first"], line["p"]) == (8, 2 / 2**8)
    assert (
        "of 1 corruptions, significantly better under 0 and worse under 1"
        in (comparison["verdict"])
    )
    assert gate(corrupted(3).document, 0.75).passed
    assert "mean accuracy under corruptions, 75%" in gate(corrupted(3).document, 0.9).sentence


@pytest.mark.parametrize(("fail_under", "passed"), [(0.2, True), (0.20001, False)])
def test_the_gate_looks_at_the_worst_threat(fail_under, passed):
    found = gate(documents.build(make()), fail_under)
    assert (found.passed, found.accuracy) == (passed, 0.2)
    relation = "reaches 20%" if passed else "is under 20.001%"
    assert found.sentence == f"The robust accuracy at L∞ ≤ 0.3, 20%, {relation}."


def test_no_gate_is_passed_without_samples():
    attacks: dict = {"linf:0.1:pgd": {}}
    assert not gate(documents.build(make([], [], attacks, planned=4)), 0.0).passed


def test_without_samples_there_is_nothing_to_compare():
    nothing = report(make([], [], {"linf:0.1:pgd": {}}, planned=4))
    comparison = compare(nothing, fallen(4))
    assert comparison["verdict"].startswith("One of the audits finished no batch")
    json.dumps(comparison, allow_nan=False)


def test_lines_of_text():
    lines = table(compare(fallen(4), fallen(12)))
    assert lines[3][:4] == ("L∞ ≤ 0.3", "83.3%", "50.0%", "−33.3")
    assert {len(line) for line in lines} == {6}


def test_the_page_shows_the_same(monkeypatch):
    labels = ("<img src=x>", "dog", "=1+1")
    origin = dataclasses.replace(ORIGIN, labels=labels, model="$x$ & </svg>")
    one, two = fallen(4, origin=origin), fallen(12, origin=origin)
    comparison = compare(one, two)
    page = render(comparison, one, two)
    assert "<img" not in page
    assert page.count("<svg") == page.count("</svg>") == 1
    assert "−33.3" in page
    assert render(comparison, one, two) == page


def test_the_comparison_is_the_same_whenever_made():
    one, two = fallen(4), fallen(12)
    assert json.dumps(compare(one, two)) == json.dumps(compare(one, two))
    assert comparing.FORMAT == compare(one, two)["format"]
