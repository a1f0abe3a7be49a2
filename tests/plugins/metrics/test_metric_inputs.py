"""Metrics on tokens, on masked sentences and on several inputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from judging import Recorder, run
from torch import Tensor, nn

from interpret_plugins.metrics.deletion import Deletion
from interpret_plugins.metrics.infidelity import Infidelity
from interpret_plugins.metrics.localisation import Localisation
from interpret_plugins.metrics.max_sensitivity import MaxSensitivity
from interpret_plugins.metrics.randomisation import Randomisation
from interpret_plugins.metrics.road import ROAD
from interpret_server.errors import InvalidRequest
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier

pytestmark = pytest.mark.filterwarnings("ignore")
LABELS = torch.tensor([1, 2])
SHARES = {"method": "input_x_gradient", "score": "logit", "fill": "zero"}


class Text(nn.Module):
    """Adds up what it makes of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.table(tokens).sum(1))


class Masked(Text):
    """Adds up the tokens that a mask keeps."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        kept = mask.to(torch.float32).unsqueeze(2)
        return self.last((self.table(tokens) * kept).sum(1))


class Recurrent(nn.Module):
    """Reads a signal step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.last = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.cell(x)[0][:, -1])


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
    made = Manifest.model_validate(manifest)
    return load_classifier("net", path, made, device=torch.device("cpu")).classifier


def rows(x: Tensor, **tensors: Tensor) -> Batch:
    return Batch(x, Targets.classes(LABELS), (1, 2), tensors)


def falling(contributions: Tensor, whole: Tensor) -> Tensor:
    """The score as the largest of the contributions `(N, P)` go first."""
    ordered = contributions.sort(1, descending=True).values.cumsum(1)
    return torch.cat([whole[:, None], whole[:, None] - ordered], 1).detach()


def test_tokens_are_deleted_whole(tmp_path: Path) -> None:
    net, ids = Text(), torch.randint(0, 20, (2, 5))
    model = served(net, tmp_path, shape=(None,))
    x = model.encode(ids)
    found = run(Deletion(), model, rows(x), **SHARES)
    contributions = (net.table(ids) * net.last.weight[LABELS][:, None]).sum(2)
    expected = falling(contributions, net(ids).gather(1, LABELS[:, None])[:, 0])
    torch.testing.assert_close(found.curve, expected, rtol=1e-4, atol=1e-5)
    mask = torch.tensor([[1, 0, 0, 0, 1], [0, 0, 1, 0, 0]])
    method = {"plugin": "input_x_gradient"}
    result = run(Localisation(), model, rows(x, mask=mask), method=method)
    speaking = contributions.clamp(min=0)
    energy = ((speaking * mask).sum(1) / speaking.sum(1)).detach()
    torch.testing.assert_close(result.energy, energy, rtol=1e-4, atol=1e-6)
    with pytest.raises(InvalidRequest, match="an image or a signal"):
        run(ROAD(), model, rows(x))


def test_the_mask_of_a_sentence_is_never_changed(tmp_path: Path) -> None:
    net, ids = Masked(), torch.randint(0, 20, (2, 5))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    inputs = [{"name": "tokens", "shape": (5,)}, {"name": "mask", "shape": (5,)}]
    model = served(net, tmp_path, inputs=inputs)
    x = model.encode(model.pack([ids, mask]))
    found = run(Deletion(), model, rows(x), **SHARES)
    contributions = (net.table(ids) * net.last.weight[LABELS][:, None]).sum(2) * mask
    expected = falling(contributions, net(ids, mask).gather(1, LABELS[:, None])[:, 0])
    torch.testing.assert_close(found.curve, expected, rtol=1e-4, atol=1e-5)
    assert float(run(Infidelity(), model, rows(x)).infidelity.max()) < 1e-9
    job = Recorder()
    moved = run(MaxSensitivity(), model, rows(x), job)
    assert float(moved.max_sensitivity.max()) < 1e-5
    assert not job.warnings


def test_several_inputs_are_deleted_value_by_value(tmp_path: Path) -> None:
    net = Scene()
    inputs = [{"name": "image", "shape": (3, 4, 4)}, {"name": "facts", "shape": (2,)}]
    model = served(net, tmp_path, inputs=inputs)
    image, facts = torch.rand(2, 3, 4, 4), torch.rand(2, 2)
    x = model.encode(model.pack([image, facts]))
    found = run(Deletion(), model, rows(x), **SHARES)
    parts = [net.image.weight[LABELS] * image.flatten(1), net.facts.weight[LABELS] * facts]
    whole = net(image, facts).gather(1, LABELS[:, None])[:, 0]
    expected = falling(torch.cat(parts, 1), whole)
    torch.testing.assert_close(found.curve, expected, rtol=1e-4, atol=1e-5)
    assert float(run(Infidelity(), model, rows(x)).infidelity.max()) < 1e-9
    test = run(Randomisation(), model, rows(x))
    assert set(test.spearman) == {"image", "facts"}


def test_recurrent_networks_become_random_layer_by_layer(tmp_path: Path) -> None:
    net = Recurrent()
    model = served(net, tmp_path, shape=(7, 3), layout="other", bounds=(0, 1))
    x = torch.rand(2, 7, 3)
    before = model(x).detach()
    found = run(Randomisation(), model, rows(x), maps=True)
    assert list(found.spearman) == ["last", "cell"]
    assert all(not torch.equal(item, found.attributions) for item in found.randomised.values())
    assert torch.equal(model(x).detach(), before)
