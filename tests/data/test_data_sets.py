"""Data sets below a root: what is read, and what is refused."""

import io
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from interpret_server.data import DataRoot, StoredRows, arrays
from interpret_server.engine.api import MAX_ROWS, Array
from interpret_server.errors import InvalidRequest, NotFound

X = np.random.default_rng(0).random((20, 3, 2), dtype=np.float32)
Y = np.arange(20) % 7


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    np.savez(root / "stored.npz", inputs=X, labels=Y)
    np.savez_compressed(root / "compressed.npz", images=X, y=Y.astype(np.uint8))
    np.save(root / "sub" / "plain.npy", X)
    return root


def values(found: Any) -> NDArray[Any]:
    assert isinstance(found, Array)
    return np.frombuffer(found.data, found.dtype).reshape(found.shape)


def refusal(root: Path, name: str, *inputs: str, rows: Any = None, error: Any = InvalidRequest):
    def read() -> None:
        data = DataRoot(root).open(name, inputs)
        data.inputs(range(len(data)) if rows is None else rows)

    with pytest.raises(error) as caught:
        read()
    if error is InvalidRequest:
        assert caught.value.violations[0].field.startswith("inputs.dataset")
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["stored", "stored.npz", "compressed", "sub/plain", "sub/plain.npy"]
)
@pytest.mark.parametrize("rows", [range(20), range(3, 11), (5,), (19, 0, 7, 7, 2)])
def test_rows_are_read_in_the_order_in_which_they_are_asked_for(root: Path, name: str, rows: Any):
    data = DataRoot(root).open(name)
    assert len(data) == 20
    np.testing.assert_array_equal(values(data.inputs(rows)), X[list(rows)])
    assert data.nbytes(rows) == X[list(rows)].nbytes
    labels = data.labels(rows)
    if "plain" in name:
        assert labels is None
    else:
        assert labels is not None
        assert labels.dtype == np.int64
        assert labels.tolist() == Y[list(rows)].tolist()


@pytest.mark.parametrize("dtype", [">f4", "<f8", "f2", ">i8", "u1", "?"])
def test_types_become_little_endian(root: Path, dtype: str):
    given = (X * 100).astype(dtype)
    np.save(root / "typed.npy", given)
    found = values(DataRoot(root).open("typed").inputs(range(20)))
    assert found.dtype == np.dtype(dtype).newbyteorder("<")
    np.testing.assert_array_equal(found, given)


def test_only_the_rows_that_are_asked_for_are_read(root: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[int] = []
    monkeypatch.setattr(arrays, "_PIECE", 24)
    original = arrays.StoredArray._fill

    def fill(self: Any, stream: Any, view: Any, rows: Any) -> None:
        class Counting:
            seek = staticmethod(stream.seek)

            @staticmethod
            def read(size: int) -> bytes:
                data: bytes = stream.read(size)
                read.append(len(data))
                return data

        original(self, Counting(), view, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(arrays.StoredArray, "_fill", fill)
    DataRoot(root).open("stored").inputs(range(10, 12))
    assert read == [24, 24]


def test_a_model_of_several_inputs_takes_an_array_for_each(root: Path):
    np.savez(root / "two.npz", image=X, mask=Y, other=Y)
    found = DataRoot(root).open("two", ("image", "mask")).inputs((1, 2))
    assert isinstance(found, dict)
    np.testing.assert_array_equal(values(found["image"]), X[1:3])
    np.testing.assert_array_equal(values(found["mask"]), Y[1:3])
    assert "no array 'length'" in refusal(root, "two", "image", "length")
    assert "one array, and the model takes" in refusal(root, "sub/plain", "image", "mask")
    np.savez(root / "uneven.npz", image=X, mask=Y[:3])
    assert "differ in rows" in refusal(root, "uneven", "image", "mask")


def test_the_array_of_the_rows_is_found_by_its_name(root: Path):
    np.savez(root / "sole.npz", anything=X, labels=Y)
    np.savez(root / "named.npz", pixels=X, extra=Y)
    for name in ("sole", "named"):
        np.testing.assert_array_equal(
            values(DataRoot(root).open(name, ("pixels",)).inputs(range(20))), X
        )
    said = refusal(root, "named", "input")
    assert "holds pixels, extra; call the array of the rows inputs, images or x" in said


@pytest.mark.parametrize(
    "name",
    ["../secret", "..", "/etc/passwd", "sub/../../secret", ".hidden", "sub//plain", "", "a\0b",
     "sub\\plain", "x" * 2000, "sub/.hidden", "a\nb"],
)  # fmt: skip
def test_names_that_lead_out_are_refused(root: Path, name: str):
    np.save(root.parent / "secret.npy", X)
    np.save(root / ".hidden.npy", X)
    assert "below the data root" in refusal(root, name)


def test_links_that_lead_out_are_refused_and_others_followed(root: Path):
    np.save(root.parent / "secret.npy", X)
    (root.parent / "outside").mkdir()
    picture(root.parent / "outside" / "a.png", 1)
    (root / "file.npy").symlink_to(root.parent / "secret.npy")
    (root / "folder").symlink_to(root.parent)
    (root / "images").symlink_to(root.parent / "outside")
    (root / "inner.npy").symlink_to(root / "sub" / "plain.npy")
    (root / "loop.npy").symlink_to(root / "loop.npy")
    for name in ("file", "folder/secret", "folder", "images"):
        assert "leads out of the data root" in refusal(root, name)
    np.testing.assert_array_equal(values(DataRoot(root).open("inner").inputs(range(20))), X)
    refusal(root, "loop", error=NotFound)
    (root / "mixed").mkdir()
    (root / "mixed" / "a.png").symlink_to(root.parent / "outside" / "a.png")
    assert "row 0 of mixed is a link that leads out" in refusal(root, "mixed")


def test_an_unknown_name_is_answered_with_close_ones(root: Path):
    said = refusal(root, "storet", error=NotFound)
    assert said == "inputs.dataset: there is no data set 'storet'; did you mean stored?"


def test_pickled_objects_are_never_read(root: Path, tmp_path: Path):
    class Touch:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "touched"),))

    objects = np.array([Touch()], dtype=object)
    np.save(root / "objects.npy", objects, allow_pickle=True)
    np.savez(root / "pickled.npz", inputs=objects, labels=Y[:1])
    for name in ("objects", "pickled"):
        assert "never unpickled" in refusal(root, name)
    assert not (tmp_path / "touched").exists()


def test_arrays_that_no_tensor_holds_are_refused(root: Path):
    np.save(root / "complex.npy", X.astype(complex))
    np.save(root / "text.npy", np.array(["a", "b"]))
    np.save(root / "records.npy", np.zeros(3, [("a", "f4")]))
    np.save(root / "number.npy", np.float32(3))
    np.save(root / "fortran.npy", np.asfortranarray(X))
    for name in ("complex", "text", "records"):
        assert "which no tensor has" in refusal(root, name)
    assert "a single number" in refusal(root, "number")
    assert "Fortran order" in refusal(root, "fortran")
    (root / "notes.txt").write_text("hello")
    assert "neither a .npz, .npy, .csv or .parquet file nor a folder" in refusal(root, "notes.txt")


def test_labels_are_one_whole_number_for_each_row(root: Path):
    for name, labels in {"short": Y[:3], "real": Y / 2, "deep": Y.reshape(20, 1)}.items():
        np.savez(root / f"{name}.npz", inputs=X, labels=labels)
        with pytest.raises(InvalidRequest, match="not one whole number for each row"):
            DataRoot(root).open(name).labels(range(3))


def test_damaged_files_are_refused(root: Path):
    chance = np.random.default_rng(1)
    for kind in ("stored.npz", "compressed.npz", "sub/plain.npy"):
        whole = (root / kind).read_bytes()
        name = "damaged" + Path(kind).suffix
        for size in (0, 1, 30, len(whole) // 2, len(whole) - 1):
            (root / name).write_bytes(whole[:size])
            assert "cannot be read" in refusal(root, name)
        for _ in range(150):
            wrong = bytearray(whole)
            for place in chance.integers(0, len(wrong), 3):
                wrong[place] = chance.integers(256)
            (root / name).write_bytes(wrong)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    data = DataRoot(root).open(name)
                    if len(data) < 1000:
                        data.inputs(range(len(data)))
                except InvalidRequest:
                    pass


def npy(shape: str, data: bytes) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(-5, 3)", "(2, 2**62)", "(9" * 3, "('a',)"])
def test_headers_that_promise_too_much_are_refused(root: Path, shape: str):
    (root / "lie.npy").write_bytes(npy(shape, bytes(40)))
    assert "cannot be read" in refusal(root, "lie")


@pytest.mark.parametrize("length", [1 << 31, 20_000])
def test_a_header_that_never_ends_costs_nothing(root: Path, length: int):
    head = b"\x93NUMPY\x02\x00" + length.to_bytes(4, "little")
    with zipfile.ZipFile(root / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inputs.npy", head + b" " * (4 << 20))
    assert "cannot be read" in refusal(root, "bomb")


def test_a_bomb_is_inflated_no_further_than_the_limit(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(arrays, "MAX_INFLATED", 1 << 20)
    zeros = np.zeros((1 << 12, 1 << 10), np.float32)
    np.savez_compressed(root / "bomb.npz", inputs=zeros)
    np.savez(root / "large.npz", inputs=zeros)
    assert (root / "bomb.npz").stat().st_size < 1 << 17
    assert "numpy.savez" in refusal(root, "bomb", rows=(4000,))
    assert DataRoot(root).open("bomb").nbytes(range(4096)) == zeros.nbytes
    assert values(DataRoot(root).open("bomb").inputs((100,))).shape == (1, 1024)
    assert values(DataRoot(root).open("large").inputs((4000,))).shape == (1, 1024)


def test_other_archives_are_refused(root: Path):
    buffer = io.BytesIO()
    np.save(buffer, X)
    with zipfile.ZipFile(root / "lzma.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("inputs.npy", buffer.getvalue())
    assert "cannot be read" in refusal(root, "lzma")
    with zipfile.ZipFile(root / "many.npz", "w") as archive:
        for number in range(arrays.MAX_MEMBERS + 1):
            archive.writestr(f"{number}.npy", b"")
    assert "arrays" in refusal(root, "many")


def test_a_pipe_is_not_waited_for(root: Path):
    os.mkfifo(root / "pipe.npy")
    assert "neither" in refusal(root, "pipe")


def picture(path: Path, value: int) -> bytes:
    Image.new("L", (2, 2), value).save(path)
    return path.read_bytes()


def test_a_folder_of_images_is_sorted_by_name(root: Path):
    (root / "photos").mkdir()
    files = {name: picture(root / "photos" / name, i) for i, name in enumerate(["b.png", "a.PNG"])}
    (root / "photos" / "c.txt").write_text("no image")
    (root / "photos" / ".d.png").write_bytes(b"hidden")
    data = DataRoot(root).open("photos")
    assert len(data) == 2
    assert data.inputs((0, 1)) == (files["a.PNG"], files["b.png"])
    assert data.nbytes((1,)) == len(files["b.png"])
    assert data.labels((0, 1)) is None


def test_a_folder_for_each_class_gives_labels(root: Path):
    for label, name in enumerate(["cat", "dog"]):
        (root / "pets" / name).mkdir(parents=True)
        for number in range(label + 1):
            picture(root / "pets" / name / f"{number}.jpg", 9)
    data = DataRoot(root).open("pets")
    assert len(data) == 3
    labels = data.labels((2, 0))
    assert labels is not None
    assert labels.tolist() == [1, 0]


def test_rows_that_are_not_there_are_refused():
    assert StoredRows("a").of(3) == range(3)
    assert StoredRows("a", 1, 2).of(3) == range(1, 3)
    assert StoredRows("a", rows=(2, 0)).of(3) == (2, 0)
    for wrong, said in {
        StoredRows("a", 0, 4): "a has 3 rows, and no row 3",
        StoredRows("a", 3): "none from row 3 on",
        StoredRows("a", 2**62, 2**62): "ask for at most",
        StoredRows("a", 2**62): "none from row",
        StoredRows("a", rows=(0, -1)): "no row -1",
        StoredRows("a", rows=(0,) * (MAX_ROWS + 1)): "ask for at most",
    }.items():
        with pytest.raises(InvalidRequest, match=said) as caught:
            wrong.of(3)
        assert caught.value.violations[0].field == "inputs.dataset.rows"
    with pytest.raises(InvalidRequest, match="ask for at most"):
        StoredRows("a").of(10**12)
