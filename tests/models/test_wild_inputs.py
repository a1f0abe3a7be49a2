"""Networks of several and unusual inputs, from every exporter that can write them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from wild import Wild, check, export, load, quiet

from interpret_server.errors import ModelRejected
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest

WORDS = 60


class CharLstm(nn.Module):
    """Reads as many characters of a row as its length says."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8)
        self.lstm = nn.LSTM(8, 12, batch_first=True, bidirectional=True)
        self.last = nn.Linear(24, 5)

    def forward(self, chars: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embedding(chars), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, (state, _) = self.lstm(packed)
        return self.last(torch.cat([state[0], state[1]], 1))


class Dlrm(nn.Module):
    """One category per row and table, and numbers beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(20, 8), nn.Embedding(10, 8)
        self.bottom = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(11, 16), nn.ReLU(), nn.Linear(16, 3))
        self.register_buffer("left", torch.tensor([0, 0, 1]))
        self.register_buffer("right", torch.tensor([1, 2, 2]))

    def forward(self, user_id: Tensor, item_id: Tensor, dense: Tensor) -> Tensor:
        dense = self.bottom(dense)
        rows = torch.stack([dense, self.users(user_id), self.items(item_id)], 1)
        products = torch.bmm(rows, rows.transpose(1, 2))
        return self.top(torch.cat([dense, products[:, self.left, self.right]], 1))


class FeatureTokenizer(nn.Module):
    """A transformer over a table's columns: the file takes integers for its numbers too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(5, 8))
        self.embedding = nn.Embedding(11, 8)
        self.register_buffer("offsets", torch.tensor([0, 4]))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x_cat: Tensor, x_num: Tensor) -> Tensor:
        numbers = x_num[:, :, None] * self.weight + self.bias
        columns = torch.cat([numbers, self.embedding(x_cat + self.offsets)], 1)
        return self.last(self.encoder(columns).mean(1))


def _chars(rows: int) -> tuple[Tensor, ...]:
    return torch.randint(1, WORDS, (rows, 10)), torch.randint(1, 11, (rows,))


def _facts(rows: int) -> tuple[Tensor, ...]:
    return torch.randint(20, (rows,)), torch.randint(10, (rows,)), torch.randn(rows, 6)


def _columns(rows: int) -> tuple[Tensor, ...]:
    return torch.randint(4, (rows, 2)), torch.randn(rows, 5)


CASES = {
    "lengths": Wild(
        CharLstm, _chars, ("chars", "lengths"), embedding="embedding", exporters=("script", "trace")
    ),
    "recommender": Wild(Dlrm, _facts, ("user_id", "item_id", "dense"), embedding="users"),
    "columns": Wild(FeatureTokenizer, _columns, ("x_cat", "x_num"), embedding="embedding"),
}


@pytest.mark.parametrize(
    ("name", "exporter"), [(name, item) for name, wild in CASES.items() for item in wild.exporters]
)
def test_inputs_are_told_apart(name: str, exporter: str, tmp_path: Path) -> None:
    wild = CASES[name]
    module = wild.module()
    loaded = load(wild, export(wild, module, exporter, tmp_path))
    assert loaded.info.form == "graph"
    assert loaded.info.inputs[0].kind == "tokens"
    check(wild, module, loaded)


def test_a_neutral_row_has_lengths_that_the_network_takes(tmp_path: Path) -> None:
    wild = CASES["lengths"]
    classifier = load(wild, export(wild, wild.module(), "script", tmp_path)).classifier
    assert bool(classifier(classifier.neutral(2)).isfinite().all())


class Baked(nn.Module):
    """Has its training code's batch size written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([x, torch.ones(8, 2)], 1))


def test_a_batch_size_inside_the_network_is_found(tmp_path: Path) -> None:
    wild = Wild(Baked, lambda rows: (torch.randn(rows, 4),))
    module, path = wild.module(), tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(module), str(path))
    loaded = load(wild, path)
    assert "8 rows at a time" in loaded.info.form_reason
    x = torch.randn(8, 4)
    torch.testing.assert_close(loaded.classifier(x[:3]), module(x)[:3])


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(WORDS, 12, mode="mean"), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bag(x))


def test_indices_without_a_slope_are_no_numbers(tmp_path: Path) -> None:
    wild = Wild(Bag, lambda rows: (torch.randint(WORDS, (rows, 9)),))
    module = wild.module()
    loaded = load(wild, export(wild, module, "onnx", tmp_path))
    assert loaded.info.inputs[0].kind != "values"
    x = wild.inputs(3)[0]
    torch.testing.assert_close(loaded.classifier(loaded.classifier.encode(x)), module(x))


class Pooled(nn.Module):
    """Any height and width, in colour or in grey."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.last = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_which_the_file_tells_no_size_is_tried(channels: int, tmp_path: Path) -> None:
    module, path = Pooled(channels).eval(), tmp_path / "m.onnx"
    names = {0: "N", 1: "C", 2: "H", 3: "W"}
    with quiet():
        torch.onnx.export(
            module, (torch.rand(1, channels, 8, 8),), str(path), dynamo=False, opset_version=17,
            input_names=["x"], dynamic_axes={"x": names},
        )  # fmt: skip
    loaded = load_classifier("net", path, Manifest(), device=torch.device("cpu"))
    assert loaded.info.input_shape == (channels, -1, -1)
    x = torch.rand(2, channels, 9, 7)
    torch.testing.assert_close(loaded.classifier(x), module(x))


class Ranked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, classes = torch.topk(self.last(x).softmax(1), 3)
        return scores, classes


@pytest.mark.parametrize("exporter", ["script", "export", "onnx"])
def test_ranked_scores_are_no_classes(exporter: str, tmp_path: Path) -> None:
    wild = Wild(Ranked, lambda rows: (torch.randn(rows, 8),))
    with pytest.raises(ModelRejected, match="the highest scores in descending order"):
        load(wild, export(wild, wild.module(), exporter, tmp_path))
