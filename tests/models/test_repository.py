"""Model repositories: which file a name means, and that no path leads out."""

from pathlib import Path

import pytest

from interpret_server.errors import InvalidRequest, NotFound
from interpret_server.models.repository import resolve


def _write(root: Path, path: str, text: str = "") -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    repository = tmp_path / "models"
    for version in ("2", "9", "10"):
        _write(repository, f"net/{version}/model.onnx")
    _write(repository, "net/model.toml", 'labels = ["a", "b"]')
    _write(repository, "net/9/model.toml", 'version = "nine"\nbounds = [0, 255]')
    _write(repository, "digits/v1/model.pt")
    _write(repository, "empty/1/notes.txt")
    _write(repository, ".hidden/1/model.pt")
    _write(tmp_path, "secret/1/model.pt")
    return repository


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("net", "net/10/model.onnx"),
        ("net/2", "net/2/model.onnx"),
        ("net/9/model.onnx", "net/9/model.onnx"),
        ("digits", "digits/v1/model.pt"),
    ],
)
def test_a_path_names_a_model_a_version_or_a_file(root: Path, path: str, file: str) -> None:
    assert resolve(root, path).path == root / file


def test_the_manifest_beside_the_file_wins_over_the_models(root: Path) -> None:
    beside, general = resolve(root, "net/9").manifest, resolve(root, "net").manifest
    assert (beside.version, beside.input.bounds, beside.labels) == ("nine", (0.0, 255.0), None)
    assert (general.version, general.input.bounds, general.labels) == ("10", None, ("a", "b"))


def test_the_version_folder_is_the_version_without_a_manifest(root: Path) -> None:
    assert resolve(root, "digits").manifest.version == "v1"


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "net/../../secret/1/model.pt",
        "net/..",
        "/etc/passwd",
        "",
        ".",
        "net//2",
        "net/",
        ".hidden",
        "net\\2",
        "C:/net",
        "net/2/model.onnx\0",
    ],
)
def test_a_path_that_is_not_plain_is_refused(root: Path, path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(root, path)
    assert caught.value.violations[0].field == "path"
    assert str(root) not in caught.value.message


@pytest.mark.parametrize("link", ["out", "out/1", "out/1/model.pt"])
def test_a_link_out_of_the_repository_is_refused(root: Path, link: str) -> None:
    place = root / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(root.parent / "secret" / Path(*Path(link).parts[1:]))
    with pytest.raises(InvalidRequest, match="leads out of the model repository"):
        resolve(root, "out")
    with pytest.raises(InvalidRequest, match="leads out of the model repository"):
        resolve(root, "out/1/model.pt")


def test_a_manifest_that_is_a_link_out_of_the_repository_is_refused(root: Path) -> None:
    (root.parent / "model.toml").write_text("bounds = [0, 1]")
    (root / "digits/v1/model.toml").symlink_to(root.parent / "model.toml")
    with pytest.raises(InvalidRequest, match="leads out of the model repository"):
        resolve(root, "digits")


def test_a_link_inside_the_repository_is_followed(root: Path) -> None:
    (root / "alias").symlink_to(root / "digits")
    assert resolve(root, "alias").name == "alias"


def test_a_link_loop_is_not_found(root: Path) -> None:
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(NotFound):
        resolve(root, "loop")


@pytest.mark.parametrize(
    "path", ["other", "net/11", "empty", "empty/1", "net/9/model.pt", "net/9/model.toml"]
)
def test_what_is_not_there_is_not_found(root: Path, path: str) -> None:
    with pytest.raises(NotFound, match="the model repository has no model"):
        resolve(root, path)


def test_two_files_of_one_version_must_be_told_apart(root: Path) -> None:
    _write(root, "net/10/model.pt")
    with pytest.raises(InvalidRequest, match=r"model\.pt and model\.onnx"):
        resolve(root, "net")
    assert resolve(root, "net/10/model.pt").path.name == "model.pt"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"bounds = [1, 0]", "manifest.inputs[0].bounds"),
        (b"bounds = ", "not TOML"),
        (b"\xff\xfe", "UTF-8"),
        (b"#" * (1 << 21), "over 1 MiB"),
    ],
)
def test_a_wrong_manifest_names_its_model_and_field(
    root: Path, content: bytes, sentence: str
) -> None:
    (root / "digits/v1/model.toml").write_bytes(content)
    with pytest.raises(InvalidRequest) as caught:
        resolve(root, "digits")
    assert "'digits'" in caught.value.message
    assert sentence in caught.value.message
    assert caught.value.violations


@pytest.mark.parametrize("file", ["net/versions.toml", "net/labels.txt", "net/10/labels.txt"])
def test_what_describes_a_model_is_no_model(root: Path, file: str) -> None:
    _write(root, file, "cat\ndog")
    with pytest.raises(NotFound):
        resolve(root, file)


def test_labels_are_one_a_line_and_the_versions_own_win(root: Path) -> None:
    _write(root, "digits/labels.txt", "\ufeffcat\r\n dog \r\nWärmflasche\r\n\r\n")
    assert resolve(root, "digits").manifest.labels == ("cat", "dog", "Wärmflasche")
    _write(root, "digits/v1/labels.txt", "a\nb")
    assert resolve(root, "digits").manifest.labels == ("a", "b")


def test_the_manifests_labels_win_over_the_file(root: Path) -> None:
    _write(root, "net/labels.txt", "x\ny")
    assert resolve(root, "net").manifest.labels == ("a", "b")
    assert resolve(root, "net/9").manifest.labels == ("x", "y")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"cat\n\ndog\n", "line 2 of the labels.txt of 'digits' is empty"),
        (b"\xff\xfe", "the labels.txt of 'digits' cannot be read as UTF-8 text"),
        (b"x" * (17 << 20), "over 16 MiB"),
    ],
)
def test_wrong_labels_are_refused_in_a_sentence(root: Path, content: bytes, sentence: str) -> None:
    (root / "digits/labels.txt").write_bytes(content)
    with pytest.raises(InvalidRequest) as caught:
        resolve(root, "digits")
    assert sentence in caught.value.message
    assert caught.value.violations[0].field == "labels"


def test_labels_behind_a_link_out_of_the_repository_are_refused(root: Path) -> None:
    _write(root.parent, "labels.txt", "secret")
    (root / "digits/labels.txt").symlink_to(root.parent / "labels.txt")
    with pytest.raises(InvalidRequest, match="leads out of the model repository"):
        resolve(root, "digits")
