"""Small networks, exported, for what rewrites whole files."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Convolutional(nn.Module):
    """Convolutions, a residual sum, a product, a concatenation, poolings and activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = F.max_pool2d(x + torch.sigmoid(self.second(x)), 2)
        x = F.leaky_relu(self.third(x))
        x = torch.cat([x[:, :8], x[:, 8:] * x[:, :8]], 1)
        return self.head(F.avg_pool2d(x, 2).mean((2, 3)))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (self.split(part(x)) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        y = (torch.softmax(scores + mask, -1) @ value).permute(0, 2, 1, 3).contiguous()
        x = self.first(self.out(y.view(y.shape[0], y.shape[1], -1)) + x)
        return self.second(self.down(F.gelu(self.up(x))) + x)


class Encoder(nn.Module):
    """A text classifier of two transformer layers."""

    def __init__(self, width: int = 16, tokens: int = 50) -> None:
        super().__init__()
        self.words = nn.Embedding(tokens, width)
        self.places = nn.Embedding(64, width)
        self.kinds = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(_Layer(width, 2) for _ in range(2))
        self.head = nn.Linear(width, 3)
        self.register_buffer("order", torch.arange(64)[None])

    def forward(self, tokens: Tensor, mask: Tensor, kinds: Tensor) -> Tensor:
        places = self.places(self.order[:, : tokens.shape[1]])
        x = self.norm(self.words(tokens) + self.kinds(kinds) + places)
        bias = (1.0 - mask[:, None, None, :].float()) * -10000.0
        for layer in self.layers:
            x = layer(x, bias)
        return self.head(torch.tanh(x[:, 0]))


TEXT = ("tokens", "mask", "kinds")


def texts(rows: int = 4, length: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, masks of different lengths, and kinds."""
    drawn = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 50, (rows, length), generator=drawn)
    mask = (torch.arange(length) < torch.tensor([9, 5, 9, 2])[:rows, None]).long()
    return tokens, mask, (torch.arange(length) > 3).long().expand(rows, length)


def export(
    model: nn.Module, inputs: tuple[Tensor, ...], path: Path, names: tuple[str, ...] = ("x",)
) -> None:
    """Save with a free batch axis, and a free length for texts."""
    free = {0: "rows", 1: "length"} if len(names) > 1 else {0: "rows"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            inputs,
            path,
            input_names=list(names),
            output_names=["y"],
            dynamic_axes={**dict.fromkeys(names, free), "y": {0: "rows"}},
            opset_version=14,
            dynamo=False,
        )


class Calibration:
    """Random images, as onnxruntime's quantiser reads them."""

    def __init__(self, batches: int = 6) -> None:
        drawn = torch.Generator().manual_seed(0)
        self.batches: Iterator[Mapping[str, np.ndarray[Any, Any]]] = iter(
            {"x": torch.randn(8, 3, 16, 16, generator=drawn).numpy()} for _ in range(batches)
        )

    def get_next(self) -> Mapping[str, np.ndarray[Any, Any]] | None:
        return next(self.batches, None)


def optimise(path: Path, *, multi_head: bool) -> None:
    """Rewrite an exported `Encoder` with fused operators, in place."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.use_multi_head_attention = multi_head
    model = optimize_model(
        str(path), "bert", 2, 16, optimization_options=options, opt_level=0, use_gpu=False
    )
    model.save_model_to_file(str(path))


def embedding_gradient(module: nn.Module, inputs: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Of the sum of the logits, at the first and largest embedding layer."""
    tables = [item for item in module.modules() if isinstance(item, nn.Embedding)]
    (words,) = [item for item in tables if item.num_embeddings == 50]
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: object, value: Tensor) -> Tensor:
        kept.append(value.detach().requires_grad_())
        return kept[0]

    with words.register_forward_hook(keep):
        y = module(*inputs)
    return torch.autograd.grad((y * torch.tensor([1.0, -2.0, 0.5])).sum(), kept[0])[0]
