"""Real inputs beside a model verify it too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interpret_server.errors import InvalidRequest, ModelRejected
from interpret_server.models.loading import LoadedModel, load_classifier
from interpret_server.models.lowered import Lowered
from interpret_server.models.manifest import Manifest
from interpret_server.models.repository import resolve, scan
from interpret_server.models.sources import TorchScriptSource

RNG = np.random.default_rng(0)


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.conv(x)).mean((2, 3)))


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(30, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        kept = mask.unsqueeze(2).to(torch.float32)
        return self.last((self.embedding(tokens) * kept).sum(1) / (kept.sum(1) + 1))


def _load(net: nn.Module, folder: Path, samples: Any, **fields: Any) -> LoadedModel:
    torch.jit.save(torch.jit.script(net.eval()), str(folder / "model.pt"))
    if isinstance(samples, dict):
        path = folder / "samples.npz"
        np.savez(path, **samples)
    else:
        path = folder / "samples.npy"
        np.save(path, samples)
    return load_classifier(
        "net",
        folder / "model.pt",
        Manifest.model_validate(fields),
        device=torch.device("cpu"),
        samples=path,
    )


IMAGE = {"shape": (3, 6, 6), "bounds": (0, 255), "mean": (100.0, 110.0, 120.0), "std": 60.0}
TEXT = {"inputs": [{"name": "tokens", "shape": [7]}, {"name": "mask", "shape": [7]}]}


def _texts(rows: int) -> dict[str, Any]:
    return {
        "tokens": RNG.integers(0, 30, (rows, 7), dtype=np.int32),
        "mask": RNG.integers(0, 2, (rows, 7)),
    }


def test_rows_in_the_callers_units_are_counted(tmp_path: Path) -> None:
    samples = RNG.integers(0, 256, (11, 3, 6, 6), dtype=np.uint8)
    verification = _load(Image(), tmp_path, samples, **IMAGE).info.verification
    assert verification.batch_sizes == (5, 2, 8, 3)
    assert verification.inputs == 18


def test_of_many_rows_a_few_are_used(tmp_path: Path) -> None:
    samples = RNG.random((40, 3, 6, 6))
    assert _load(Image(), tmp_path, samples, **IMAGE).info.verification.inputs == 7 + 32


def test_several_inputs_by_name(tmp_path: Path) -> None:
    assert _load(Text(), tmp_path, _texts(3), **TEXT).info.verification.inputs == 10


def test_a_difference_on_real_inputs_alone_refuses_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower = TorchScriptSource.lower

    def wrong_at_42(self: TorchScriptSource, *examples: Tensor) -> Lowered:
        lowered = lower(self, *examples)
        graph = lowered.graph.graph
        output, given = graph.output_node(), next(iter(graph.nodes))
        with graph.inserting_before(output):
            node = graph.call_function(_wrong_at_42, (output.args[0], given))
        output.args = (node,)
        lowered.graph.recompile()
        return lowered

    monkeypatch.setattr(TorchScriptSource, "lower", wrong_at_42)
    samples = np.full((1, 3, 6, 6), 42.0)
    with pytest.raises(ModelRejected, match="differs from the file's own execution"):
        _load(Image(), tmp_path, samples, shape=(3, 6, 6))
    assert _load(Image(), tmp_path, samples + 1, shape=(3, 6, 6)).info.verification.inputs == 8


def _wrong_at_42(output: Tensor, x: Tensor) -> Tensor:
    return output + (x == 42).all(3).all(2).all(1)[:, None]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 6, 6, 3)), r"x has the shape \[2, 6, 6, 3\], where \[rows, 3, 6, 6\]"),
        (np.zeros((3, 6, 6)), "x has the shape"),
        (np.zeros((0, 3, 6, 6)), "at least one"),
        (np.full((1, 3, 6, 6), 256), "x has values above 255"),
        (np.full((1, 3, 6, 6), -1), "x has values below 0"),
        (np.full((1, 3, 6, 6), np.nan), "x holds NaN"),
        (np.full((1, 3, 6, 6), "a"), "no numbers"),
        ({"y": np.zeros((1, 3, 6, 6))}, "one array called x"),
    ],
)
def test_other_rows_than_the_models_are_refused(samples: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=f"^samples: .*{message}"):
        _load(Image(), tmp_path, samples, **IMAGE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": np.full((3, 7), 30)}, "tokens has values above 29"),
        ({"tokens": np.zeros((3, 7))}, "tokens holds float64, where integers are needed"),
        ({"mask": np.zeros((2, 7), np.int64)}, "the same number of rows"),
        ({"third": np.zeros((3, 7))}, "an array for each of tokens, mask"),
    ],
)
def test_other_inputs_than_the_models_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=f"^samples: .*{message}"):
        _load(Text(), tmp_path, _texts(3) | change, **TEXT)


def test_what_is_no_numpy_file_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Image()), str(tmp_path / "model.pt"))
    objects = np.empty(1, dtype=object)
    objects[0] = {}
    np.save(tmp_path / "samples.npy", objects, allow_pickle=True)
    (tmp_path / "samples.npz").write_bytes(b"PK\x03\x04")
    for name in ("samples.npy", "samples.npz"):
        with pytest.raises(InvalidRequest, match=f"^samples: {name} is no NumPy file"):
            load_classifier(
                "net",
                tmp_path / "model.pt",
                Manifest.model_validate(IMAGE),
                device=torch.device("cpu"),
                samples=tmp_path / name,
            )


def test_a_repository_offers_the_samples_beside_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "net" / "1"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"model")
    before = resolve(tmp_path, "net")
    assert before.samples is None
    (folder / "samples.npy").write_bytes(b"samples")
    after = resolve(tmp_path, "net")
    assert after.samples == folder / "samples.npy"
    assert after.stamp != before.stamp
    (folder / "samples.npy").write_bytes(b"other samples")
    assert resolve(tmp_path, "net").stamp != after.stamp
    (folder / "samples.npz").write_bytes(b"samples")
    assert "keep one of them" in scan(tmp_path)["net"].problems[0].message


def test_samples_that_lead_out_of_the_repository_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "net" / "1"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"model")
    (tmp_path / "secret.npy").write_bytes(b"samples")
    (folder / "samples.npy").symlink_to(tmp_path / "secret.npy")
    with pytest.raises(InvalidRequest, match="leads out of the model repository"):
        resolve(tmp_path / "models", "net")
