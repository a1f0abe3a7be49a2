"""The randomisation test, against scipy, scikit-image and models made random by hand."""

import copy
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from judging import FORMS, LABELS, Recorder, batch_of, eager, flat, images, loaded, network, run
from torch import Tensor, nn

from interpret_plugins.metrics.randomisation import Randomisation
from interpret_plugins.metrics.similarity import spearman, ssim
from interpret_plugins.metrics.weights import Twin, weighted_layers
from interpret_server.errors import FailedPrecondition, InvalidRequest
from interpret_server.noise import generator
from interpret_server.plugin import Classifier


class Shared(nn.Module):
    """One layer is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(84, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.norm = nn.BatchNorm1d(8)
        nn.init.uniform_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.first(x.flatten(1))))
        return self.last(torch.tanh(self.twice(torch.tanh(self.twice(x)))))


def state(model: Classifier) -> dict[str, Tensor]:
    return {name: item.clone() for name, item in model.module.state_dict().items()}


def test_spearman_equals_scipy_with_equal_values() -> None:
    from scipy.stats import spearmanr

    source = torch.Generator().manual_seed(1)
    first = torch.randint(0, 9, (3, 4, 5), generator=source).float()
    second = first + torch.randint(0, 4, (3, 4, 5), generator=source)
    found = spearman(first, second)
    for row in range(3):
        expected = spearmanr(first[row].flatten(), second[row].flatten()).statistic
        assert float(found[row]) == pytest.approx(expected, abs=1e-12)
    flat_map = torch.ones_like(first)
    assert spearman(first, flat_map).tolist() == [0, 0, 0]
    assert spearman(flat_map, 2 * flat_map).tolist() == [1, 1, 1]


@pytest.mark.parametrize("size", [(20, 17), (6, 9)])
def test_ssim_equals_scikit_image(size: tuple[int, int]) -> None:
    from skimage.metrics import structural_similarity

    first = torch.rand(2, *size, dtype=torch.float64)
    second = first + 0.3 * torch.rand(2, *size, dtype=torch.float64)
    found = ssim(3 * first - 5, second)
    window = 7 if min(size) >= 7 else 5
    for row in range(2):
        pair = [
            (item - item.min()) / (item.max() - item.min()) for item in (first[row], second[row])
        ]
        expected = structural_similarity(
            pair[0].numpy(), pair[1].numpy(), win_size=window, data_range=1.0
        )
        assert float(found[row]) == pytest.approx(expected, abs=1e-9)


def test_a_linear_model_s_gradient_becomes_its_shuffled_weights() -> None:
    weight = torch.randn(4, 9, dtype=torch.float64)
    model = flat(weight)
    signed = {"plugin": "saliency", "params": {"absolute": False}}
    found = run(
        Randomisation(), model, batch_of(torch.rand(3, 9, dtype=torch.float64)),
        method=signed, absolute=False, maps=True, weight_seed=7,
    )  # fmt: skip
    (name,) = found.randomised
    (weights, _) = weighted_layers(model)[name]
    place = [item for item, _ in model.module.named_parameters()].index(weights)
    order = torch.randperm(36, generator=generator(7, place))
    shuffled = weight.flatten()[order].reshape(4, 9)
    torch.testing.assert_close(found.randomised[name], shuffled[LABELS])
    torch.testing.assert_close(found.attributions, weight[LABELS])
    torch.testing.assert_close(found.last, spearman(weight[LABELS], shuffled[LABELS]))
    assert found.ssim is None


def test_layers_become_random_from_the_output_to_the_input() -> None:
    model, batch = eager(network().double()), batch_of(images().double())
    found = run(Randomisation(), model, batch, maps=True)
    assert list(found.spearman) == ["5", "2", "0"]
    random = copy.deepcopy(model.module)
    for layer in ("5", "2", "0"):
        for place, (name, weight) in enumerate(random.named_parameters()):
            if name.startswith(f"body.{layer}."):
                order = torch.randperm(weight.numel(), generator=generator(0, place))
                weight.data = weight.data.flatten()[order].reshape(weight.shape)
        leaf = batch.inputs.clone().requires_grad_()
        chosen = random(leaf).gather(1, LABELS[:, None]).sum()
        (expected,) = torch.autograd.grad(chosen, leaf)
        torch.testing.assert_close(found.randomised[layer], expected.abs())
    mean = torch.stack(list(found.spearman.values())).mean(0)
    torch.testing.assert_close(found.similarity, mean)
    torch.testing.assert_close(found.last, found.spearman["0"])


def test_layers_become_random_one_at_a_time() -> None:
    model, batch = eager(network().double()), batch_of(images().double())
    each = run(Randomisation(), model, batch, order="independent")
    for layer in ("5", "2", "0"):
        alone = run(Randomisation(), model, batch, layers=[layer])
        assert list(alone.spearman) == [layer]
        torch.testing.assert_close(alone.spearman[layer], each.spearman[layer])
        torch.testing.assert_close(alone.ssim[layer], each.ssim[layer])
    cascading = run(Randomisation(), model, batch)
    torch.testing.assert_close(cascading.spearman["5"], each.spearman["5"])
    assert not torch.allclose(cascading.spearman["0"], each.spearman["0"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [network, Shared])
def test_the_served_model_is_untouched_and_forms_agree(
    make: type[nn.Module], form: str, tmp_path: Path
) -> None:
    torch.manual_seed(4)
    module = make().eval()
    model, batch = loaded(module, form, tmp_path), batch_of(images())
    before, logits = state(model), model(batch.inputs).detach()
    found = run(Randomisation(), model, batch, weights="normal", maps=True)
    after = state(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(model(batch.inputs).detach(), logits)
    assert len(found.spearman) == len(weighted_layers(model))
    assert all(not torch.equal(item, found.attributions) for item in found.randomised.values())
    assert float(found.last.abs().max()) < 0.9


def test_shared_weights_stay_shared_and_keep_their_statistics(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = loaded(Shared().eval(), "scripted", tmp_path)
    layers = weighted_layers(model)
    assert list(layers) == ["first", "norm", "twice", "last"]
    twin = Twin(model, "permute", 0)
    twin.randomise(layers["twice"])
    changed = dict(twin.classifier().module.named_parameters())
    served = dict(model.module.named_parameters())
    pair = [name for name in served if "twice" in name and name.endswith("weight")]
    assert len(pair) == 2
    assert torch.equal(changed[pair[0]], changed[pair[1]])
    assert not torch.equal(changed[pair[0]], served[pair[0]])
    assert torch.equal(changed[pair[0]].flatten().sort()[0], served[pair[0]].flatten().sort()[0])
    twin.restore(layers["twice"])
    assert all(torch.equal(item, served[name]) for name, item in changed.items())


def test_weights_out_of_reach_and_unknown_layers_are_refused() -> None:
    model = eager(network())
    with pytest.raises(InvalidRequest, match=r"params\.layers: model has no layer '7'.*0, 2, 5"):
        run(Randomisation(), model, batch_of(images()), layers=["7"])
    plain = eager(nn.Sequential(nn.Flatten(), nn.Softplus()))
    with pytest.raises(FailedPrecondition, match="cannot be changed"):
        run(Randomisation(), plain, batch_of(images()))


def test_every_layer_is_a_step() -> None:
    job = Recorder()
    run(Randomisation(), eager(network()), batch_of(images()), job)
    assert job.totals == [4]


def test_similarities_of_quantus_agree() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from quantus.functions.similarity_func import correlation_spearman
    first, second = torch.rand(2, 3, 40, dtype=torch.float64)
    found = spearman(first, second)
    expected = [correlation_spearman(first[i].numpy(), second[i].numpy()) for i in range(3)]
    numpy.testing.assert_allclose(found, expected, atol=1e-12)


class Normalised(nn.Module):
    """Normalises its input itself, and scales and shifts a layer's values by weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(2, 1, 1))
        self.register_buffer("std", torch.rand(2, 1, 1) + 0.5)
        self.conv, self.last = nn.Conv2d(2, 4, 3), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = (x.flip(1) - self.mean) / self.std
        return self.last((self.conv(x) * self.scale).mean((2, 3)))


@pytest.mark.parametrize("form", FORMS)
def test_what_normalises_the_input_are_no_weights(form: str, tmp_path: Path) -> None:
    model = loaded(Normalised().eval(), form, tmp_path)
    assert len(weighted_layers(model)) == 3  # the convolution, the scale, the last one
