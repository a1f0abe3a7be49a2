"""Every figure of a report, worked out by hand, and what must hold of any findings."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_findings import make
from scipy.stats import binom

from interpret_server.audits.report import document as documents
from interpret_server.audits.spec import AuditSpec


@pytest.fixture(scope="module")
def report() -> dict:
    return documents.build(make())


def test_clean_accuracy(report):
    clean = report["clean"]
    assert (report["samples"], clean["correct"], clean["accuracy"]) == (10, 8, 0.8)
    low, high = clean["interval"]  # each end leaves 2.5% of the binomial beyond the count
    assert binom.sf(7, 10, low) == pytest.approx(0.025, abs=1e-8)
    assert binom.cdf(8, 10, high) == pytest.approx(0.025, abs=1e-8)
    assert clean["confusion"] == [
        {"label": 0, "decision": 1, "count": 1},
        {"label": 2, "decision": 0, "count": 1},
    ]


def test_robust_accuracy_at_every_radius(report):
    (threat,) = report["threats"]
    found = [(item["epsilon"], item["broken"], item["standing"]) for item in threat["radii"]]
    assert found == [(0.1, 3, 5), (0.3, 6, 2)]
    assert [item["accuracy"] for item in threat["radii"]] == [0.5, 0.2]


def test_the_curve_goes_on_to_the_smallest_changes(report):
    curve = report["threats"][0]["curve"]
    at = dict(zip(curve["epsilon"], curve["standing"], strict=True))
    assert at[0.0] == 8
    assert (at[0.1], at[0.3]) == (5, 2)
    assert curve["epsilon"][-1] == 0.35
    assert at[0.35] == 1
    reach = [(0.049, 8), (0.077, 7), (0.084, 6), (0.196, 5), (0.203, 4), (0.2485, 4), (0.252, 3)]
    assert {point: at[point] for point, _ in reach} == dict(reach)


def test_what_each_attack_contributed(report):
    found = {
        item["stage"]: (item["attacked"], item["confirmed"], item["broken"], item["unique"])
        for item in report["threats"][0]["attacks"]
    }
    assert found == {
        "linf:0.1:pgd": (8, 1, 1, 0),
        "linf:0.1:square": (7, 1, 1, 0),
        "linf:0.3:pgd": (6, 2, 2, 0),
        "linf:0.3:square": (4, 1, 1, 1),
        "minimal:linf:fab": (8, 6, 5, 1),
    }
    (unbounded,) = report["unbounded"]
    assert (unbounded["attacked"], unbounded["broken"], unbounded["standing"]) == (3, 3, 0)


def test_queries_and_distances_of_attacks(report):
    pgd = report["threats"][0]["attacks"][0]
    assert pgd["queries"] == {"total": 10 + 7 * 20, "median": 20}
    assert pgd["median_distance"] is None
    fab = report["threats"][0]["attacks"][4]
    assert fab["median_distance"] == pytest.approx((0.2 + 0.25) / 2)
    assert fab["share"] == 0.625
    assert fab["claimed"] == 6


def test_quartiles_count_samples_that_stand_as_larger(report):
    smallest = report["threats"][0]["smallest"]
    assert (smallest["samples"], smallest["found"], smallest["none"]) == (8, 7, 1)
    assert smallest["quartiles"] == pytest.approx([0.0875, 0.225, 0.3125])


def test_a_quartile_among_samples_that_stand_is_unknown():
    attacks = {"linf:0.1:pgd": dict.fromkeys(range(4)), "minimal:linf:fab": {0: 0.2, 1: 0.4}}
    attacks["minimal:linf:fab"] |= {2: None, 3: None}
    report = documents.build(make([0] * 4, [0] * 4, attacks, claims=frozenset()))
    assert report["threats"][0]["smallest"]["quartiles"] == [pytest.approx(0.35), None, None]


def test_threats_are_those_of_the_specification_whatever_the_stages():
    threats = [{"norm": "l2", "epsilons": [0.5, 1.5]}]
    spec = AuditSpec.model_validate({"model": "net", "threats": threats})
    attacks = {"minimal:l2:ddn": {0: 0.25, 1: None}, "unbounded:linf": {0: 0.01, 1: None}}
    report = documents.build(make([0, 0], [0, 0], attacks, claims=frozenset(), spec=spec))
    (threat,) = report["threats"]  # the distances are four times those in L-infinity
    assert [at["standing"] for at in threat["radii"]] == [2, 1]
    assert [item["stage"] for item in threat["attacks"]] == ["minimal:l2:ddn"]
    assert report["unbounded"][0]["standing"] == 1


def test_classes(report):
    found = [
        (
            item["name"],
            item["samples"],
            item["correct"],
            [at["standing"] for at in item["robust"]],
        )
        for item in report["classes"]
    ]
    # Class 0 has rows 0, 3, 6, 9, class 1 rows 1, 4, 7 and class 2 rows 2, 5, 8.
    assert found == [("cat", 4, 3, [1, 1]), ("dog", 3, 3, [3, 1]), ("=1+1", 3, 2, [1, 0])]


def test_confusion_under_attack(report):
    assert report["threats"][0]["confusion"] == [
        {"label": 0, "decision": 1, "count": 2},
        {"label": 1, "decision": 2, "count": 2},
        {"label": 2, "decision": 0, "count": 2},
    ]


def test_the_most_fragile_come_first_with_the_places_of_their_examples(report):
    fragile = report["threats"][0]["fragile"]
    assert [item["row"] for item in fragile] == [0, 2, 9, 1, 4, 5, 6]
    assert fragile[0]["stage"] == "minimal:linf:fab"
    assert fragile[4]["stage"] == "linf:0.3:pgd"  # of equal distances the first
    assert fragile[2]["input"] == {"file": "inputs/000002.npy", "row": 1}
    assert fragile[2]["example"] == {"file": "examples/000002-005.npy", "row": 0}
    assert fragile[3]["example"] == {"file": "examples/000000-005.npy", "row": 1}


def test_claims_without_confirmation_and_warnings(report):
    assert report["unconfirmed"] == [{"stage": "linf:0.1:square", "count": 1, "rows": [1]}]
    assert report["warnings"] == [
        {"stage": "linf:0.1:pgd", "message": "Gradients vanish.", "rows": [0, 4, 8]}
    ]
    assert report["notes"] == ["A note."]


def test_the_verdict_is_in_plain_words(report):
    assert report["verdict"].startswith(
        "Of 10 samples the model classifies 80.0% correctly as they are"
    )
    assert (
        "20.0% (2.5% to 55.6%) under every change that was tried of at most 0.3 in L∞"
        in (report["verdict"])
    )


def test_what_the_budget_left_undone():
    report = documents.build(make(planned=40))
    assert not report["complete"]
    assert report["undone"] == {"samples": 30, "batches": 7}
    assert report["verdict"].endswith("40 samples were planned.")


def test_nothing_was_finished():
    attacks = {"linf:0.1:pgd": {}, "minimal:linf:fab": {}}
    report = documents.build(make([], [], attacks, planned=8))
    assert report["clean"] == {
        "correct": 0,
        "accuracy": None,
        "interval": [0.0, 1.0],
        "confusion": [],
    }
    assert report["threats"][0]["smallest"]["quartiles"] == [None, None, None]
    documents.encode(report)


def test_corruptions():
    attacks = {
        "corruption:fog:1": {0: None, 1: None, 2: 0.5},
        "corruption:fog:2": {0: 0.5, 1: None, 2: 0.5},
        "corruption:snow:1": {0: None, 1: None, 2: None},
        "corruption:snow:2": {0: 0.4, 1: 0.4, 2: None},
    }
    report = documents.build(make([0, 1, 2, 0], [0, 1, 2, 2], attacks, claims=frozenset()))
    found = report["corruptions"]
    assert [cell["accuracy"] for cell in found["cells"]] == [0.5, 0.25, 0.75, 0.25]
    assert found["mean"] == 0.4375
    assert [item["mean"] for item in found["by_corruption"]] == [0.375, 0.5]
    assert [item["mean"] for item in found["by_severity"]] == [0.625, 0.25]
    assert [(item["row"], item["broken"]) for item in found["fragile"]] == [(0, 2), (2, 2), (1, 1)]
    assert found["fragile"][0]["stage"] == "corruption:fog:2"
    assert report["threats"] == []
    assert (
        "43.8% in the mean over 2 corruptions, least under fog of severity 2" in (report["verdict"])
    )


def test_equal_findings_give_equal_bytes_but_for_the_run(report):
    other = make()
    audit = dataclasses.replace(other.audit, id="two", created=99.0, seconds=1.25)
    again = documents.build(dataclasses.replace(other, audit=audit))
    assert documents.encode(again) != documents.encode(report)
    assert documents.encode(documents.lasting(again)) == documents.encode(documents.lasting(report))


def test_a_document_and_its_tables_make_the_same_document(report):
    read = json.loads(documents.encode(report))
    findings = make()
    restored = documents.restore(read, findings.samples, findings.outcomes)
    again = documents.build(restored, read["files"])
    assert documents.lasting(again) == documents.lasting(report)
    assert restored.audit.origin == findings.audit.origin
    assert restored.audit.plan == findings.audit.plan


distances = st.one_of(st.none(), st.floats(0.001, 1.0))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), distances, distances), min_size=1),
    st.integers(1, 5),
)
def test_counts_add_up_and_curves_fall(lines, batch_size):
    labels, decisions = [line[0] for line in lines], [line[1] for line in lines]
    right = [row for row, line in enumerate(lines) if line[0] == line[1]]
    attacks = {
        "linf:0.1:pgd": {row: lines[row][2] for row in right},
        "linf:0.3:pgd": {row: lines[row][2] for row in right},
        "minimal:linf:fab": {row: lines[row][3] for row in right},
    }
    report = documents.build(make(labels, decisions, attacks, batch_size=batch_size))
    threat, total = report["threats"][0], len(lines)
    standing = threat["curve"]["standing"]
    assert standing == sorted(standing, reverse=True)
    assert standing[0] == report["clean"]["correct"] == len(right)
    for number, at in enumerate(threat["radii"]):
        assert at["broken"] + at["standing"] == len(right)
        assert at["interval"][0] <= at["accuracy"] <= at["interval"][1]
        known = [[d for d in lines[row][2:] if d is not None] for row in right]
        broken = sum(min(found, default=2) <= at["epsilon"] * (1 + 1e-6) for found in known)
        assert at["broken"] == broken
        classes = [item["robust"][number]["standing"] for item in report["classes"]]
        assert sum(classes) == at["standing"]
    assert sum(item["samples"] for item in report["classes"]) == total
    wrong = sum(item["count"] for item in report["clean"]["confusion"])
    assert wrong == total - len(right)
    assert sum(item["count"] for item in threat["confusion"]) == threat["radii"][-1]["broken"]
    for item in threat["attacks"]:
        assert item["unique"] <= item["broken"] <= item["confirmed"] <= item["attacked"]
