"""What a repository asks to be served: versions, default, labels, and what counts as changed."""

import os
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from interpret_server.errors import NotFound
from interpret_server.models.repository import Plan, scan
from interpret_server.models.repository.serving import Serving

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


def _write(root: Path, path: str, text: str = "") -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`net` in the versions 2, 9 and 10, `digits` in v1."""
    repository = tmp_path / "models"
    for version in ("2", "9", "10"):
        _write(repository, f"net/{version}/model.onnx", version)
    _write(repository, "digits/v1/model.pt")
    return repository


def plan(root: Path, versions: str = "") -> Plan:
    """The plan of `net` under a `versions.toml`."""
    _write(root, "net/versions.toml", versions)
    return scan(root)["net"]


def messages(found: Plan) -> dict[str, str]:
    return {problem.subject: problem.message for problem in found.problems}


def test_the_newest_version_alone_is_served_by_default(root: Path) -> None:
    found = scan(root)
    assert list(found) == ["digits", "net"]
    assert found["net"].wanted == ("10",)
    assert found["net"].names == {"net": "10"}
    assert found["net"].entries["10"].path == root / "net/10/model.onnx"
    assert found["digits"].entries["v1"].path == root / "digits/v1/model.pt"
    assert not found["net"].problems


@pytest.mark.parametrize(
    ("versions", "wanted", "names"),
    [
        ('serve = "latest"', ("10",), {"net": "10"}),
        ('serve = "all"', ("2", "9", "10"), {"net": "10"}),
        ('serve = ["10", "2"]', ("2", "10"), {"net": "10"}),
        ('serve = ["9", "2"]', ("2", "9"), {"net": "9"}),
        ('serve = "all"\ndefault = "2"', ("2", "9", "10"), {"net": "2"}),
        (
            'serve = "all"\nlabels = {stable = "2", canary = "10"}',
            ("2", "9", "10"),
            {"net": "10", "net@stable": "2", "net@canary": "10"},
        ),
    ],
)
def test_versions_are_served_as_the_file_says(
    root: Path, versions: str, wanted: tuple[str, ...], names: dict[str, str]
) -> None:
    found = plan(root, versions)
    assert (found.wanted, found.names) == (wanted, names)
    assert tuple(found.entries) == wanted
    assert [entry.manifest.version for entry in found.entries.values()] == list(wanted)
    assert not found.problems


@pytest.mark.parametrize(
    ("versions", "sentences"),
    [
        ("serv = 1", ["versions.serv: no such field; there are serve, default, labels and load"]),
        ('serve = "newest"', ['versions.serve: give "latest", "all", or a list of versions']),
        ("serve = []", ["versions.serve: give"]),
        ("serve = [1, 3]", ["versions.serve: give"]),
        ("default = 2", ['versions.default: give one version in quotes, such as "2"']),
        ('labels = ["a"]', ["versions.labels: give a table"]),
        ("labels = {stable = 1}", ["versions.labels: stable needs one version in quotes"]),
        ('labels = {"a b" = "2"}', ["versions.labels: 'a b' is no label; use 1 to 128 letters"]),
        ("serve = 1\ndefault = 1", ["versions.serve: ", "; versions.default: "]),
        ("serve = ", ["is not TOML"]),
        ("#" * (1 << 21), ["is over 1 MiB"]),
    ],
)
def test_a_wrong_file_is_one_sentence_and_leaves_what_is_served(
    root: Path, versions: str, sentences: list[str]
) -> None:
    found = plan(root, versions)
    assert found.unreadable
    assert list(messages(found)) == ["net"]
    message = messages(found)["net"]
    assert message.startswith("the versions.toml of 'net'") or "versions.toml of 'net'" in message
    for sentence in sentences:
        assert sentence in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("versions", "subject", "sentence"),
    [
        ('serve = ["2", "11"]', "net@11", "there is no such version; there are 2, 9, 10"),
        ('default = "2"', "net", "versions.default: version '2' is not served; served are 10"),
        ('labels = {old = "2"}', "net@old", "versions.labels: version '2' is not served"),
        ('labels = {9 = "10"}', "net@9", "versions.labels: '9' is a version"),
        ('serve = ["11"]', "net@11", "there is no such version"),
    ],
)
def test_a_version_that_is_not_served_is_reported_where_it_is_named(
    root: Path, versions: str, subject: str, sentence: str
) -> None:
    found = plan(root, versions)
    assert sentence in messages(found)[subject]
    assert not found.unreadable
    assert set(found.entries) <= {"2", "10"}


def test_a_version_with_a_wrong_manifest_harms_no_other(root: Path) -> None:
    _write(root, "net/9/model.toml", "bounds = [1, 0]")
    found = plan(root, 'serve = "all"')
    assert (found.wanted, tuple(found.entries)) == (("2", "9", "10"), ("2", "10"))
    assert "manifest.inputs[0].bounds" in messages(found)["net@9"]


def test_two_files_of_one_version_are_a_problem_of_that_version(root: Path) -> None:
    _write(root, "net/10/model.pt")
    assert "model.pt and model.onnx" in messages(plan(root))["net@10"]


@pytest.mark.parametrize("folder", ["my net", "ne@t", "x" * 129])
def test_a_folder_whose_name_no_client_could_use_is_reported(root: Path, folder: str) -> None:
    _write(root, f"{folder}/1/model.pt")
    found = scan(root)[folder]
    assert "is no model name" in found.problems[0].message
    assert not found.wanted


def test_a_version_folder_whose_name_no_client_could_use_is_reported(root: Path) -> None:
    _write(root, "net/11 b/model.onnx")
    assert "rename the folder" in messages(plan(root))["net@11 b"]


def test_a_folder_without_a_model_is_reported_and_a_hidden_one_is_not(root: Path) -> None:
    _write(root, "empty/1/notes.txt")
    _write(root, ".hidden/1/model.pt")
    found = scan(root)
    assert "no model file" in messages(found["empty"])["empty"]
    assert not found["empty"].unreadable
    assert ".hidden" not in found


def test_a_link_out_of_the_repository_is_reported_and_not_followed(root: Path) -> None:
    _write(root.parent, "secret/1/model.pt")
    (root / "out").symlink_to(root.parent / "secret")
    (root / "net/11").symlink_to(root.parent / "secret/1")
    found = scan(root)
    assert "leads out of the model repository" in messages(found["out"])["out"]
    assert "leads out of the model repository" in messages(found["net"])["net@11"]
    assert not found["net"].entries


def test_a_repository_that_is_not_there_is_not_found(root: Path) -> None:
    with pytest.raises(NotFound, match="not a folder"):
        scan(root / "nowhere")


def test_what_did_not_change_has_an_equal_plan(root: Path) -> None:
    assert scan(root) == scan(root)


def _longer(root: Path) -> None:
    _write(root, "net/10/model.onnx", "another")


def _later(root: Path) -> None:
    status = (root / "net/10/model.onnx").stat()
    os.utime(root / "net/10/model.onnx", ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def _renamed(root: Path) -> None:
    """Another file of the same size and time comes in its place."""
    file = root / "net/10/model.onnx"
    shutil.copy2(file, root / "net/10/.new")
    (root / "net/10/.new").replace(file)


CHANGES = {
    "longer": _longer,
    "later": _later,
    "renamed": _renamed,
    "weights": lambda root: _write(root, "net/10/model.onnx.data", "w"),
    "manifest": lambda root: _write(root, "net/10/model.toml", "bounds = [0, 1]"),
    "general manifest": lambda root: _write(root, "net/model.toml", "bounds = [0, 1]"),
    "labels": lambda root: _write(root, "net/labels.txt", "a\nb"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_version_has_another_entry(root: Path, change: str) -> None:
    before = scan(root)["net"].entries["10"]
    CHANGES[change](root)
    assert scan(root)["net"].entries["10"] != before


@pytest.mark.parametrize(
    "path", ["net/9/model.onnx", "net/10/.model.onnx.part", "net/notes.txt", "digits/v1/README"]
)
def test_a_file_that_no_served_model_is_read_from_changes_nothing(root: Path, path: str) -> None:
    before = scan(root)
    _write(root, path, "changed")
    assert scan(root) == before


def test_the_documented_versions_toml_has_every_field_and_is_taken() -> None:
    page = DOCS.read_text(encoding="utf-8")
    blocks = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (example,) = [block for block in blocks if "serve = " in block]
    assert Serving.model_validate(tomllib.loads(example)).model_fields_set == {
        *Serving.model_fields
    }
    assert all(field.description for field in Serving.model_fields.values())
