"""Superpixels and single values as features, of every layout and number of channels."""

from pathlib import Path

import numpy
import pytest
import torch
from perturbing import SHAPE, Recorder, images, loaded, network, run
from skimage.measure import label
from skimage.segmentation import slic
from torch import Tensor, nn

from interpret_plugins.attribution.feature_ablation import FeatureAblation
from interpret_plugins.attribution.kernel_shap import KernelSHAP
from interpret_plugins.attribution.lime import LIME
from interpret_plugins.attribution.shapley_sampling import ShapleySampling
from interpret_plugins.attribution.superpixels import superpixels
from interpret_server.errors import InvalidRequest
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Classifier
from interpret_server.testing import classifier, conformance

METHODS = [FeatureAblation, KernelSHAP, LIME, ShapleySampling]


def model_of(
    shape: tuple[int, ...], layout: str, bounds: tuple[float, float] | None = (0.0, 1.0)
) -> Classifier:
    net = nn.Sequential(nn.Flatten(), nn.Linear(int(torch.tensor(shape).prod()), 3))
    return classifier(net, shape, input_layout=layout, bounds=bounds)


def quarters(channels: int, size: int = 24) -> Tensor:
    """`(2, C, size, size)`: four plain areas that meet off the centre, and a little noise."""
    source = torch.Generator().manual_seed(channels)
    image = torch.zeros(2, channels, size, size)
    for row, middle in enumerate((8, 15)):
        for top in (slice(0, middle), slice(middle, None)):
            for left in (slice(0, middle), slice(middle, None)):
                image[row, :, top, left] = torch.rand(channels, 1, 1, generator=source)
    return (image + 0.01 * torch.rand(image.shape, generator=source)).clamp(0, 1)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_superpixels_are_connected_and_keep_to_what_is_plain(channels: int) -> None:
    image = quarters(channels)
    model = model_of(tuple(image.shape[1:]), "CHW")
    found = superpixels(model, image, 16, 5.0)
    assert found.shape == image.shape
    assert torch.equal(found, found[:, :1].expand_as(found))
    for row, middle in enumerate((8, 15)):
        numbers = found[row, 0]
        count = int(numbers.max()) + 1
        assert 8 <= count <= 32
        parts = label(numbers.numpy() + 1, connectivity=1)
        assert int(parts.max()) == count
        side = torch.arange(24) >= middle
        area = 2 * side[:, None].long() + side
        homes = [area[numbers == number].unique() for number in range(count)]
        assert all(len(home) == 1 for home in homes)


def test_superpixels_of_colours_are_those_of_the_library() -> None:
    image = quarters(3)
    image[:, :, 0, 0], image[:, :, 0, 1] = 0, 1  # the library stretches the values itself
    found = superpixels(model_of((3, 24, 24), "CHW"), image, 12, 20.0)
    for row in range(2):
        pixels = image[row].double().permute(1, 2, 0).numpy()
        expected = slic(pixels, n_segments=12, compactness=20, start_label=0)
        assert numpy.array_equal(found[row, 0].numpy(), expected)


def test_layout_bounds_and_batch_mates_change_nothing() -> None:
    image = quarters(3)
    found = superpixels(model_of((3, 24, 24), "CHW"), image, 12, 10.0)
    last = superpixels(model_of((24, 24, 3), "HWC"), image.permute(0, 2, 3, 1), 12, 10.0)
    assert torch.equal(last.permute(0, 3, 1, 2), found)
    wide = superpixels(model_of((3, 24, 24), "CHW", (-1, 3)), image * 4 - 1, 12, 10.0)
    assert torch.equal(wide, found)
    alone = superpixels(model_of((3, 24, 24), "CHW"), image[1:], 12, 10.0)
    assert torch.equal(alone, found[1:])


def test_a_plain_image_without_bounds_has_superpixels_too() -> None:
    model = model_of((1, 16, 16), "CHW", None)
    found = superpixels(model, torch.full((1, 1, 16, 16), 0.7), 16, 10.0)
    assert len(found.unique()) == 16


def test_inputs_that_noise_leaves_in_one_piece_are_warned_about() -> None:
    model, job = model_of((3, 24, 24), "CHW"), Recorder()
    noise = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    x, targets = torch.cat([noise, quarters(3)[:1]]), Targets.classes(torch.tensor([1, 2]))
    params = {"features": "superpixels", "segments": 9}
    run(FeatureAblation(), model, x, targets, job, **params)
    assert [rows for rows, _ in job.warnings] == [[True, False]]
    assert "a single superpixel" in job.warnings[0][1]
    run(FeatureAblation(), model, x, targets, job, **params, compactness=1000)
    assert len(job.warnings) == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_signal_has_contiguous_segments_that_end_where_it_changes(channels: int) -> None:
    signal = torch.zeros(1, channels, 60)
    signal[..., 17:41] = 1
    found = superpixels(model_of((channels, 60), "CL"), signal, 6, 1.0)[0]
    assert torch.equal(found, found[:1].expand_as(found))
    steps = found[0].diff().nonzero()[:, 0] + 1
    assert len(found.unique()) == len(steps) + 1 >= 4
    assert {17, 41} <= set(steps.tolist())


def test_tokens_are_cut_into_segments_and_values_are_whole_tokens(tmp_path: Path) -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(20, 6), nn.Linear(6, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.last(self.table(tokens).sum(1))

    path = tmp_path / "net.pt"
    torch.jit.script(Text().eval()).save(str(path))
    manifest = Manifest.model_validate({"shape": (None,)})
    model = load_classifier("net", path, manifest, device=torch.device("cpu")).classifier
    x = model.encode(torch.randint(0, 20, (2, 12)))
    targets = Targets.classes(torch.tensor([0, 1]))
    cut = run(FeatureAblation(), model, x, targets, features="superpixels", segments=4).features
    assert torch.equal(cut, cut[:, :, :1].expand_as(cut))
    assert cut[:, :, 0].diff(dim=1).ne(0).sum(1).tolist() == [int(row.max()) for row in cut]
    whole = run(FeatureAblation(), model, x, targets, features="values").features
    assert torch.equal(whole, torch.arange(12)[None, :, None].expand(2, 12, 6))


def test_values_are_every_value_of_an_image() -> None:
    model = model_of((3, 2, 2), "CHW")
    found = run(
        FeatureAblation(), model, torch.rand(1, 3, 2, 2), Targets.classes(torch.tensor([1])),
        features="values",
    )  # fmt: skip
    assert found.features.flatten().tolist() == list(range(12))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_explains_by_superpixels_on_a_file_that_only_predicts(
    method: type, tmp_path: Path
) -> None:
    model, x = loaded(network(), "runtime", tmp_path), images(2)
    targets = Targets.classes(torch.tensor([1, 3]))
    params = {"features": "superpixels", "segments": 5, "compactness": 100}
    found = run(method(), model, x, targets, **params)
    sent = run(method(), model, x, targets, None, {"features": found.features.float()})
    assert found.features.shape == (2, *SHAPE)
    assert 2 <= int(found.features.max()) <= 10
    assert torch.equal(sent.attributions, found.attributions)
    for number in range(int(found.features[0].max()) + 1):
        assert len(found.attributions[0][found.features[0] == number].unique()) == 1


@pytest.mark.parametrize("method", METHODS)
def test_rows_with_superpixels_of_their_own_keep_the_contract(method: type) -> None:
    amounts = {"samples": 6, "permutations": 4}
    few = {name: amounts[name] for name in amounts if name in method.params_type.model_fields}
    conformance(method, params={"features": "superpixels", "segments": 4, **few})


def test_inputs_without_positions_have_no_superpixels() -> None:
    model = model_of((12,), "other")
    with pytest.raises(InvalidRequest, match="superpixels need an image or a signal") as caught:
        LIME().check(model, LIME.params_type(features="superpixels"))
    assert caught.value.violations[0].field == "params.features"


def test_several_inputs_have_no_superpixels(tmp_path: Path) -> None:
    class Scene(nn.Module):
        def forward(self, image: Tensor, facts: Tensor) -> Tensor:
            return image.flatten(1)[:, :3] + facts

    path = tmp_path / "net.pt"
    torch.jit.script(Scene()).save(str(path))
    inputs = [{"name": "image", "shape": (3, 4, 4)}, {"name": "facts", "shape": (3,)}]
    manifest = Manifest.model_validate({"inputs": inputs})
    model = load_classifier("net", path, manifest, device=torch.device("cpu")).classifier
    with pytest.raises(InvalidRequest, match="takes several inputs; superpixels need a single one"):
        LIME().check(model, LIME.params_type(features="superpixels"))
    x = model.encode(model.pack([torch.rand(1, 3, 4, 4), torch.rand(1, 3)]))
    found = run(KernelSHAP(), model, x, Targets.classes(torch.tensor([2])), features="values")
    expected = {"image": x[:, :48] * (torch.arange(48) == 2), "facts": x[:, 48:]}
    expected["facts"] = expected["facts"] * (torch.arange(3) == 2)
    for name, values in model.split(found.attributions).items():
        torch.testing.assert_close(values.flatten(1), expected[name], rtol=0, atol=1e-6)
