"""DeepLIFT and its kin on every form of file, on tokens, and through a server."""

import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from captum.attr import DeepLift as CaptumDeepLift
from perturbing import images, loaded, network
from test_gradient_files import SEEDS, Bag, load

import interpret_client
from interpret_plugins.attribution.deep_lift import DeepLift
from interpret_plugins.attribution.deep_lift_shap import DeepLiftShap
from interpret_plugins.attribution.expected_gradients import ExpectedGradients
from interpret_plugins.attribution.gradient_shap import GradientShap
from interpret_plugins.attribution.integrated_gradients import IntegratedGradients
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job, Plugin
from interpret_server.registry import Registry
from interpret_server.testing import serve
from tests.plugins.attribution.transformers import FORMS, IMAGE, vision
from tests.plugins.attribution.transformers import load as load_image

LABELS = torch.tensor([2, 0, 1])
SHAP = (DeepLiftShap, GradientShap, ExpectedGradients)


def run(plugin: type[Plugin[Any, Any]], model: Classifier, batch: Batch, **params: object) -> Any:
    made = plugin.params_type.model_validate(params)
    plugin().check(model, made)
    return plugin().run(model, batch, made, Job())


@pytest.mark.parametrize("form", ["scripted", "exported", "onnx"])
def test_files_equal_captum_on_the_eager_module(form: str, tmp_path: Path) -> None:
    module = network()
    x, start = images(6).chunk(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum announces its hooks
        expected = CaptumDeepLift(module).attribute(x, start, target=LABELS).detach()
    model = loaded(module, form, tmp_path)
    found = run(DeepLift, model, Batch(x, Targets.classes(LABELS), SEEDS, {"baseline": start}))
    assert float((found.attributions - expected).abs().max() / expected.abs().max()) < 1e-5
    several = Batch(x, Targets.classes(LABELS), SEEDS, {"baselines": start[:, None]})
    same = run(DeepLiftShap, model, several)
    torch.testing.assert_close(same.attributions, found.attributions)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fused", [False, True])
def test_transformers_are_complete(form: str, fused: bool, tmp_path: Path) -> None:
    module = vision(fused)
    model = load_image(module, form, tmp_path, IMAGE)
    x, start = torch.rand(2, 3, *IMAGE)
    result = run(DeepLift, model, Batch(x, Targets.classes(LABELS), SEEDS, {"baseline": start}))
    difference = (module(x) - module(start)).gather(1, LABELS[:, None])[:, 0]
    total = result.attributions.double().sum((1, 2, 3))
    torch.testing.assert_close(total.float(), difference, rtol=1e-4, atol=1e-5)
    assert not result.convergence_delta.any()


@pytest.mark.parametrize("form", ["scripted", "onnx", "exported"])
def test_tokens_are_attributed_at_their_embedding_and_padding_stays_padding(
    form: str, tmp_path: Path
) -> None:
    module = Bag().eval()
    tokens = torch.tensor([[3, 1, 0, 0], [8, 2, 5, 0], [4, 4, 4, 7]])
    model = load(module, tokens, form, tmp_path, {"inputs": [{"shape": (4,), "dtype": "int64"}]})
    inputs = model.encode(tokens)
    batch = Batch(inputs, Targets.classes(LABELS), SEEDS)
    exact = run(IntegratedGradients, model, batch, steps=2).attributions
    assert exact.any()
    torch.testing.assert_close(run(DeepLift, model, batch).attributions, exact)
    for plugin in SHAP:
        settings: dict[str, object] = {"draws": 3}
        settings |= {} if plugin is DeepLiftShap else {"samples": 3}
        settings |= {"noise": 0} if plugin is GradientShap else {}
        found = run(plugin, model, batch, spread=0, **settings)
        torch.testing.assert_close(found.attributions, exact)
        if plugin is not GradientShap:  # every baseline counts, and the network is linear
            assert not run(plugin, model, batch, **settings).convergence_delta.any()
    several = inputs[:, None].expand(-1, 2, *inputs.shape[1:])
    packed = Batch(inputs, Targets.classes(LABELS), SEEDS, {"baselines": several})
    if model.packing is not None:
        with pytest.raises(InvalidRequest, match="takes several inputs"):
            run(DeepLiftShap, model, packed)


def test_a_server_explains_with_baselines_of_the_request(tmp_path: Path) -> None:
    registry = Registry()
    for plugin in (DeepLift, *SHAP):
        registry.add(plugin, "tests")
    model = loaded(network(), "onnx", tmp_path)
    x, several = images(2).numpy(), images(8).reshape(2, 4, *images(1).shape[1:]).numpy()
    with (
        serve(registry, {"net": model}) as address,
        interpret_client.connect(address) as client,
    ):
        plain = client.run(
            "deep_lift", "net", x, target=[1, 3], tensors={"baseline": several[:, 0]}
        )
        assert plain.tensors["attributions"].shape == x.shape
        assert not numpy.any(plain.metrics["convergence_delta"])
        for plugin in SHAP:
            given = {"baselines": several}
            result = client.run(plugin.name, "net", x, target=[1, 3], seed=4, tensors=given)
            again = client.run(
                plugin.name, "net", x[1:], target=3, seed=5, tensors={"baselines": several[1:]}
            )
            found = result.tensors["attributions"]
            assert found.any()
            numpy.testing.assert_allclose(again.tensors["attributions"][0], found[1], atol=1e-5)
            with pytest.raises(interpret_client.InvalidRequest, match=r"tensors\.baselines"):
                client.run(plugin.name, "net", x, target=1, tensors={"baselines": several[:, 0]})
