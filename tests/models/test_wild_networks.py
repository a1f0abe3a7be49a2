"""Many kinds of networks, from exporters of every format, against the eager module."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from wild import Inputs, Wild, check, export, load
from wild_networks import (
    WORDS,
    Averaged,
    Bert,
    Capsules,
    Coordinates,
    Ensemble,
    Experts,
    FourierText,
    MelSpectrogram,
    Perceiver,
    ResponseNormalised,
    Siamese,
    SpatialTransformer,
    Spectrum,
    Standardised,
    TextCnn,
    Unfolded,
    Video,
    Windows,
)

ALL = ("trace", "export1", "onnx1")
NEWER = ("trace", "export1", "dynamo1")  # for operators that the older ONNX exporter lacks
EVERY = {"default": None}


def _words(dtype: torch.dtype) -> Callable[[int], Inputs]:
    def draw(rows: int) -> Inputs:
        kept = torch.arange(12) < torch.randint(5, 13, (rows, 1))
        words = torch.randint(1, WORDS, (rows, 12)) * kept
        segments = (torch.arange(12) > 6) * kept
        return words.to(dtype), kept.to(dtype), segments.to(dtype)

    return draw


def _tokens(rows: int) -> Inputs:
    return (torch.randint(1, WORDS, (rows, 14)),)


def _numbers(*shape: int) -> Callable[[int], Inputs]:
    return lambda rows: (torch.randn(rows, *shape),)


def _pair(rows: int) -> Inputs:
    return torch.randn(rows, 3, 12, 12), torch.randn(rows, 3, 12, 12)


def _logarithm(probabilities: Tensor) -> Tensor:
    return probabilities.log()


_BERT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
_BERT_FIELDS = {"attention_mask": EVERY, "token_type_ids": EVERY}
IMAGE, SOUND = _numbers(3, 16, 16), _numbers(800)
CASES = {
    "bert": Wild(Bert, _words(torch.int64), _BERT_NAMES, _BERT_FIELDS, {}, "word",
                 exporters=("script", *ALL)),
    "bert-int32": Wild(Bert, _words(torch.int32), _BERT_NAMES, _BERT_FIELDS, {}, "word",
                       exporters=("export", "onnx")),
    "bert-free": Wild(Bert, _words(torch.int64), _BERT_NAMES, _BERT_FIELDS, {}, "word", (1,),
                      exporters=("script", "export", "onnx")),
    "text-cnn": Wild(TextCnn, _tokens, embedding="embedding", exporters=ALL),
    "fourier": Wild(FourierText, _tokens, embedding="embedding", exporters=NEWER),
    "mel": Wild(MelSpectrogram, SOUND, exporters=("script", *NEWER)),
    "siamese": Wild(Siamese, _pair, ("left", "right"), exporters=("script", *ALL)),
    "capsules": Wild(Capsules, _numbers(1, 14, 14), exporters=ALL),
    "spatial": Wild(SpatialTransformer, _numbers(1, 16, 16), exporters=NEWER),
    "coordinates": Wild(Coordinates, IMAGE, exporters=ALL),
    "standardised": Wild(Standardised, IMAGE, exporters=ALL),
    "response": Wild(ResponseNormalised, IMAGE, exporters=ALL),
    "perceiver": Wild(Perceiver, _numbers(20, 6), exporters=ALL),
    "unfolded": Wild(Unfolded, IMAGE, exporters=("trace", "export1")),
    "experts": Wild(Experts, _numbers(12), exporters=ALL),
    "averaged": Wild(Averaged, IMAGE, exporters=("trace", "export", "onnx1")),
    "ensemble": Wild(Ensemble, IMAGE, logits=_logarithm, exporters=("script", *ALL)),
    "video": Wild(Video, _numbers(3, 6, 12, 12), exporters=ALL),
    "windows": Wild(Windows, IMAGE, exporters=ALL),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "exporter"), [(name, item) for name, wild in CASES.items() for item in wild.exporters]
)
def test_served_as_the_eager_module_computes(name: str, exporter: str, tmp_path: Path) -> None:
    wild = CASES[name]
    module = wild.module()
    loaded = load(wild, export(wild, module, exporter, tmp_path))
    assert loaded.info.form == "graph"
    assert loaded.info.verification.inputs >= 7
    check(wild, module, loaded, tolerance=3e-5)


def test_an_executor_that_rounds_coarsely_is_doubted(tmp_path: Path) -> None:
    wild = Wild(Spectrum, SOUND)
    module = wild.module()
    loaded = load(wild, export(wild, module, "dynamo1", tmp_path))
    assert loaded.info.verification.reference == "onnx.reference"
    assert loaded.info.verification.relative_difference < 1e-5
    assert any("onnxruntime rounds this network coarsely" in note for note in loaded.info.notes)
    check(wild, module, loaded)
