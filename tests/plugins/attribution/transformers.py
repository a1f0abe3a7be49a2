"""Small transformers for the tests of attention, and how they are written to files."""

import math
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.plugin import Classifier

FORMS = ("scripted", "traced", "onnx", "exported")
IMAGE = (3, 8, 12)


class Block(nn.Module):
    """Attention with its softmax as a module, or by the fused operator."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.softmax = nn.Softmax(-1)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        parts = self.qkv(self.norm(x)).reshape(n, t, 3, self.heads, c // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q, k, v)
        else:
            scale = 1 / math.sqrt(c // self.heads)
            mixed = self.softmax(q @ k.transpose(-2, -1) * scale) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(n, t, c))
        return x + self.mlp(self.norm2(x))


class Vision(nn.Module):
    """Patches of 4 by 4 in a grid of 2 by 3, read at a class token or as their mean."""

    def __init__(self, fused: bool = False, class_token: bool = True) -> None:
        super().__init__()
        width = 8
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width)) if class_token else None
        self.positions = nn.Parameter(torch.randn(1, 7 if class_token else 6, width))
        self.blocks = nn.Sequential(Block(width, 2, fused), Block(width, 2, fused))
        self.last = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        token = self.token
        if token is not None:
            x = torch.cat([token.expand(x.shape[0], -1, -1), x], 1)
        x = self.blocks(x + self.positions)
        return self.last(x.mean(1) if token is None else x[:, 0])


def vision(fused: bool = False, class_token: bool = True) -> Vision:
    """The same weights whatever `fused` is."""
    torch.manual_seed(5)
    module = Vision(fused, class_token).eval().requires_grad_(False)
    for block in module.blocks:
        block.qkv.weight.mul_(3)  # attention that is far from even
    return module


def load(module: nn.Module, form: str, folder: Path, shape: tuple[int, ...]) -> Classifier:
    """A module as a file of one form, loaded."""
    path = folder / {"onnx": "model.onnx", "exported": "model.pt2"}.get(form, "model.pt")
    example = torch.rand(2, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces that its exporters are deprecated
        match form:
            case "scripted":
                torch.jit.script(module).save(str(path))
            case "traced":
                torch.jit.trace(module, example).save(str(path))
            case "onnx":
                free = {"x": {0: "n"}}
                torch.onnx.export(
                    module, (example,), str(path), dynamo=False, input_names=["x"],
                    dynamic_axes=free, opset_version=17,
                )  # fmt: skip
            case "exported":
                axes = ({0: torch.export.Dim.DYNAMIC},)
                program = torch.export.export(module, (example,), dynamic_shapes=axes)
                torch.export.save(program, path)
    manifest = Manifest.model_validate({"shape": shape, "bounds": (0, 1)})
    return load_classifier("net", path, manifest, device=torch.device("cpu")).classifier
