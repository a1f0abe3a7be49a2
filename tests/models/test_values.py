"""Networks that are no classifiers: log-densities, scores and denoised inputs."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from loading_files import IMAGE, SHAPE, load, script
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from interpret_server.errors import InvalidRequest, MissingCapability, ModelRejected
from interpret_server.models.classifier import Capability
from interpret_server.models.targets import Targets

VALUES = {"output": {"kind": "values"}}


class Denoiser(nn.Module):
    """The same shape out as in; its values look like nothing but values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.conv(x), 1)  # nothing of it may be cut


class Density(nn.Module):
    """Minus half the squared distance from the middle, one number for each row."""

    def forward(self, x: Tensor) -> Tensor:
        return -0.5 * ((x - 0.5) ** 2).flatten(1).sum(1)


def exported(net: nn.Module, folder: Path) -> Path:
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(net, (torch.rand(4, *SHAPE),), dynamic_shapes=({0: rows},))
    torch.export.save(program, folder / "model.pt2")
    return folder / "model.pt2"


def as_onnx(net: nn.Module, folder: Path) -> Path:
    if isinstance(net, Denoiser):
        nodes = [
            helper.make_node("Conv", ["x", "weight", "bias"], ["conv"], pads=[1, 1, 1, 1]),
            helper.make_node("Softmax", ["conv"], ["y"], axis=1),
        ]
        weights = {"weight": net.conv.weight, "bias": net.conv.bias}
    else:
        nodes = [
            helper.make_node("Sub", ["x", "middle"], ["away"]),
            helper.make_node("Mul", ["away", "away"], ["squares"]),
            helper.make_node("ReduceSum", ["squares", "axes"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "half"], ["y"]),
        ]
        weights = {
            "middle": torch.tensor(0.5),
            "half": torch.tensor(-0.5),
            "axes": torch.tensor([1, 2, 3]),
        }
    graph = helper.make_graph(
        nodes,
        "values",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.detach().numpy(), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


FORMS = {"script": script, "exported": exported, "onnx": as_onnx}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [Denoiser, Density])
def test_values_are_those_of_the_file(kind: Any, form: str, tmp_path: Path):
    net = kind().eval()
    loaded = load(FORMS[form](net, tmp_path), **IMAGE, **VALUES)
    model, info = loaded.classifier, loaded.info
    x = torch.rand(5, *SHAPE)
    expected = net(x).detach()
    torch.testing.assert_close(model(x).reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)
    assert info.classes == expected[0].numel()
    assert (info.logits_from, info.form) == ("values", "graph")
    assert info.verification.inputs > 0
    assert info.verification.relative_difference < 1e-4
    assert Capability.GRADIENT in model.capabilities
    assert "no scores of classes" in model.lacking[Capability.SCORES]


def test_a_log_density_has_its_gradient(tmp_path: Path):
    model = load(script(Density(), tmp_path), **IMAGE, **VALUES).classifier
    x = torch.rand(3, *SHAPE)
    found = model.gradient(x, Targets.classes(torch.zeros(3)))
    torch.testing.assert_close(found.inputs, 0.5 - x)
    torch.testing.assert_close(found.objective, Density()(x))


def test_a_density_of_free_sizes_is_served_and_a_denoiser_is_not(tmp_path: Path):
    free = {"shape": (3, None, None), "example": SHAPE, "bounds": (0, 1)}
    model = load(script(Density(), tmp_path), **free, **VALUES).classifier
    x = torch.rand(2, 3, 9, 10)
    torch.testing.assert_close(model(x)[:, 0], Density()(x))
    with pytest.raises(InvalidRequest, match="needs an input of fixed sizes"):
        load(script(Denoiser(), tmp_path), **free, **VALUES)


def test_without_the_manifests_word_they_are_refused(tmp_path: Path):
    with pytest.raises(ModelRejected, match=r'output\.kind = "values"'):
        load(script(Denoiser(), tmp_path), **IMAGE)


def test_integers_are_no_values(tmp_path: Path):
    class Index(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).argmax(1)

    with pytest.raises(ModelRejected, match="holds integers, and no values"):
        load(script(Index(), tmp_path), **IMAGE, **VALUES)


def test_what_needs_scores_is_refused(tmp_path: Path):
    from interpret_plugins.attribution.occlusion import Occlusion
    from interpret_server.engine.parameters import check_capabilities

    model = load(script(Density(), tmp_path), **IMAGE, **VALUES).classifier
    with pytest.raises(MissingCapability, match="no scores of classes"):
        check_capabilities(Occlusion(), model)
