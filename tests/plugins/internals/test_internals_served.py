"""The plugins of the internals through a server, the client and the command line."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from click.testing import CliRunner

import interpret_client
from interpret_client.cli import main
from interpret_plugins.internals.code_embedding import CodeEmbedding
from interpret_plugins.internals.filters import Filters
from interpret_plugins.internals.layer_activation import LayerActivation
from interpret_plugins.internals.layer_attribution import LayerAttribution
from interpret_plugins.internals.neuron_attribution import NeuronAttribution
from interpret_plugins.internals.top_activating import TopActivating
from interpret_server.registry import Registry
from interpret_server.testing import serve
from tests.plugins.internals.networks import Network, images, loaded

PLUGINS = (
    CodeEmbedding, Filters, LayerActivation, LayerAttribution, NeuronAttribution, TopActivating
)  # fmt: skip
ROWS = 150  # more than a model takes at once
CALLS: dict[str, tuple[str, list[str], dict[str, tuple[int, ...]]]] = {
    "attribution": (
        "layer_attribution",
        ["X3", "--target", "1,2,3", "--param", "layer=two", "--param", "method=conductance"],
        {"attributions": (3, 5, 6, 6), "channels": (3, 5)},
    ),
    "flat_attribution": (
        "layer_attribution",
        ["X3", "--target", "layer:three/neuron:4", "--param", "layer=hidden"],
        {"attributions": (3, 6)},
    ),
    "unit": (
        "neuron_attribution",
        ["X3", "--target", "1", "--param", "layer=two", "--param", "unit=[1,2,3]"],
        {"attributions": (3, 3, 8, 8)},
    ),
    "activation": (
        "layer_activation",
        ["X3", "--param", 'layers=["two","three"]'],
        {"activations.two": (3, 5, 6, 6), "channel_means.three": (3, 6)},
    ),
    "filter": ("filters", ["--target", "layer:first/channel:2"], {"filters": (1, 3, 3, 3)}),
    "filters": ("filters", ["--target", "layer:second"], {"filters": (1, 5, 5, 3, 3)}),
    "template": ("filters", ["--target", "0,3"], {"filters": (2, 6)}),
    "strongest": (
        "top_activating",
        ["X150", "--target", "layer:two/channel:3", "--param", "k=40"],
        {"indices": (40,), "positions": (40, 3), "boxes": (40, 2, 2), "crops": (40, 3, 5, 5)},
    ),
    "predicted": ("top_activating", ["X150", "--param", "k=1"], {}),
    "components": (
        "code_embedding",
        ["X150", "--param", "layer=one", "--param", "components=5"],
        {"positions": (150, 2), "components": (150, 5), "explained_share": (5,)},
    ),
    "neighbours": (
        "code_embedding",
        ["X150", "--param", "method=tsne", "--param", "steps=20"],
        {"positions": (150, 2), "divergence": ()},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Any:
    registry = Registry()
    for plugin in PLUGINS:
        registry.add(plugin, "tests")
    model = loaded(Network().eval(), "onnx", tmp_path_factory.mktemp("model"))
    with serve(registry, {"net": model}) as found:
        yield found


@pytest.mark.parametrize("name", CALLS)
def test_results_survive_the_command_line(name: str, address: str, tmp_path: Path) -> None:
    plugin, words, shapes = CALLS[name]
    for rows in (3, ROWS):
        numpy.save(tmp_path / f"X{rows}.npy", images(rows).numpy())
    words = [str(tmp_path / f"{word}.npy") if word in ("X3", "X150") else word for word in words]
    out = tmp_path / "out"
    arguments = ["run", plugin, "net", *words, "--output", str(out)]
    found = CliRunner().invoke(main, arguments, env={"INTERPRET_ADDRESS": address})
    assert found.exit_code == 0, found.output
    with numpy.load(out / "tensors.npz") as tensors:
        for tensor, shape in shapes.items():
            assert tensors[tensor].shape == shape
    summary = json.loads((out / "result.json").read_text())
    count = len(summary["provenance"]["seeds"])
    assert {len(values) for values in summary["metrics"].values()} <= {count}


def test_more_rows_than_the_model_takes_at_once_are_searched(address: str) -> None:
    x = images(ROWS).numpy()
    with interpret_client.connect(address) as client:
        unit = {"layer": "two", "channel": 3}
        found = client.run("top_activating", "net", x, target=unit, params={"k": 4})
        parts = [
            client.run("layer_activation", "net", part, params={"layers": ["two"]})
            for part in numpy.split(x, 3)
        ]
    largest = numpy.concatenate([p.tensors["channel_maxima.two"][:, 3] for p in parts])
    assert found.tensors["indices"].tolist() == (-largest).argsort()[:4].tolist()
    numpy.testing.assert_allclose(found.metrics["activation"], largest, rtol=1e-5)
