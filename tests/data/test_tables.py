"""CSV and Parquet files below a data root."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from numpy.typing import NDArray
from PIL import Image

from interpret_server.data import DataRoot
from interpret_server.data.columns import Shape
from interpret_server.engine.api import Array
from interpret_server.errors import InvalidRequest

X = np.random.default_rng(0).random((10, 4)).astype(np.float32)
Y = np.arange(10) % 3


def values(found: Any) -> NDArray[Any]:
    assert isinstance(found, Array)
    return np.frombuffer(found.data, found.dtype).reshape(found.shape)


def write_csv(path: Path, header: str, rows: Any, separator: str = ",") -> None:
    lines = [separator.join(map(repr, map(float, row))) for row in rows]
    path.write_text("\n".join([header, *lines]) + "\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    labelled = np.column_stack([X[:, 0], Y, X[:, 1:]])
    write_csv(tmp_path / "plain.csv", "a,label,b,c,d", labelled)
    write_csv(tmp_path / "tabs.csv", "a\ty\tb\tc\td", labelled, "\t")
    columns = {name: X[:, place] for place, name in enumerate("abcd")} | {"label": Y}
    parquet.write_table(arrow.table(columns), tmp_path / "numbers.parquet", row_group_size=3)
    lists = arrow.array(X.reshape(10, 2, 2).tolist(), arrow.list_(arrow.list_(arrow.float32())))
    table = arrow.table({"label": Y, "inputs": lists, "id": [str(row) for row in Y]})
    parquet.write_table(table, tmp_path / "lists.parquet", row_group_size=4)
    return tmp_path


@pytest.mark.parametrize("name", ["plain", "plain.csv", "tabs", "numbers"])
@pytest.mark.parametrize("rows", [range(10), [7, 0, 7, 3], [9]])
def test_columns_are_rows_and_classes(root: Path, name: str, rows: Any):
    data = DataRoot(root).open(name)
    assert len(data) == 10
    np.testing.assert_array_equal(values(data.inputs(rows)), X[list(rows)])
    np.testing.assert_array_equal(data.labels(rows), Y[list(rows)])
    assert data.nbytes(rows) == 4 * 4 * len(rows)


@pytest.mark.parametrize("name", ["plain", "numbers"])
def test_rows_take_the_models_shape_and_its_features(root: Path, name: str):
    shaped = DataRoot(root).open(name, (), Shape((1, 2, 2)))
    np.testing.assert_array_equal(values(shaped.inputs([1, 2])), X[1:3].reshape(2, 1, 2, 2))
    other = DataRoot(root).open(name, (), Shape((5,)))
    assert values(other.inputs([0])).shape == (1, 4), "of other sizes: the model refuses them"
    chosen = DataRoot(root).open(name, (), Shape((2,), ("c", "a")))
    np.testing.assert_array_equal(values(chosen.inputs(range(10))), X[:, [2, 0]])


def test_lists_are_rows(root: Path):
    data = DataRoot(root).open("lists", (), Shape((1, 2, 2)))
    rows = [9, 0, 4]
    np.testing.assert_array_equal(values(data.inputs(rows)), X[rows].reshape(3, 1, 2, 2))
    np.testing.assert_array_equal(data.labels(rows), Y[rows])


@pytest.mark.parametrize("wrapped", [False, True])
def test_encoded_images_are_passed_on(root: Path, wrapped: bool):
    files = []
    for shade in range(5):
        stream = io.BytesIO()
        Image.new("L", (3, 3), shade * 50).save(stream, "PNG")
        files.append(stream.getvalue())
    images = [{"bytes": file, "path": None} for file in files] if wrapped else files
    table = arrow.table({"image": images, "label": list(range(5))})
    parquet.write_table(table, root / "images.parquet", row_group_size=2)
    data = DataRoot(root).open("images")
    assert data.inputs([4, 1]) == (files[4], files[1])
    assert data.labels([4, 1]).tolist() == [4, 1]


def test_without_classes_there_are_no_labels(root: Path):
    write_csv(root / "bare.csv", "a,b", X[:, :2])
    assert DataRoot(root).open("bare").labels([0]) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n", "no rows"),
        ("a,b\n1,x\n", "column 'b' of row 0 of wrong is no number"),
        ("a,b\n1,2\n3\n", "row 1 of wrong has 1 fields, and its header 2"),
        ("a,a\n1,2\n", "bear one name"),
        ("label\n1\n", "no column of values"),
        ('a,"b\n1,2\n', "no CSV file"),
        ("a,label\n1,0.5\n", "not one whole number"),
        ("a,label\n1,nan\n", "not one whole number"),
    ],
)
def test_what_is_no_table_is_refused(root: Path, text: str, said: str):
    (root / "wrong.csv").write_text(text)

    def read() -> None:
        data = DataRoot(root).open("wrong")
        data.inputs(range(len(data)))
        data.labels(range(len(data)))

    with pytest.raises(InvalidRequest, match=said) as caught:
        read()
    assert caught.value.violations[0].field == "inputs.dataset"


def test_damaged_parquet_files_are_refused(root: Path):
    whole = (root / "numbers.parquet").read_bytes()
    for place in (0, len(whole) // 3, len(whole) - 9):
        (root / "wrong.parquet").write_bytes(whole[:place])
        with pytest.raises(InvalidRequest, match="no whole Parquet file"):
            DataRoot(root).open("wrong")
    table = arrow.table({"a": [1.0, None], "label": [0, 1]})
    parquet.write_table(table, root / "holes.parquet")
    with pytest.raises(InvalidRequest, match="something else than a number in column 'a'"):
        DataRoot(root).open("holes").inputs([0, 1])
    uneven = arrow.table({"x": [[1.0], [1.0, 2.0]]})
    parquet.write_table(uneven, root / "uneven.parquet")
    with pytest.raises(InvalidRequest, match="differing lengths"):
        DataRoot(root).open("uneven").inputs([0, 1])
