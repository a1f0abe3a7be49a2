"""What is hidden of tokens, of masked sentences and of several inputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from perturbing import run
from torch import Tensor, nn

from interpret_plugins.attribution.feature_ablation import FeatureAblation
from interpret_plugins.attribution.kernel_shap import KernelSHAP
from interpret_plugins.attribution.lime import LIME
from interpret_plugins.attribution.occlusion import Occlusion
from interpret_plugins.attribution.rise import RISE, Masks
from interpret_plugins.attribution.shapley_sampling import ShapleySampling
from interpret_server.errors import InvalidRequest
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Classifier

pytestmark = pytest.mark.filterwarnings("ignore")
TARGETS = Targets.classes(torch.tensor([1, 2]))
METHODS = [Occlusion, FeatureAblation, RISE]


class Text(nn.Module):
    """Adds up what it makes of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.scores(self.table(tokens))

    def scores(self, embedded: Tensor) -> Tensor:
        return self.last(torch.tanh(embedded).sum(1))


class Masked(Text):
    """Adds up the tokens that a mask keeps."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        kept = mask.to(torch.float32).unsqueeze(2)
        return self.last((torch.tanh(self.table(tokens)) * kept).sum(1))


class Scene(nn.Module):
    """Linear in an image and a few numbers about it."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.facts = nn.Linear(3 * 4 * 4, 3), nn.Linear(2, 3)

    def forward(self, image: Tensor, facts: Tensor) -> Tensor:
        return self.image(image.flatten(1)) + self.facts(facts)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(4)


def served(net: nn.Module, folder: Path, **manifest: Any) -> Classifier:
    path = folder / "net.pt"
    torch.jit.script(net.eval()).save(str(path))
    return load_classifier(
        "net", path, Manifest.model_validate(manifest), device=torch.device("cpu")
    ).classifier


def sentences() -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 20, (2, 5))
    return ids, torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("method", [Occlusion, FeatureAblation])
def test_a_token_is_hidden_whole(method: type[Any], tmp_path: Path) -> None:
    net, (ids, _) = Text(), sentences()
    model = served(net, tmp_path, shape=(None,))
    x = model.encode(ids)
    found = run(method(), model, x, TARGETS).attributions
    assert found.shape == x.shape
    for token in range(5):
        without = x.clone()
        without[:, token] = 0
        falls = TARGETS.select(net.scores(x)) - TARGETS.select(net.scores(without))
        torch.testing.assert_close(found[:, token], falls[:, None].expand(2, 6).detach())


def test_words_of_several_tokens_are_features(tmp_path: Path) -> None:
    net, (ids, _) = Text(), sentences()
    model = served(net, tmp_path, shape=(None,))
    x = model.encode(ids)
    words = torch.tensor([[0, 0, 1, 2, 2], [0, 1, 1, 1, -1]])
    tensors = {"features": words.float()}
    found = run(FeatureAblation(), model, x, TARGETS, None, tensors).attributions
    for row in range(2):
        for word in range(3):
            without = x.clone()[row : row + 1]
            without[0, words[row] == word] = 0
            falls = net.scores(x[row : row + 1]) - net.scores(without)
            expected = falls[0, TARGETS.index[row, 0]].detach()
            mine = found[row, words[row] == word]
            torch.testing.assert_close(mine, expected.expand_as(mine))
    assert not found[1, 4].any()


def masked(folder: Path) -> tuple[Classifier, Tensor]:
    inputs = [{"name": "tokens", "shape": (None,)}, {"name": "mask", "shape": (None,)}]
    inputs[1] |= {"kind": "integers", "default": None}
    model = served(Masked(), folder, inputs=inputs)
    return model, model.encode(torch.cat(sentences(), 1).double())


@pytest.mark.parametrize("method", METHODS)
def test_a_mask_that_travels_along_is_never_hidden(method: type[Any], tmp_path: Path) -> None:
    model, x = masked(tmp_path)
    params = {"masks": 50} if method is RISE else {}
    whole = run(method(), model, x, TARGETS, fill=0.5, **params).attributions
    ((name, found),) = model.split(whole).items()
    assert (name, found.shape) == ("tokens", (2, 5, 6))
    assert torch.equal(model.packing.unpack(whole)[1], torch.zeros(2, 5))
    if method is not RISE:
        assert not found[0, 3:].any()
        assert found[0, :3].all()
        assert found[1].all()


@pytest.mark.parametrize("method", [KernelSHAP, ShapleySampling])
def test_shapley_values_of_a_sentence_are_those_of_its_tokens(
    method: type[Any], tmp_path: Path
) -> None:
    model, x = masked(tmp_path)
    whole = run(method(), model, x, TARGETS, fill="zero")
    (found,) = model.split(whole.attributions).values()
    (features,) = model.split(whole.features).values()
    assert torch.equal(features, torch.arange(5)[None, :, None].expand(2, 5, 6))
    # Tokens add up in this network, so that each one's fall alone is its Shapley value.
    alone = run(FeatureAblation(), model, x, TARGETS, fill="zero").attributions
    torch.testing.assert_close(found, model.split(alone)["tokens"], rtol=0, atol=1e-6)


def test_lime_never_hides_a_mask_that_travels_along(tmp_path: Path) -> None:
    model, x = masked(tmp_path)
    found = run(LIME(), model, x, TARGETS, fill="zero", ridge=0, samples=200)
    exact = run(KernelSHAP(), model, x, TARGETS, fill="zero")
    torch.testing.assert_close(found.attributions, exact.attributions, rtol=0, atol=1e-5)
    assert torch.equal(model.packing.unpack(found.features)[1], torch.full((2, 5), -1))


def test_masks_of_rise_fade_each_token_as_a_whole(tmp_path: Path) -> None:
    model, x = masked(tmp_path)
    whole = run(RISE(), model, x, TARGETS, masks=8, fill="zero").attributions
    (found,) = model.split(whole).values()
    embedded, mask = model.packing.unpack(x)
    expected = torch.zeros(2, 5)
    for row in range(2):
        (shares,) = Masks([(5,)], 7, 0.5).draw([row] * 8, range(8))
        hidden = model.packing.pack(
            [embedded[row] * shares.unsqueeze(2), mask[row].expand(8, 5)], torch.float32
        )
        scores = model(hidden)[:, TARGETS.index[row, 0]]
        expected[row] = (scores @ shares) / (8 * 0.5)
    torch.testing.assert_close(found, expected.unsqueeze(2).expand_as(found))


@pytest.mark.parametrize("method", [Occlusion, FeatureAblation])
def test_several_inputs_are_hidden_each_by_itself(method: type[Any], tmp_path: Path) -> None:
    net = Scene()
    inputs = [{"name": "image", "shape": (3, 4, 4)}, {"name": "facts", "shape": (2,)}]
    model = served(net, tmp_path, inputs=inputs)
    image, facts = torch.rand(2, 3, 4, 4), torch.rand(2, 2)
    x = model.encode(model.pack([image, facts]))
    found = model.split(run(method(), model, x, TARGETS, fill="zero").attributions)
    labels = TARGETS.labels
    torch.testing.assert_close(found["facts"], (net.facts.weight[labels] * facts).detach())
    weights = net.image.weight[labels].reshape(2, 3, 4, 4)
    torch.testing.assert_close(found["image"], (weights * image).detach())


def test_masks_of_rise_cover_several_inputs(tmp_path: Path) -> None:
    inputs = [{"name": "image", "shape": (3, 4, 4)}, {"name": "facts", "shape": (2,)}]
    model = served(Scene(), tmp_path, inputs=inputs)
    x = model.encode(model.pack([torch.rand(2, 3, 4, 4), torch.rand(2, 2)]))
    found = run(RISE(), model, x, TARGETS, masks=10).attributions
    expected = torch.zeros_like(x)
    for row in range(2):
        drawn = Masks([(3, 4, 4), (2,)], 7, 0.5).draw([row] * 10, range(10))
        shares = torch.cat([mask.flatten(1) for mask in drawn], 1)
        scores = model(x[row] * shares)[:, TARGETS.index[row, 0]]
        expected[row] = scores.detach() @ shares / 5
    torch.testing.assert_close(found, expected)


def test_features_of_several_inputs_are_left_to_the_grid(tmp_path: Path) -> None:
    inputs = [{"name": "image", "shape": (3, 4, 4)}, {"name": "facts", "shape": (2,)}]
    model = served(Scene(), tmp_path, inputs=inputs)
    tensors = {"features": torch.zeros(2, 50)}
    with pytest.raises(InvalidRequest, match="takes several inputs; leave `features` out"):
        run(FeatureAblation(), model, torch.rand(2, 50), TARGETS, None, tensors)
