"""Attributions per token, beside those of the embedding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_fakes import array, calling, events, result, serving, tensor, to_class
from torch import Tensor, nn

from interpret_plugins.attribution.feature_ablation import FeatureAblation
from interpret_plugins.attribution.grad_cam import GradCAM
from interpret_plugins.attribution.input_x_gradient import InputXGradient
from interpret_plugins.attribution.integrated_gradients import IntegratedGradients
from interpret_plugins.attribution.occlusion import Occlusion
from interpret_plugins.attribution.saliency import Saliency
from interpret_plugins.attribution.score_cam import ScoreCAM
from interpret_server.engine import job
from interpret_server.engine.api import Preview, Result
from interpret_server.errors import InvalidRequest
from interpret_server.models.manifest import Manifest

WORDS = 9


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(WORDS, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(torch.tanh(self.table(tokens)).sum(1))


class Pair(Text):
    """A text, a mask that is never changed, and a few numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.facts = nn.Linear(2, 3)

    def forward(self, text: Tensor, mask: Tensor, facts: Tensor) -> Tensor:  # type: ignore[override]
        kept = mask.to(torch.float32).unsqueeze(2)
        return self.last((torch.tanh(self.table(text)) * kept).sum(1)) + self.facts(facts)


class Images(nn.Module):
    """Tokens in two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(WORDS, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.table(tokens).sum((1, 2)))


async def explained(
    plugin: Any, net: nn.Module, folder: Path, manifest: Any, sent: Any, **params: Any
) -> Result:
    torch.jit.script(net.eval()).save(str(folder / "net.pt"))
    async with serving(plugin) as worker:
        await worker.load("text", folder / "net.pt", Manifest.model_validate(manifest))
        call = calling(plugin.name, sent, model="text", targets=to_class(1), params=params)
        return await result(worker, call)


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, WORDS, shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("plugin", [Saliency, InputXGradient, IntegratedGradients])
async def test_the_values_of_a_tokens_embedding_are_summed(plugin: Any, tmp_path: Path) -> None:
    ids = tokens(2, 5)
    found = await explained(plugin(), Text(), tmp_path, {"shape": [None]}, array(ids, torch.int64))
    whole = tensor(found.tensors["attributions"])
    assert whole.shape == (2, 5, 4)
    torch.testing.assert_close(tensor(found.tensors["token_attributions"]), whole.sum(2))


async def test_the_channels_of_a_token_are_its_embeddings_values(tmp_path: Path) -> None:
    net, sent, manifest = Text(), array(tokens(2, 5), torch.int64), {"shape": [None]}
    whole, largest = [
        await explained(Saliency(), net, tmp_path, manifest, sent, channels=channels)
        for channels in ("keep", "max")
    ]
    expected = tensor(whole.tensors["attributions"]).amax(2)
    torch.testing.assert_close(tensor(largest.tensors["attributions"]), expected)
    torch.testing.assert_close(tensor(largest.tensors["token_attributions"]), expected)


async def test_several_inputs_have_no_channels_in_common(tmp_path: Path) -> None:
    inputs = [
        {"name": "text", "shape": [5]},
        {"name": "mask", "shape": [5], "kind": "integers"},
        {"name": "facts", "shape": [2]},
    ]
    sent = {
        "text": array(tokens(2, 5), torch.int64),
        "mask": array(torch.ones(2, 5), torch.int64),
        "facts": array(torch.rand(2, 2)),
    }
    with pytest.raises(InvalidRequest, match=r"params\.channels"):
        await explained(Saliency(), Pair(), tmp_path, {"inputs": inputs}, sent, channels="max")


@pytest.mark.parametrize("plugin", [Occlusion, FeatureAblation])
async def test_a_token_that_is_hidden_whole_gets_its_fall_once(plugin: Any, tmp_path: Path) -> None:
    net, ids = Text(), tokens(2, 5)
    found = await explained(
        plugin(), net, tmp_path, {"shape": [None]}, array(ids, torch.int64), fill=0.0
    )
    falls = torch.tanh(net.table(ids)) @ net.last.weight[1]
    torch.testing.assert_close(tensor(found.tensors["token_attributions"]), falls.detach())


async def test_of_several_inputs_only_tokens_are_summed(tmp_path: Path) -> None:
    net, ids = Pair(), tokens(2, 5)
    inputs = [
        {"name": "text", "shape": [5]},
        {"name": "mask", "shape": [5], "kind": "integers"},
        {"name": "facts", "shape": [2]},
    ]
    mask = torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    sent = {
        "text": array(ids, torch.int64),
        "mask": array(mask, torch.int64),
        "facts": array(torch.rand(2, 2)),
    }
    found = await explained(IntegratedGradients(), net, tmp_path, {"inputs": inputs}, sent)
    assert set(found.tensors) == {
        "attributions.text",
        "attributions.facts",
        "token_attributions.text",
    }
    summed = tensor(found.tensors["token_attributions.text"])
    expected = (torch.tanh(net.table(ids)) * mask[..., None]) @ net.last.weight[1]
    torch.testing.assert_close(summed, expected.detach(), rtol=1e-4, atol=1e-5)


async def test_previews_are_sent_by_input_and_token_as_results_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "PREVIEW_SECONDS", 0.0)
    inputs = [{"name": "text", "shape": [5]}, {"name": "mask", "shape": [5], "kind": "integers"}]
    manifest = {"inputs": [*inputs, {"name": "facts", "shape": [2]}]}
    torch.jit.script(Pair().eval()).save(str(tmp_path / "net.pt"))
    ids, mask = array(tokens(2, 5), torch.int64), array(torch.ones(2, 5), torch.int64)
    sent = {"text": ids, "mask": mask, "facts": array(torch.rand(2, 2))}
    async with serving(IntegratedGradients()) as worker:
        await worker.load("pair", tmp_path / "net.pt", Manifest.model_validate(manifest))
        call = calling(
            "integrated_gradients", sent, model="pair", targets=to_class(1), previews=True
        )
        found = await events(worker, call)
    preview = [item for item in found if isinstance(item, Preview)][-1]
    assert preview.tensors.keys() == found[-1].tensors.keys()
    for name, value in found[-1].tensors.items():
        torch.testing.assert_close(tensor(preview.tensors[name]), tensor(value))


async def test_one_text_with_its_mask_keeps_the_plain_name(tmp_path: Path) -> None:
    inputs = [
        {"name": "text", "shape": [5]},
        {"name": "mask", "shape": [5], "kind": "integers"},
        {"name": "facts", "shape": [2], "default": 0.0},
    ]
    sent = {"text": array(tokens(2, 5), torch.int64), "mask": array(torch.ones(2, 5), torch.int64)}
    found = await explained(Saliency(), Pair(), tmp_path, {"inputs": inputs}, sent)
    whole = tensor(found.tensors["attributions"])
    torch.testing.assert_close(tensor(found.tensors["token_attributions"]), whole.sum(2))


async def test_tokens_may_lie_in_two_dimensions(tmp_path: Path) -> None:
    sent = array(tokens(2, 3, 4), torch.int64)
    found = await explained(Saliency(), Images(), tmp_path, {"shape": [3, 4]}, sent)
    assert tensor(found.tensors["attributions"]).shape == (2, 3, 4, 4)
    assert tensor(found.tensors["token_attributions"]).shape == (2, 3, 4)


class Convolved(nn.Module):
    """Looks at three tokens at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(WORDS, 4), nn.Conv1d(4, 6, 3, padding=1)
        self.last = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        maps = torch.relu(self.conv(self.table(tokens).transpose(1, 2)))
        return self.last(maps.mean(2))


@pytest.mark.parametrize("plugin", [GradCAM, ScoreCAM])
async def test_a_map_over_tokens_is_theirs_already(plugin: Any, tmp_path: Path) -> None:
    net, sent = Convolved(), array(tokens(2, 7), torch.int64)
    found = await explained(plugin(), net, tmp_path, {"shape": [None]}, sent, rectify=False)
    whole = tensor(found.tensors["attributions"])
    assert whole.shape == (2, 7)
    assert torch.equal(tensor(found.tensors["token_attributions"]), whole)


async def test_models_without_tokens_have_no_such_tensor(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    found = await explained(
        Saliency(), net, tmp_path, {"shape": [2, 3]}, array(torch.rand(2, 2, 3))
    )
    assert set(found.tensors) == {"attributions"}
