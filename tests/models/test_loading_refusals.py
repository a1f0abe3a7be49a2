"""Files and manifests that cannot be served, each refused with a sentence to act on."""

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from loading_files import IMAGE, Net, load, onnx_file, script
from torch import Tensor, nn

from interpret_server.errors import (
    InterpretError,
    InvalidModel,
    InvalidRequest,
    ModelRejected,
    NotFound,
)


def _bytes(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _zip(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return stream.getvalue()


_NEITHER = "no TorchScript or torch.export archive and no ONNX model"


@pytest.mark.parametrize(
    ("content", "error", "sentence"),
    [
        (b"", InvalidModel, _NEITHER),
        (b"not a model at all", InvalidModel, _NEITHER),
        (b"\x89HDF\r\n\x1a\n", InvalidModel, _NEITHER),
        (b"\x80\x02}q\x00.", InvalidModel, "pickled checkpoint"),
        (_bytes(Net().state_dict()), InvalidModel, "pickled checkpoint"),
        (_zip("model/data.txt"), InvalidModel, "no TorchScript or torch.export archive"),
        (_zip("m/archive_format", "m/data/aotinductor/m.so"), ModelRejected, "AOTInductor"),
        (_zip("m/data.pkl", "m/constants.pkl", "m/version"), InvalidModel, "corrupt"),
    ],
)
def test_a_file_that_is_no_model_is_refused(
    tmp_path: Path, content: bytes, error: type[InterpretError], sentence: str
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        load(path, **IMAGE)
    assert sentence in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, share: float) -> None:
    for path in (script(Net(), tmp_path), onnx_file(Net(), tmp_path)):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InvalidModel):
            load(path, **IMAGE)


def test_a_file_of_another_format_than_stated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"says an ONNX model, but the file is a TorchScript"):
        load(script(Net(), tmp_path), **IMAGE, format="onnx")
    with pytest.raises(InvalidModel, match=r"says a TorchScript archive, but the file is an ONNX"):
        load(onnx_file(Net(), tmp_path), **IMAGE, format="torchscript")


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.pt", tmp_path):
        with pytest.raises(NotFound, match="does not exist"):
            load(path)


@pytest.mark.parametrize(
    ("fields", "field", "sentence"),
    [
        ({}, "manifest.inputs[0].shape", "does not tell the shape"),
        (
            {"shape": (3, None, 8), "example": (3, 8, 9)},
            "manifest.inputs[0].example",
            "[3, 8, 9] is no row of [3, free, 8]",
        ),
        ({"shape": (3, 9, 8)}, "manifest.inputs[0].shape", "cannot be multiplied"),
        ({"shape": (1 << 15, 1 << 15)}, "manifest.inputs[0].shape", "too large"),
        ({**IMAGE, "labels": ("a", "b")}, "manifest.labels", "2 labels for 5 classes"),
        ({**IMAGE, "mean": (1, 2)}, "manifest.inputs[0].mean", "2 values for 3 channels"),
        ({**IMAGE, "layout": "CL"}, "manifest.inputs[0].layout", "CL does not fit"),
        (
            {**IMAGE, "layout": "other", "mean": (1, 2, 3)},
            "manifest.inputs[0].layout",
            "which axis",
        ),
        ({**IMAGE, "output": {"name": "y"}}, "manifest.output.name", "'output' [1, 5]"),
    ],
)
def test_what_the_manifest_must_say_is_named(
    tmp_path: Path, fields: dict[str, Any], field: str, sentence: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load(script(Net(), tmp_path), **fields)
    assert caught.value.violations[0].field == field
    assert sentence in caught.value.message


@pytest.mark.parametrize(
    ("fields", "field", "sentence"),
    [
        ({"shape": (3, 9, 9)}, "manifest.inputs[0].shape", "takes [3, 8, 8], not [3, 9, 9]"),
        ({"shape": (3, 8)}, "manifest.inputs[0].shape", "takes [3, 8, 8], not [3, 8]"),
        ({"inputs": ({"name": "image"},)}, "manifest.inputs[0].name", "'x'"),
    ],
)
def test_a_manifest_that_contradicts_an_onnx_file_is_refused(
    tmp_path: Path, fields: dict[str, Any], field: str, sentence: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load(onnx_file(Net(), tmp_path), **fields)
    assert caught.value.violations[0].field == field
    assert sentence in caught.value.message


def test_an_onnx_file_of_too_many_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match="takes 100000000 rows at a time; at most 1024"):
        load(onnx_file(Net(), tmp_path, rows=100_000_000), **IMAGE)


def test_the_shape_of_every_input_is_asked_for(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    with pytest.raises(InvalidRequest, match="does not tell the shape") as caught:
        load(script(Two(), tmp_path), shape=(4,))
    assert caught.value.violations[0].field == "manifest.inputs[1].shape"
