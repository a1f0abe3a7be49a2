"""LRP on files of one batch size, of tokens and of several inputs, and on many architectures."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interpret_plugins.attribution.attention_rollout import AttentionRollout
from interpret_plugins.attribution.lrp import LRP
from interpret_plugins.attribution.transformer_lrp import TransformerLRP
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Classifier
from interpret_server.testing import classifier
from tests.models.zoo.architectures import ZOO
from tests.models.zoo.exports import Export, Exporter, write
from tests.plugins.attribution.maps import run
from tests.plugins.attribution.transformers import FORMS, IMAGE, load, vision

LABELS = torch.tensor([0, 3, 1])


def loaded(path: Path, *inputs: dict[str, Any]) -> Classifier:
    manifest = Manifest.model_validate({"inputs": list(inputs)})
    return load_classifier("net", path, manifest, device=torch.device("cpu")).classifier


@pytest.mark.parametrize("rows", [1, 2])
def test_a_file_of_one_batch_size_explains_any_number_of_rows(rows: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces that its exporters are deprecated
        torch.onnx.export(vision(), (torch.rand(rows, *IMAGE),), str(path), dynamo=False)
    model = loaded(path, {"shape": IMAGE, "bounds": (0, 1)})
    eager = classifier(vision(), IMAGE, input_layout="CHW")
    x, targets = torch.rand(3, *IMAGE), Targets.classes(LABELS)
    for plugin, field in (
        (LRP, "attributions"),
        (TransformerLRP, "attributions"),
        (AttentionRollout, "attributions"),
        (AttentionRollout, "rollout"),
    ):
        found, expected = (run(plugin, one, x, targets) for one in (model, eager))
        largest = float(getattr(expected, field).abs().max())
        torch.testing.assert_close(
            getattr(found, field), getattr(expected, field), rtol=0, atol=1e-3 * largest
        )
        torch.testing.assert_close(found.logits, expected.logits)


class Text(nn.Module):
    """Convolutions over the embeddings of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first = nn.Embedding(9, 5), nn.Conv1d(5, 6, 3, bias=False)
        self.last = nn.Linear(6, 4, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(self.table(tokens))

    def read(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x.transpose(1, 2))).amax(2))


class Embedded(Text):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(tokens)


def test_tokens_are_explained_at_their_embedding_and_never_evenly(tmp_path: Path) -> None:
    module = Text().eval()
    tokens = torch.tensor([[3, 1, 7, 2, 0], [8, 2, 5, 5, 1], [4, 4, 4, 7, 6]])
    torch.jit.script(module).save(str(tmp_path / "model.pt"))
    model = loaded(tmp_path / "model.pt", {"shape": (5,), "dtype": "int64"})
    found = run(LRP, model, model.encode(tokens), Targets.classes(LABELS))
    twin = Embedded().eval()
    twin.load_state_dict(module.state_dict())
    embedded = module.table(tokens).detach()
    eager = classifier(twin, (5, 5))
    expected = run(LRP, eager, embedded, Targets.classes(LABELS), first_layer="as_others")
    (values,) = model.split(found.attributions).values()
    torch.testing.assert_close(values.reshape(3, 5, 5), expected.attributions)
    assert float(found.conservation_delta.abs().max()) < 1e-4


class Bounded(nn.Module):
    """Activations that importers have classes of their own for, or functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.clamp(self.first(x), -0.2, 0.3)
        return self.last(torch.minimum(x + x.abs(), torch.full_like(x, 0.4)))


@pytest.mark.parametrize("form", FORMS)
def test_relevance_passes_bounded_activations_unchanged(form: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = Bounded().eval().requires_grad_(False)
    model = load(module, form, tmp_path, (4,))
    x = torch.rand(3, 4)
    found = run(LRP, model, x, Targets.classes(LABELS), rule="zero")
    hidden = module.first(x)
    squashed = hidden.clamp(-0.2, 0.3)
    at_last = (squashed + squashed.abs()).clamp(max=0.4) * module.last.weight[LABELS]
    expected = x * ((at_last / hidden) @ module.first.weight)
    torch.testing.assert_close(found.attributions, expected)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6, bias=False), nn.Linear(3, 6, bias=False)
        self.last = nn.Linear(6, 4, bias=False)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.last(torch.relu(self.left(left) + self.right(right)))


def test_several_inputs_share_the_target(tmp_path: Path) -> None:
    module = Pair().eval().requires_grad_(False)
    torch.jit.script(module).save(str(tmp_path / "model.pt"))
    scaled = {"mean": [0.5], "std": [0.25]}
    model = loaded(
        tmp_path / "model.pt",
        {"name": "left", "shape": (4,), **scaled},
        {"name": "right", "shape": (3,)},
    )
    left, right = torch.rand(3, 4), torch.rand(3, 3)
    x = model.encode(model.pack([left, right]))
    found = run(LRP, model, x, Targets.classes(LABELS), rule="zero")
    parts = model.split(found.attributions)
    normal = (left - 0.5) / 0.25
    hidden = module.left(normal) + module.right(right)
    at_hidden = torch.where(hidden > 0, module.last.weight[LABELS], 0)
    torch.testing.assert_close(parts["left"], normal * (at_hidden @ module.left.weight))
    torch.testing.assert_close(parts["right"], right * (at_hidden @ module.right.weight))
    assert float(found.conservation_delta.abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["mobilenet", "efficientnet", "convnext", "unet"])
def test_architectures_are_explained_alike_whatever_wrote_the_file(
    name: str, tmp_path: Path
) -> None:
    found = []
    for export in (Export(Exporter.SCRIPT), Export(Exporter.LEGACY, 17)):
        path = tmp_path / f"model{export.suffix}"
        write(name, export, path)
        (x,) = ZOO[name].example(2, torch.float32)
        model = loaded(path, {"shape": tuple(x.shape[1:])})
        results = [
            run(plugin, model, x, Targets.classes(LABELS[[0, 2]]))
            for plugin in (LRP, TransformerLRP)
        ]
        assert all(bool(result.attributions.flatten(1).any(1).all()) for result in results)
        found.append(torch.stack([result.attributions for result in results]))
    largest = found[0].abs().amax((1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(found[1] / largest, found[0] / largest, rtol=0, atol=2e-3)
