"""Calls on models of tokens, of several inputs and of free sizes."""

import asyncio
from pathlib import Path

import pytest
import torch
from engine_fakes import Walk, array, calling, events, result, serving, tensor, to_class
from torch import Tensor, nn

from interpret_pictures.options import Rendering
from interpret_plugins.attribution.saliency import Saliency
from interpret_server.engine.api import Array, Preview
from interpret_server.errors import InvalidRequest
from interpret_server.models.manifest import Manifest

WORDS = 9


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scores(self.table(tokens))

    def scores(self, embedded: Tensor) -> Tensor:
        return self.last(torch.tanh(embedded).mean(1))


class Scene(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.facts = nn.Linear(12, 3), nn.Linear(2, 3)

    def forward(self, image: Tensor, facts: Tensor) -> Tensor:
        return torch.tanh(self.image(image.flatten(1))) * self.facts(facts)


class Photo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).amax((2, 3))


def save(net: nn.Module, folder: Path) -> Path:
    path = folder / "model.pt"
    torch.jit.save(torch.jit.script(net.eval()), str(path))
    return path


def gradient(net, *inputs: Tensor, of: int) -> Tensor:
    leaves = [value.clone().requires_grad_() for value in inputs]
    return torch.autograd.grad(net(*leaves)[:, 1].sum(), leaves)[of]


async def test_tokens_of_several_lengths_are_explained(tmp_path):
    net = Text()
    async with serving(Saliency()) as worker:
        manifest = Manifest.model_validate({"shape": [None], "example": [5]})
        await worker.load("text", save(net, tmp_path), manifest)
        rows = [torch.randint(0, WORDS, (2, length)) for length in (5, 3, 5, 1)]
        calls = [
            calling(
                "saliency",
                array(ids, torch.int64),
                model="text",
                targets=to_class(1),
                params={"absolute": False},
            )
            for ids in rows
        ]
        answers = await asyncio.gather(*(result(worker, call) for call in calls))
        for ids, answer in zip(rows, answers, strict=True):
            expected = gradient(net.scores, net.table(ids).detach(), of=0)
            torch.testing.assert_close(tensor(answer.tensors["attributions"]), expected)


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (array([[0, 1, WORDS]], torch.int64), r"row 0 holds 9, outside the tokens \[0, 8\]"),
        (array([[0, 1, -1]], torch.int64), r"row 0 holds -1, outside the tokens"),
        (array([[0.0, 1.0]]), "takes integers here, not float32"),
        (array([[[1]]], torch.int64), r"takes \[rows, free\]"),
        (array([[]], torch.int64), r"takes \[rows, free\]"),
    ],
)
async def test_wrong_tokens_are_refused(sent: Array, sentence: str, tmp_path):
    async with serving(Saliency()) as worker:
        manifest = Manifest.model_validate({"shape": [None]})
        await worker.load("text", save(Text(), tmp_path), manifest)
        with pytest.raises(InvalidRequest, match=sentence) as caught:
            await result(worker, calling("saliency", sent, model="text"))
    assert caught.value.violations[0].field == "inputs"


async def _scene(worker, folder: Path) -> Scene:
    net = Scene()
    manifest = Manifest.model_validate(
        {"inputs": [{"name": "image", "shape": [3, 2, 2]}, {"name": "facts", "shape": [2]}]}
    )
    await worker.load("scene", save(net, folder), manifest)
    return net


async def test_several_inputs_are_sent_and_answered_by_name(tmp_path):
    image, facts = torch.rand(3, 3, 2, 2), torch.rand(3, 2)
    async with serving(Saliency()) as worker:
        net = await _scene(worker, tmp_path)
        sent = {"image": array(image), "facts": array(facts)}
        cotangent = array(torch.tensor([[0.0, 1.0, 0.0]]).expand(3, 3))
        calls = {
            "attributions": calling(
                "saliency", sent, model="scene", targets=to_class(1), params={"absolute": False}
            ),
            "gradient": calling(
                "_gradient", sent, model="scene", tensors={"grad_outputs": cotangent}
            ),
        }
        for field, call in calls.items():
            answer = await result(worker, call)
            for place, part in enumerate(("image", "facts")):
                torch.testing.assert_close(
                    tensor(answer.tensors[f"{field}.{part}"]), gradient(net, image, facts, of=place)
                )


class Wide(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], 1) * 2


async def test_logits_as_wide_as_a_row_are_not_taken_apart(tmp_path):
    a, b = torch.rand(2, 3), torch.rand(2, 2)
    manifest = Manifest.model_validate({"inputs": [{"shape": [3]}, {"shape": [2]}]})
    async with serving(Saliency()) as worker:
        await worker.load("wide", save(Wide(), tmp_path), manifest)
        sent = {"a": array(a), "b": array(b)}
        answer = await result(worker, calling("_predict", sent, model="wide"))
    assert set(answer.tensors) == {"logits", "probabilities"}
    torch.testing.assert_close(tensor(answer.tensors["logits"]), torch.cat([a, b], 1) * 2)


async def test_previews_of_any_size_are_drawn(tmp_path):
    manifest = Manifest.model_validate(
        {"shape": [1, None, None], "example": [1, 8, 8], "bounds": [0, 1]}
    )
    async with serving(Walk()) as worker:
        await worker.load("photo", save(Photo(), tmp_path), manifest)
        sent = array(torch.rand(1, 1, 9, 11))
        call = calling("walk", sent, model="photo", render=Rendering(), previews=True)
        shown = [event for event in await events(worker, call) if isinstance(event, Preview)]
    assert shown
    assert all(event.pictures["images"] for event in shown)


@pytest.mark.parametrize(
    ("sent", "field", "sentence"),
    [
        (array(torch.rand(2, 3, 2, 2)), "inputs", "takes image and facts"),
        ({"image": array(torch.rand(2, 3, 2, 2))}, "inputs.facts", "scene needs it"),
        (
            {"image": array(torch.rand(2, 3, 2, 2)), "fact": array(torch.rand(2, 2))},
            "inputs.fact",
            "did you mean facts",
        ),
        (
            {"image": array(torch.rand(2, 3, 2, 2)), "facts": array(torch.rand(1, 2))},
            "inputs.facts",
            "1 rows, where image has 2",
        ),
        (
            {"image": array(torch.rand(2, 3, 2, 2)), "facts": array(torch.full((2, 2), torch.nan))},
            "inputs.facts",
            "row 0 holds NaN",
        ),
        ((b"", b""), "inputs.images", "as tensors, by name"),
    ],
)
async def test_wrong_inputs_are_named(sent, field: str, sentence: str, tmp_path):
    async with serving(Saliency()) as worker:
        await _scene(worker, tmp_path)
        with pytest.raises(InvalidRequest, match=sentence) as caught:
            await result(worker, calling("saliency", sent, model="scene", targets=to_class(1)))
    assert caught.value.violations[0].field == field


async def test_a_size_that_the_network_does_not_take_is_the_callers_fault(tmp_path):
    async with serving(Saliency()) as worker:
        manifest = Manifest.model_validate({"shape": [1, None, None], "example": [1, 8, 8]})
        await worker.load("photo", save(Photo(), tmp_path), manifest)
        for size in (8, 11):
            await result(
                worker, calling("saliency", array(torch.rand(2, 1, size, 6)), model="photo")
            )
        with pytest.raises(InvalidRequest, match=r"does not run on rows of shape \[1, 4, 4\]"):
            await result(worker, calling("saliency", array(torch.rand(2, 1, 4, 4)), model="photo"))
