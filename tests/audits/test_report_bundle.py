"""Bundles: whole, the same whenever written again, and read back."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from report_findings import example_of, make, write_files

from interpret_server.audits.files import AuditFiles
from interpret_server.audits.report import bundle
from interpret_server.audits.report import document as documents
from interpret_server.errors import InvalidRequest


@pytest.fixture
def files(tmp_path) -> AuditFiles:
    return write_files(make(), tmp_path / "audit")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    bundle.write(make(), write_files(make(), folder / "audit"), folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def copied(written, tmp_path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "bundle"))


def contents(folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in bundle.names(folder)}


def test_a_bundle_holds_all_that_a_replay_needs(tmp_path, files):
    document = bundle.write(make(), files, tmp_path / "bundle")
    folder = tmp_path / "bundle"
    assert {"report.json", "samples.csv", "outcomes.csv", "model/model.onnx"} <= set(
        bundle.names(folder)
    )
    assert json.loads((folder / "report.json").read_bytes()) == document
    listed = document["files"]
    assert set(listed) == set(bundle.names(folder)) - {"report.json", "report.html"}
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    fragile = document["threats"][0]["fragile"][3]
    place = fragile["example"]
    stored = np.load(folder / place["file"])[place["row"]]
    np.testing.assert_array_equal(stored, example_of(fragile["row"], fragile["distance"]))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_arrays_are_linked_not_copied(tmp_path, files):
    bundle.write(make(), files, tmp_path / "bundle")
    assert (tmp_path / "bundle/inputs/000000.npy").samefile(tmp_path / "audit/inputs/000000.npy")


def test_where_no_link_is_possible_files_are_copied(tmp_path, files, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    bundle.write(make(), files, tmp_path / "bundle")
    copied = tmp_path / "bundle/inputs/000000.npy"
    assert not copied.samefile(tmp_path / "audit/inputs/000000.npy")
    assert copied.read_bytes() == (tmp_path / "audit/inputs/000000.npy").read_bytes()


def test_written_again_it_is_the_same(tmp_path, files):
    bundle.write(make(), files, tmp_path / "bundle")
    first = contents(tmp_path / "bundle")
    bundle.write(make(), files, tmp_path / "bundle")
    assert contents(tmp_path / "bundle") == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit", "bundle"]


def test_a_bundle_that_fails_leaves_the_old_one(tmp_path, files):
    bundle.write(make(), files, tmp_path / "bundle")
    first = contents(tmp_path / "bundle")
    (tmp_path / "audit/examples/000000-005.npy").unlink()
    with pytest.raises(FileNotFoundError):
        bundle.write(make(), files, tmp_path / "bundle")
    assert contents(tmp_path / "bundle") == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit", "bundle"]


def test_examples_of_unfinished_batches_stay_out(tmp_path, files):
    files.write_inputs(7, np.zeros((4, 1, 4, 4), np.float32))
    bundle.write(make(), files, tmp_path / "bundle")
    assert not (tmp_path / "bundle/inputs/000007.npy").exists()


def test_the_archive_is_the_same_whenever_written(tmp_path, files):
    bundle.write(make(), files, tmp_path / "bundle")
    bundle.pack(tmp_path / "bundle", tmp_path / "audit-one.zip")
    first = (tmp_path / "audit-one.zip").read_bytes()
    bundle.write(make(), files, tmp_path / "bundle")
    bundle.pack(tmp_path / "bundle", tmp_path / "audit-one.zip")
    assert (tmp_path / "audit-one.zip").read_bytes() == first
    with zipfile.ZipFile(tmp_path / "audit-one.zip") as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "unpacked")
    assert contents(tmp_path / "unpacked/audit-one") == contents(tmp_path / "bundle")


def test_what_is_read_makes_the_same_report(written):
    report = bundle.read(written)
    assert (written / "report.json").read_bytes() == documents.encode(report.document)
    again = documents.build(report.findings, report.document["files"])
    assert documents.lasting(again) == documents.lasting(report.document)


def test_a_stage_that_was_not_planned_is_told(copied):
    path = copied / "outcomes.csv"
    path.write_bytes(path.read_bytes().replace(b"minimal:linf:fab", b"minimal:linf:bad"))
    with pytest.raises(InvalidRequest, match="the plan has no stage 'minimal:linf:bad'"):
        bundle.read(copied)


def test_a_part_that_is_missing_is_named(copied):
    document = json.loads((copied / "report.json").read_bytes())
    del document["threats"]
    (copied / "report.json").write_bytes(documents.encode(document))
    with pytest.raises(InvalidRequest, match="it lacks threats"):
        bundle.read(copied)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("report.json", b"{}", "bundle/report.json: it is not as it was written"),
        ("report.json", b'{"format": 9}', "the report is of format 9, not 1"),
        ("report.json", b"{", "bundle/report.json"),
        ("report.json", b"[]", "bundle/report.json"),
        ("samples.csv", b"", "samples.csv, line 1"),
        ("outcomes.csv", None, "bundle is no report: outcomes.csv cannot be read"),
    ],
)
def test_what_is_no_bundle_is_told(copied, name, content, told):
    path = copied / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InvalidRequest, match=told):
        bundle.read(copied)
