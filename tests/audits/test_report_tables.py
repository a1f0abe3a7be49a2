"""Tables are read back exactly, and nothing in them runs in a spreadsheet."""

import csv
import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_findings import make

from interpret_server.audits.records import Outcome, Sample
from interpret_server.audits.report import tables
from interpret_server.errors import FailedPrecondition, InvalidRequest


def same(one: object, other: object) -> bool:
    """Equal to the bit, NaN included."""
    return repr(dataclasses.astuple(one)) == repr(dataclasses.astuple(other))  # type: ignore[call-overload]


def test_samples_with_what_threats_came_to(tmp_path):
    findings = make()
    path = tmp_path / "samples.csv"
    tables.write_samples(findings, path)
    with path.open(newline="", encoding="utf-8") as file:
        lines = {line["row"]: line for line in csv.DictReader(file)}
    assert lines["0"]["linf_0.1_stands"] == "false"
    assert lines["0"]["linf_0.1_broken_by"] == "minimal:linf:fab"
    assert lines["5"]["linf_0.1_stands"] == "true"
    assert lines["5"]["linf_0.3_broken_by"] == "linf:0.3:square"
    assert (lines["7"]["linf_0.3_stands"], lines["7"]["linf_smallest"]) == ("true", "")
    assert lines["9"]["linf_smallest"] == "0.09"
    assert (lines["3"]["correct"], lines["3"]["linf_0.1_stands"]) == ("false", "false")
    assert path.read_bytes().count(b"\r\n") == 11


def test_the_round_trip_is_exact(tmp_path):
    findings = make()
    tables.write_samples(findings, tmp_path / "samples.csv")
    tables.write_outcomes(findings, tmp_path / "outcomes.csv")
    samples = list(tables.read_samples(tmp_path / "samples.csv"))
    outcomes = list(tables.read_outcomes(tmp_path / "outcomes.csv"))
    assert samples == list(findings.samples)
    assert all(map(same, outcomes, findings.outcomes))
    assert len(outcomes) == len(findings.outcomes)


floats = st.one_of(st.just(math.nan), st.floats(allow_nan=False))
texts = st.text(st.characters(codec="utf-8"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.tuples(texts, texts, floats, floats, st.integers(-1, 2**31), st.booleans()))
def test_any_value_comes_back(tmp_path_factory, values):
    stage, digest, one, other, decision, flag = values
    path = tmp_path_factory.mktemp("tables") / "outcomes.csv"
    outcome = Outcome(3, stage, flag, not flag, 7, digest, decision, one, other, linf=one)
    tables.write_outcomes(dataclasses.replace(make(), outcomes=[outcome]), path)
    (read,) = tables.read_outcomes(path)
    assert same(read, outcome)


@settings(max_examples=60, deadline=None)
@given(floats, st.integers(-1, 10))
def test_any_sample_comes_back(tmp_path_factory, confidence, decision):
    path = tmp_path_factory.mktemp("tables") / "samples.csv"
    sample = Sample(2, 1, "ab", decision, confidence)
    tables.write_samples(dataclasses.replace(make(), samples=[sample], outcomes=[]), path)
    (read,) = tables.read_samples(path)
    assert same(read, sample)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@A1", "\t=1", "\r=1", "'quoted"])
def test_no_text_is_a_formula(tmp_path, text):
    path = tmp_path / "outcomes.csv"
    outcome = Outcome(0, text, True, False, 1)
    tables.write_outcomes(dataclasses.replace(make(), outcomes=[outcome]), path)
    with path.open(newline="", encoding="utf-8") as file:
        _, line = csv.reader(file)
    assert line[1] == f"'{text}"
    assert next(tables.read_outcomes(path)).stage == text


def test_numpy_numbers_are_written_as_numbers(tmp_path):
    path = tmp_path / "outcomes.csv"
    outcome = Outcome(0, "a", True, False, 1, margin=np.float64(0.1))
    tables.write_outcomes(dataclasses.replace(make(), outcomes=[outcome]), path)
    assert next(tables.read_outcomes(path)).margin == 0.1


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b"\r\n1,1,1,true", b"\r\n1,x,1,true", r"samples.csv, line 3: label cannot be 'x'"),
        (b"\r\n1,1,1,true", b"\r\n1,1,1,yes", "line 3: correct cannot be 'yes'"),
        (b"\r\n1,1,1,true", b"\r\n1,2,1,true", "`correct` of sample 1 contradicts its decision"),
        (b"\r\n1,1,1,true", b"\r\n1,1,1,true,5", "line 3: it has 12 cells of 11"),
        (b"row,label", b"label,row", "line 1: it must begin with the columns row, label"),
        (b"\r\n1,1,1,true", b"\r\n\xff,1,1,true", "it is no CSV in UTF-8"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, old, new, told):
    path = tmp_path / "samples.csv"
    tables.write_samples(make(), path)
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    with pytest.raises(InvalidRequest, match=told):
        list(tables.read_samples(path))


def test_parquet_holds_the_same(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    findings = make()
    tables.write_samples_parquet(findings, tmp_path / "samples.parquet")
    tables.write_outcomes_parquet(findings, tmp_path / "outcomes.parquet")
    samples = parquet.read_table(tmp_path / "samples.parquet").to_pylist()
    assert samples[5]["linf_0.3_broken_by"] == "linf:0.3:square"
    assert samples[7]["linf_smallest"] is None
    assert samples[3]["correct"] is False
    outcomes = parquet.read_table(tmp_path / "outcomes.parquet").to_pylist()
    assert [line["linf"] for line in outcomes if line["confirmed"]] == [
        item.linf for item in findings.outcomes if item.confirmed
    ]
    assert {line["digest"] for line in outcomes if not line["confirmed"]} == {None}


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(FailedPrecondition, match=r"install interpret-server\[parquet\]"):
        tables.write_samples_parquet(make(), tmp_path / "samples.parquet")
