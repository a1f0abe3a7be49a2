"""Tokens, several inputs, integers and free sizes, each against the eager network."""

from pathlib import Path
from typing import Any

import pytest
import torch
from loading_files import load, script
from torch import Tensor, nn
from torch.nn import functional as F

from interpret_server.errors import InvalidRequest
from interpret_server.models.classifier import Bounds
from interpret_server.models.inputs import ResolvedInput
from interpret_server.models.loading import LoadedModel
from interpret_server.models.original import InputSet
from interpret_server.models.targets import TargetKind, Targets

WORDS = 11
LENGTH = 7


class Text(nn.Module):
    """Averages what a GRU makes of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 6)
        self.rnn = nn.GRU(6, 5, batch_first=True)
        self.last = nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scores(self.table(tokens))

    def scores(self, embedded: Tensor) -> Tensor:
        return self.last(self.rnn(embedded)[0].mean(1))


class Padded(Text):
    """Ignores the padding, which is told by the tokens themselves."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.pooled(self.table(tokens), tokens)

    def pooled(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        kept = (tokens != 0).to(embedded.dtype).unsqueeze(2)
        return self.last((self.rnn(embedded)[0] * kept).sum(1) / (kept.sum(1) + 1))


class Masked(Text):
    """Takes the mask as an input of its own."""

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        return self.pooled(self.table(tokens), attention_mask)

    def pooled(self, embedded: Tensor, mask: Tensor) -> Tensor:
        kept = mask.to(embedded.dtype).unsqueeze(2)
        return self.last((self.rnn(embedded)[0] * kept).sum(1) / (kept.sum(1) + 1))


class SequenceFirst(Text):
    """Turns its rows so that time comes first before the lookup."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scores(self.table(tokens.t()).transpose(0, 1))


class Scene(nn.Module):
    """An image and a few numbers about it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = nn.Linear(4 + 2, 3)

    def forward(self, image: Tensor, facts: Tensor) -> Tensor:
        pooled = F.relu(self.conv(image)).mean((2, 3))
        return self.last(torch.cat([pooled, facts], 1))


class Bytes(nn.Module):
    """Scales bytes inside the network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = (image.to(torch.float32) / 255 - 0.45) / 0.2
        return self.last(F.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def export(net: nn.Module, examples: tuple[Tensor, ...], folder: Path, form: str) -> Path:
    """A network as a file in which batch and length are free."""
    net.eval()
    if form == "scripted":
        return script(net, folder)
    if form == "traced":
        return script(net, folder, examples if len(examples) > 1 else examples[0])
    names = [f"input{index}" for index in range(len(examples))]
    axes = {name: {0: "N", 1: "T"} for name in names}
    path = folder / "model.onnx"
    torch.onnx.export(net, examples, str(path), dynamo=False, input_names=names, dynamic_axes=axes)
    return path


FORMS = ["scripted", "traced", "onnx"]
pytestmark = pytest.mark.filterwarnings("ignore")


def tokens(rows: int = 3, length: int = LENGTH) -> Tensor:
    return torch.randint(0, WORDS, (rows, length))


def gradient(net: Any, x: Tensor, *others: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(net(leaf, *others)[:, 1].sum(), leaf)
    return found


def targets(rows: int) -> Targets:
    return Targets.classes(torch.ones(rows, dtype=torch.int64))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [Text, SequenceFirst])
def test_tokens_are_explained_at_their_embedding(kind: type[Text], form: str, tmp_path: Path):
    net = kind()
    path = export(net, (tokens(2),), tmp_path, form)
    model, info = (loaded := load(path, shape=(None,))).classifier, loaded.info
    (item,) = info.inputs
    assert (info.form, item.kind, item.shape, item.dtype) == ("graph", "tokens", (-1,), "int64")
    assert info.explained_shape == (-1, 6)
    assert model.packing is None
    for length in (LENGTH, 4):
        ids = tokens(3, length)
        x = model.encode(ids)
        torch.testing.assert_close(x, net.table(ids))
        torch.testing.assert_close(model(x), net(ids))
        found = model.gradient(x, targets(3)).inputs
        torch.testing.assert_close(found, gradient(net.scores, x))


def test_a_layer_is_called_the_embedding(tmp_path: Path) -> None:
    net = Text()
    model = load(export(net, (tokens(2),), tmp_path, "scripted"), shape=(None,)).classifier
    ids = tokens(2, 5)
    (values,) = model.activations(model.encode(ids), ["table"])
    torch.testing.assert_close(values, net.table(ids))
    assert model.layer("table").sizes == (None, 6)
    rnn = next(name for name in model.layers if name.startswith("rnn"))
    assert model.layer_shape(rnn, (5, 6)) == (5, 5)
    one = Targets(TargetKind.CHANNEL, torch.tensor([[5]]), layer=rnn)
    with pytest.raises(InvalidRequest, match="out of range"):
        model.check_targets(one, (5, 6))


@pytest.mark.parametrize("form", FORMS)
def test_tokens_that_are_also_compared_travel_beside_their_embeddings(form: str, tmp_path: Path):
    net = Padded()
    loaded = load(export(net, (tokens(2),), tmp_path, form), shape=(None,))
    model, ids = loaded.classifier, tokens(3, 5)
    ids[0, 3:] = 0
    x = model.encode(ids)
    assert x.shape == (3, 5 * 6 + 5)
    torch.testing.assert_close(model(x), net(ids))
    (found,) = model.split(model.gradient(x, targets(3)).inputs).values()
    expected = gradient(net.pooled, net.table(ids), ids)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_is_full_unless_callers_send_it(form: str, tmp_path: Path) -> None:
    net, ids = Masked(), tokens(3, 6)
    mask = torch.ones_like(ids)
    path = export(net, (tokens(2), torch.ones(2, LENGTH, dtype=torch.int64)), tmp_path, form)
    name = "input1" if form == "onnx" else "attention_mask"
    first = "input0" if form == "onnx" else "tokens"
    listed: list[dict[str, Any]] = [
        {"name": first, "shape": (None,)},
        {"name": name, "shape": (None,)},
    ]
    filled = load(path, inputs=[listed[0], {**listed[1], "default": 1}])
    model = filled.classifier
    assert len(filled.info.inputs) == 1
    assert filled.info.explained_shape == (-1, 6)
    torch.testing.assert_close(model(model.encode(ids)), net(ids, mask))
    sent = load(path, inputs=[listed[0], {**listed[1], "kind": "integers", "default": None}])
    assert [item.kind for item in sent.info.inputs] == ["tokens", "integers"]
    mask[0, 3:] = 0
    x = sent.classifier.encode(torch.cat([ids, mask], 1).double())
    torch.testing.assert_close(sent.classifier(x), net(ids, mask))
    parts = sent.classifier.split(sent.classifier.gradient(x, targets(3)).inputs)
    assert list(parts) == [first]
    torch.testing.assert_close(parts[first], gradient(net.pooled, net.table(ids), mask))


def _scene(folder: Path, form: str, **fields: Any) -> tuple[Scene, LoadedModel]:
    net = Scene().eval()
    examples = (torch.rand(2, 3, 8, 8), torch.rand(2, 2))
    if form == "onnx":
        path = folder / "model.onnx"
        names = ["image", "facts"]
        torch.onnx.export(
            net,
            examples,
            str(path),
            dynamo=False,
            input_names=names,
            dynamic_axes={name: {0: "N"} for name in names},
        )
    else:
        path = export(net, examples, folder, form)
    listed = [{"name": "image", "shape": (3, 8, 8), **fields}, {"name": "facts", "shape": (2,)}]
    return net, load(path, inputs=listed)


@pytest.mark.parametrize("form", FORMS)
def test_two_inputs_are_one_row(form: str, tmp_path: Path) -> None:
    net, loaded = _scene(tmp_path, form, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
    model, info = loaded.classifier, loaded.info
    assert [(item.name, item.shape) for item in info.inputs] == [
        ("image", (3, 8, 8)),
        ("facts", (2,)),
    ]
    assert info.explained_shape == (3 * 64 + 2,)
    image, facts = torch.rand(4, 3, 8, 8), torch.rand(4, 2)
    x = model.encode(torch.cat([image.flatten(1), facts], 1).double())
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.2, 0.3])

    def eager(image: Tensor, facts: Tensor) -> Tensor:
        scores: Tensor = net((image - mean[:, None, None]) / std[:, None, None], facts)
        return scores

    torch.testing.assert_close(model(x), eager(image, facts))
    parts = model.split(model.gradient(x, targets(4)).inputs)
    torch.testing.assert_close(parts["image"], gradient(eager, image, facts))
    torch.testing.assert_close(parts["facts"], gradient(lambda facts: eager(image, facts), facts))


@pytest.mark.parametrize("form", FORMS)
def test_bytes_are_served_as_their_continuation(form: str, tmp_path: Path) -> None:
    net, image = Bytes(), torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    path = export(net, (image,), tmp_path, form) if form != "onnx" else tmp_path / "model.onnx"
    if form == "onnx":
        torch.onnx.export(
            net.eval(), (image,), str(path), dynamo=False, input_names=["x"],
            dynamic_axes={"x": {0: "N"}},
        )  # fmt: skip
    loaded = load(path, shape=(3, 8, 8), bounds=(0, 255), dtype="uint8")
    model = loaded.classifier
    assert loaded.info.inputs[0].kind == "values"
    torch.testing.assert_close(model(model.encode(image)), net(image))
    x = image.float() + 0.25
    torch.testing.assert_close(model.gradient(x, targets(2)).inputs, gradient(net, x))


class Photo(nn.Module):
    """Pools over any height and width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.adaptive_avg_pool2d(F.relu(self.conv(x)), 1).flatten(1))


@pytest.mark.parametrize("form", ["scripted", "traced"])
def test_free_heights_and_widths(form: str, tmp_path: Path) -> None:
    net = Photo()
    path = export(net, (torch.rand(2, 3, 20, 20),), tmp_path, form)
    loaded = load(path, shape=(3, None, None), bounds=(0, 1), example=(3, 24, 24))
    model = loaded.classifier
    assert loaded.info.input_shape == (3, -1, -1)
    assert model.input_shape == (3, 24, 24)
    for size in ((9, 31), (24, 24)):
        x = torch.rand(2, 3, *size)
        torch.testing.assert_close(model(x), net(x))
        torch.testing.assert_close(model.gradient(x, targets(2)).inputs, gradient(net, x))


def test_a_size_that_the_file_insists_on_is_found(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
    loaded = load(script(net, tmp_path), shape=(3, None, None), example=(3, 8, 8))
    assert loaded.info.input_shape == (3, 8, 8)
    assert "no other size" in " ".join(loaded.info.notes)


def test_a_wrong_token_is_refused(tmp_path: Path) -> None:
    model = load(export(Text(), (tokens(2),), tmp_path, "scripted"), shape=(None,)).classifier
    with pytest.raises(InvalidRequest, match="out of the range"):
        model.encode(torch.tensor([[WORDS]]))


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ([{"name": "picture", "shape": (3, 8, 8)}, {"name": "facts", "shape": (2,)}], "[0].name"),
        ([{"name": "image", "shape": (3, 8, 8)}] * 2, "[1].name"),
        ([{"shape": (3, 8, 8)}, {"shape": (2,)}, {"shape": (2,)}], ""),
        ([{"shape": (3, 8, 8), "default": 0}, {"shape": (2,), "default": 0}], ""),
    ],
)
def test_wrong_lists_of_inputs_are_refused_by_name(
    inputs: list[dict[str, Any]], field: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load(script(Scene(), tmp_path), inputs=inputs)
    assert caught.value.violations[0].field == f"manifest.inputs{field}"


def test_an_embedding_can_be_named(tmp_path: Path) -> None:
    path = export(Text(), (tokens(2),), tmp_path, "scripted")
    assert load(path, shape=(None,), embedding="table").info.inputs[0].kind == "tokens"
    with pytest.raises(InvalidRequest, match="these do: table"):
        load(path, shape=(None,), embedding="rnn")


class BySize(nn.Module):
    """Pools large images first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.size(2) > 100:
            x = F.avg_pool2d(x, 2)
        return self.last(F.relu(self.conv(x)).amax((2, 3)))


def test_a_size_at_which_the_program_takes_other_steps_is_refused(tmp_path: Path) -> None:
    net = BySize()
    loaded = load(script(net, tmp_path), shape=(3, None, None), example=(3, 80, 80))
    model = loaded.classifier
    assert loaded.info.form == "graph"
    small, large = torch.rand(2, 3, 90, 60), torch.rand(2, 3, 130, 60)
    model.check_size(small)
    torch.testing.assert_close(model(small), net(small))
    for _ in range(2):  # the second time from memory
        with pytest.raises(InvalidRequest, match="depends on sizes"):
            model.check_size(large)


def test_inputs_that_are_tried_together_differ():
    def item(name: str) -> ResolvedInput:
        return ResolvedInput(name, (3,), bounds=Bounds(0, 1))

    five, two = InputSet([item("left"), item("right")], torch.float32).probes()
    for rows in (five, two):
        left, right = rows[:, :3], rows[:, 3:]
        assert (left != right).flatten(1).any(1).sum() == len(rows) - 2 * (len(rows) == 5)
