"""Black-box methods through a real server, on a file that only predicts."""

from pathlib import Path

import numpy
import pytest
from perturbing import images, loaded, network

import interpret_client
from interpret_plugins.attribution.feature_ablation import FeatureAblation
from interpret_plugins.attribution.kernel_shap import KernelSHAP
from interpret_plugins.attribution.lime import LIME
from interpret_plugins.attribution.occlusion import Occlusion
from interpret_plugins.attribution.rise import RISE
from interpret_plugins.attribution.shapley_sampling import ShapleySampling
from interpret_server.registry import Registry
from interpret_server.testing import serve

CALLS = {
    "occlusion": ({"window": 3, "stride": 3}, 2 * 3 * 4),
    "feature_ablation": ({"cell": 2}, 2 * 5 * 5),
    "rise": ({"masks": 100}, 2 * 100),
    "lime": ({"cell": 3, "samples": 70, "num_features": 5, "selection": "lasso"}, 2 * 70),
    "kernel_shap": ({"cell": 3, "samples": 90}, 2 * 91),
    "shapley_sampling": ({"cell": 3, "permutations": 6}, 2 * (1 + 6 * 11)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_file_that_only_predicts_is_explained_with_progress_and_pictures(
    name: str, tmp_path: Path
) -> None:
    registry = Registry()
    for plugin in (Occlusion, FeatureAblation, RISE, LIME, KernelSHAP, ShapleySampling):
        registry.add(plugin, "tests")
    model = loaded(network(), "runtime", tmp_path)
    assert "gradient" in model.lacking
    params, variants = CALLS[name]
    x = images(2).numpy()
    with (
        serve(registry, {"net": model}) as address,
        interpret_client.connect(address) as client,
    ):
        events = list(
            client.stream(name, "net", x, target=[1, 3], seed=7, params=params, render=True)
        )
        again = client.run(name, "net", x[1:], target=[3], seed=8, params=params)
    totals = {event.progress.total for event in events if event.progress}
    assert totals == {1 + -(-variants // 64)}
    result = events[-1].result
    assert result is not None
    found = result.tensors["attributions"]
    assert found.shape == x.shape
    assert result.pictures
    numpy.testing.assert_allclose(again.tensors["attributions"][0], found[1], atol=1e-5)
