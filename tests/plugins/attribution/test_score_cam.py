"""Score-CAM: the formula in float64, models without gradients, passes, targets, files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from perturbing import SHAPE, Counted, Recorder, images, loaded, network, run
from torch import Tensor, nn
from torch.nn.functional import interpolate

from interpret_plugins.attribution.score_cam import ScoreCAM
from interpret_server.errors import InvalidRequest
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.plugin import Classifier
from interpret_server.testing import classifier

LABELS = torch.tensor([1, 3])
TARGETS = Targets.classes(LABELS)


def by_hand(
    module: nn.Sequential,
    at: int,
    x: Tensor,
    *,
    fill: float = 0.5,
    probability: bool = False,
    increase: bool = False,
    end: int | None = None,
) -> Tensor:
    """The map of each row, channel by channel, before rectifying."""

    def score(rows: Tensor, label: Tensor) -> Tensor:
        values = module[:end](rows)
        values = values.mean((2, 3)) if values.dim() == 4 else values
        return (values.softmax(1) if probability else values)[0, label]

    maps = []
    for row, label in zip(x, LABELS, strict=True):
        values = module[: at + 1](row[None])[0]
        scores = []
        for channel in values:
            mask = interpolate(
                channel[None, None], size=x.shape[2:], mode="bilinear", align_corners=False
            )[0, 0]
            if channel.max() == channel.min():
                scores.append(torch.tensor(-torch.inf, dtype=x.dtype))
                continue
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            scores.append(score((row * mask + fill * (1 - mask))[None], label))
        weights = torch.stack(scores)
        if increase:
            weights = weights - score(torch.full_like(row, fill)[None], label)
            weights = torch.where(weights.isinf(), 0, weights)
        else:
            weights = weights.softmax(0)
        maps.append((weights[:, None, None] * values).sum(0))
    return torch.stack(maps).detach()


def model_of(module: nn.Module, **params: Any) -> Classifier:
    return classifier(module, SHAPE, input_layout="CHW", **params)


@pytest.mark.parametrize("weights", ["softmax", "increase"])
@pytest.mark.parametrize("score", ["logit", "probability"])
def test_maps_are_the_formula(weights: str, score: str) -> None:
    module, x = network().double(), images(2).double()
    expected = by_hand(
        module, 3, x, probability=score == "probability", increase=weights == "increase"
    )
    model = model_of(module)
    found = run(ScoreCAM(), model, x, TARGETS, weights=weights, score=score, rectify=False)
    torch.testing.assert_close(found.map, expected)
    large = interpolate(expected[:, None], size=(9, 10), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found.attributions, large[:, 0])
    torch.testing.assert_close(found.logits, module(x).detach())
    assert found.layer.tolist() == [list(model.layers).index("3")] * 2
    rectified = run(ScoreCAM(), model, x, TARGETS, weights=weights, score=score)
    torch.testing.assert_close(rectified.map, expected.clamp(min=0))


def test_a_layer_and_a_filling_may_be_named() -> None:
    module, x = network().double(), images(2).double()
    expected = by_hand(module, 0, x, fill=0.2)
    found = run(ScoreCAM(), model_of(module), x, TARGETS, layer="0", fill=0.2, rectify=False)
    torch.testing.assert_close(found.map, expected)


def test_targets_inside_the_network_are_measured_by_their_value() -> None:
    module, x = network().double(), images(2).double()
    targets = Targets(TargetKind.CHANNEL, LABELS[:, None], "2")
    found = run(ScoreCAM(), model_of(module), x, targets, rectify=False)
    torch.testing.assert_close(found.map, by_hand(module, 1, x, end=3))
    assert found.logits is None


def with_dead_channels(x: Tensor) -> nn.Sequential:
    """Two channels of the last maps are zero in both rows, one more in the second row."""
    module = network()
    with torch.no_grad():
        maps = module[:2](x)
        module[2].weight[:2], module[2].bias[:2] = 0, -1
        third = nn.functional.conv2d(maps, module[2].weight[2:3], stride=2)
        module[2].bias[2] = -(third[0].max() + third[1].max()) / 2
        assert third[0].max() > third[1].max()
    return module


@pytest.mark.parametrize("weights", ["softmax", "increase"])
def test_channels_that_show_nothing_cost_and_weigh_nothing(weights: str) -> None:
    x = images(2)
    x[1] *= 0.6
    module = with_dead_channels(x)
    model, job = model_of(module), Recorder(max_rows=2)
    counted = Counted(model)
    found = run(ScoreCAM(), model, x, TARGETS, job, weights=weights, rectify=False)
    extra = 2 * (weights == "increase")
    assert sum(counted.rows[-job.totals[0] + 1 :]) == 3 + extra
    assert job.totals == [1 + -(-(3 + extra) // 2)]
    expected = by_hand(module, 3, x, increase=bool(extra))
    torch.testing.assert_close(found.map, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("limit", [1, 3, 64])
def test_how_many_channels_share_a_pass_changes_nothing(limit: int) -> None:
    module, x = network().double(), images(2).double()
    job = Recorder(limit)
    found = run(ScoreCAM(), model_of(module), x, TARGETS, job, layer="1")
    torch.testing.assert_close(found.map, by_hand(module, 1, x).clamp(min=0))
    assert (job.totals, job.done) == ([1 + -(-10 // limit)], 1 + -(-10 // limit))


def test_a_row_whose_channels_show_nothing_has_no_map_and_a_warning() -> None:
    module, x, job = network(), images(2), Recorder()
    with torch.no_grad():
        module[2].bias -= 100
    found = run(ScoreCAM(), model_of(module), x, TARGETS, job)
    assert not found.map.any()
    assert [rows for rows, _ in job.warnings] == [[True, True]]
    assert "nothing that was hidden changes the target's score" in job.warnings[0][1]


class Rounded(nn.Module):
    """Lets no gradient through."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.maps, self.head = body[:4], body[4:]

    def forward(self, x: Tensor) -> Tensor:
        whole = (self.maps(x) * 1000).to(torch.int32)
        return self.head(whole.to(torch.float32) / 1000)


@pytest.mark.parametrize("layer", [None, "maps.1"])
def test_models_without_gradients_are_explained(layer: str | None, tmp_path: Path) -> None:
    module, x = network(), images(2)
    path = tmp_path / "net.pt"
    torch.jit.script(Rounded(module).eval()).save(str(path))
    manifest = Manifest.model_validate({"shape": SHAPE, "bounds": (0, 1)})
    model = load_classifier("net", path, manifest, device=torch.device("cpu")).classifier
    assert "gradient" in model.lacking
    found = run(ScoreCAM(), model, x, TARGETS, layer=layer, rectify=False)
    expected = by_hand(module, 1 if layer else 3, x)
    assert float((found.map - expected).abs().max()) < 0.01 * float(expected.abs().max())


@pytest.mark.parametrize("saver", ["scripted", "exported", "onnx"])
def test_files_equal_the_formula_on_the_eager_module(saver: str, tmp_path: Path) -> None:
    module, x = network(), images(2)
    model = loaded(module, saver, tmp_path)
    found = run(ScoreCAM(), model, x, TARGETS, rectify=False)
    torch.testing.assert_close(found.map, by_hand(module, 3, x), rtol=1e-4, atol=1e-6)


class Mixed(nn.Module):
    """Its second layer holds what it knows of each patch, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix, self.last = nn.Conv2d(3, 5, 3, 3), nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mix(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def test_maps_that_do_not_lie_over_the_input_cannot_mask_it() -> None:
    params = {"layer": "mix", "channels": "last", "upsample": "none"}
    with pytest.raises(InvalidRequest, match="are to mask inputs of shape") as caught:
        run(ScoreCAM(), model_of(Mixed()), images(2), TARGETS, **params)
    assert caught.value.violations[0].field == "params.layer"
    found = run(ScoreCAM(), model_of(Mixed()), images(2), TARGETS, layer="patches")
    assert found.attributions.shape == (2, 9, 10)


def test_bounds_that_are_not_stated_are_no_filling() -> None:
    with pytest.raises(InvalidRequest) as caught:
        run(ScoreCAM(), model_of(network(), bounds=None), images(2), TARGETS, fill="lower")
    assert caught.value.violations[0].field == "params.fill"
