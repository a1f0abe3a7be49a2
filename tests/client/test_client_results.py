"""Tensors on the wire, and results on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from interpret_api.v1 import types_pb2 as types
from interpret_client import Client, ServerError, _codec
from interpret_client.results import plain


@pytest.mark.parametrize("dtype", [name for name in _codec._DTYPES if name != "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3), (1, 2, 2, 2)])
def test_tensor_round_trip_is_exact(dtype: str, shape: tuple[int, ...]) -> None:
    values = (np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)
    message = _codec.encode_tensor(values, "inputs")
    decoded = _codec.decode_tensor(types.Tensor.FromString(message.SerializeToString()), "inputs")
    assert decoded.dtype == values.dtype
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, values)
    assert decoded.shape == shape


def test_tensor_bytes_are_little_endian_in_c_order() -> None:
    values = np.asfortranarray(np.array([[1, 2], [3, 4]], dtype=">i2"))
    message = _codec.encode_tensor(values, "inputs")
    assert message.data == bytes([1, 0, 2, 0, 3, 0, 4, 0])


def test_bfloat16_arrives_as_the_same_float32() -> None:
    values = torch.tensor([1.0, -2.5, 3e38, float("inf")], dtype=torch.bfloat16)
    data = values.view(torch.uint8).numpy().tobytes()
    message = types.Tensor(dtype=types.DATA_TYPE_BFLOAT16, shape=[4], data=data)
    decoded = _codec.decode_tensor(message, "images")
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, values.float().numpy())


def test_bfloat16_arrays_of_ml_dtypes_are_sent() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.array([1.0, -2.5], dtype=ml_dtypes.bfloat16)
    message = _codec.encode_tensor(values, "inputs")
    np.testing.assert_array_equal(_codec.decode_tensor(message, "inputs"), [1.0, -2.5])


def test_lists_of_floats_become_float32() -> None:
    assert _codec.encode_tensor([[0.5]], "inputs").dtype == types.DATA_TYPE_FLOAT32
    assert _codec.encode_tensor(np.zeros(1), "inputs").dtype == types.DATA_TYPE_FLOAT64
    assert _codec.encode_tensor([[1]], "inputs").dtype == types.DATA_TYPE_INT64


@pytest.mark.parametrize(
    "message",
    [
        types.Tensor(dtype=types.DATA_TYPE_FLOAT32, shape=[2], data=b"1234"),
        types.Tensor(shape=[1], data=b"1234"),
    ],
)
def test_damaged_answer_is_the_servers_fault(message: types.Tensor) -> None:
    with pytest.raises(ServerError, match="logits: the server sent"):
        _codec.decode_tensor(message, "logits")


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (None, []),
        (3, [3]),
        (np.uint64(2**64 - 1), [2**64 - 1]),
        (range(2), [0, 1]),
        (np.array([4, 5]), [4, 5]),
        (torch.tensor([6, 7]), [6, 7]),
    ],
)
def test_seeds(seed: object, expected: list[int]) -> None:
    assert _codec.encode_seeds(seed) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, []),
        (3, [3]),
        (np.int32(3), [3]),
        ([1, 2], [1, 2]),
        (np.array([1, 2]), [1, 2]),
        (np.array(1), [1]),
        (torch.tensor([1, 2]), [1, 2]),
        ({"class": 4}, [4]),
        ({"layer": "a", "channel": np.int64(1)}, [{"layer": "a", "channel": 1}]),
        ({"layer": "a", "neuron": (1, 2)}, [{"layer": "a", "neuron": [1, 2]}]),
        ({"layer": "a"}, [{"layer": "a"}]),
        ([{"layer": "a"}, 2], [{"layer": "a"}, 2]),
    ],
)
def test_targets(target: object, expected: list[object]) -> None:
    assert [_codec.decode_target(item) for item in _codec.encode_targets(target)] == expected


def test_direction_is_sent_as_float32() -> None:
    (message,) = _codec.encode_targets({"layer": "a", "direction": np.array([1, 2])})
    decoded = _codec.decode_target(message)
    assert isinstance(decoded, dict)
    np.testing.assert_array_equal(decoded["direction"], np.array([1, 2], np.float32))


def test_saved_result_can_be_read_back(client: Client, inputs: np.ndarray, tmp_path: Path) -> None:
    result = client.run("saliency", "net", inputs, target=[1, 2], seed=5, render=True)
    written = result.save(tmp_path / "new" / "out")
    assert sorted(path.name for path in written) == [
        "attributions-0.png",
        "attributions-1.png",
        "result.json",
        "tensors.npz",
    ]
    with np.load(tmp_path / "new/out/tensors.npz", allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["attributions"], result.tensors["attributions"])
    document = json.loads((tmp_path / "new/out/result.json").read_text())
    assert document["metrics"] == {"distance": [0.0, 0.1]}
    assert document["warnings"] == [{"message": "the gradient vanishes", "rows": [0]}]
    assert document["before"][0]["classes"] == list(result.before[0].classes)
    assert document["tensors"]["attributions"]["shape"] == [2, 1, 2, 2]
    assert document["provenance"]["targets"] == [1, 2]
    assert document["provenance"]["seeds"] == [5]
    png = (tmp_path / "new/out/attributions-1.png").read_bytes()
    assert png == result.pictures["attributions"][1]


def test_saving_never_overwrites_unasked(client: Client, tmp_path: Path) -> None:
    result = client.run("saliency", "net")
    (tmp_path / "result.json").write_text("precious")
    with pytest.raises(FileExistsError, match="overwrit"):
        result.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert (tmp_path / "result.json").read_text() == "precious"
    result.save(tmp_path, overwrite=True)
    assert "provenance" in json.loads((tmp_path / "result.json").read_text())


def test_names_from_the_server_cannot_leave_the_folder(client: Client, tmp_path: Path) -> None:
    from dataclasses import replace

    result = client.run("saliency", "net", render=True)
    hostile = replace(
        result,
        tensors={"../file": np.zeros(1), "file": np.ones(1)},
        pictures={"../../up": (b"png",)},
    )
    written = hostile.save(tmp_path / "out")
    assert {path.parent for path in written} == {tmp_path / "out"}
    assert {path.resolve().parent for path in written} == {(tmp_path / "out").resolve()}
    with np.load(tmp_path / "out/tensors.npz") as saved:
        assert sorted(saved) == [".._file", "file"]


def test_plain_values_are_strict_json() -> None:
    value = {"a": np.float32("nan"), "b": {3, 1}, "c": np.array([np.inf, 1]), "d": (1, "x")}
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {
        "a": "nan",
        "b": [1, 3],
        "c": ["inf", 1.0],
        "d": [1, "x"],
    }
