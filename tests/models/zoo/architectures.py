"""The architectures of the zoo, with trained-looking weights, inputs and what is checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from . import attention, convolutional, forms, sequences

Inputs = tuple[Tensor, ...]
_WARM_UP = 8  # batches in training mode, for batch norm's statistics
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def _images(rows: int, generator: torch.Generator) -> Inputs:
    return (torch.randn(rows, 3, 32, 32, generator=generator),)


def _other_images(rows: int, generator: torch.Generator) -> Inputs:
    return (torch.randn(rows, 3, 41, 28, generator=generator),)


def _channels_last(rows: int, generator: torch.Generator) -> Inputs:
    return (torch.randn(rows, 32, 32, 3, generator=generator),)


def _bytes(rows: int, generator: torch.Generator) -> Inputs:
    return (torch.randint(256, (rows, 3, 32, 32), generator=generator).float(),)


def _tokens(rows: int, generator: torch.Generator) -> Inputs:
    shape = (rows, sequences.LENGTH)
    return (torch.randint(1, sequences.VOCABULARY, shape, generator=generator),)


def _masked_tokens(rows: int, generator: torch.Generator) -> Inputs:
    return _masked(rows, sequences.LENGTH, generator)


def _short_masked_tokens(rows: int, generator: torch.Generator) -> Inputs:
    return _masked(rows, sequences.LENGTH - 5, generator)


def _masked(rows: int, length: int, generator: torch.Generator) -> Inputs:
    tokens = torch.randint(1, sequences.VOCABULARY, (rows, length), generator=generator)
    kept = torch.randint(4, length + 1, (rows, 1), generator=generator)
    mask = (torch.arange(length) < kept).to(torch.int64)
    return tokens * mask, mask


def _tokens_and_lengths(rows: int, generator: torch.Generator) -> Inputs:
    tokens, mask = _masked_tokens(rows, generator)
    return tokens, mask.sum(1)


def _waveform(rows: int, generator: torch.Generator) -> Inputs:
    return (torch.randn(rows, 1, 512, generator=generator),)


def _long_waveform(rows: int, generator: torch.Generator) -> Inputs:
    return (torch.randn(rows, 1, 700, generator=generator),)


def _table(rows: int, generator: torch.Generator) -> Inputs:
    return (torch.randn(rows, 20, generator=generator),)


def _whole(module: nn.Module, inputs: Inputs) -> Tensor:
    logits: Tensor = module(*inputs)
    return logits


def _second_output(module: nn.Module, inputs: Inputs) -> Tensor:
    logits: Tensor = module(*inputs)[1]
    return logits


def _before_ending(module: Any, inputs: Inputs) -> Tensor:
    logits: Tensor = module.head(module.trunk(*inputs))
    return logits


def _two_classes(module: nn.Module, inputs: Inputs) -> Tensor:
    score = module(*inputs)
    return torch.stack([torch.zeros_like(score), score], 1)


@dataclass(frozen=True)
class Architecture:
    """One network and how it is served.

    Args:
        build: the module with fresh weights.
        middle: module path of the layer that is read, with `:i` for call i of a reused module;
            its output has the batch as first axis, and nothing changes it in place.
        inputs: `(rows, generator)` to the inputs, as a caller gives them.
        names: of the inputs.
        embedding: module path of the embedding that stands in for integer inputs, or None.
        logits: `(module, inputs)` to the logits `(N, K)` that the classifier must give.
        stored: data type of the inputs in the file, where it is not the network's.
        manifest: fields that the file does not tell, besides the input's name and shape.
        free: axes of the input, besides the batch, that are exported without a fixed size.
        elsewhere: inputs of another size along `free`.
    """

    build: Callable[[], nn.Module]
    middle: str
    inputs: Callable[[int, torch.Generator], Inputs] = _images
    names: tuple[str, ...] = ("x",)
    embedding: str | None = None
    logits: Callable[[nn.Module, Inputs], Tensor] = _whole
    stored: torch.dtype | None = None
    manifest: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    free: tuple[int, ...] = ()
    elsewhere: Callable[[int, torch.Generator], Inputs] | None = None

    def rows(
        self,
        count: int,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        *,
        elsewhere: bool = False,
    ) -> Inputs:
        """`count` seeded rows, of the other size if `elsewhere`; numbers in `dtype`."""
        make = self.elsewhere if elsewhere and self.elsewhere is not None else self.inputs
        values = make(count, torch.Generator().manual_seed(seed))
        return tuple(x.to(dtype) if x.is_floating_point() else x for x in values)

    def example(self, count: int, dtype: torch.dtype) -> Inputs:
        """Rows as the file takes them."""
        values = self.rows(count, dtype, seed=1)
        return tuple(x if self.stored is None else x.to(self.stored) for x in values)


ZOO: dict[str, Architecture] = {
    "resnet_basic": Architecture(
        lambda: convolutional.ResNet(convolutional.BasicBlock), "layer1.0.relu:1"
    ),
    "resnet_bottleneck": Architecture(
        lambda: convolutional.ResNet(convolutional.Bottleneck), "layer2.0.relu:2"
    ),
    "densenet": Architecture(convolutional.DenseNet, "transition.3"),
    "inception": Architecture(convolutional.Inception, "pool"),
    "mobilenet": Architecture(
        lambda: convolutional.MobileNet(modern=False), "blocks.0.attention.relu"
    ),
    "efficientnet": Architecture(
        lambda: convolutional.MobileNet(modern=True), "blocks.1.attention.gate"
    ),
    "shufflenet": Architecture(convolutional.ShuffleNet, "units.0.branch.3.2"),
    "convnext": Architecture(convolutional.ConvNeXt, "stage1.act"),
    "vgg_functional": Architecture(convolutional.FunctionalVgg, "conv2"),
    "vit": Architecture(attention.VisionTransformer, "blocks.1.norm1"),
    "swin": Architecture(attention.Swin, "blocks.0.mlp.1"),
    "mixer": Architecture(attention.Mixer, "blocks.1.tokens.1"),
    "lstm_text": Architecture(sequences.LstmText, "relu", _tokens, ("tokens",), "embedding"),
    "gru_text": Architecture(
        sequences.GruText,
        "narrow.0",
        _tokens,
        ("tokens",),
        "embedding",
    ),
    "transformer_text": Architecture(
        sequences.TransformerText, "encoder.layers.0.norm1", _tokens, ("tokens",), "tokens"
    ),
    "transformer_masked": Architecture(
        sequences.MaskedTransformer,
        "norm2",
        _masked_tokens,
        ("tokens", "mask"),
        "words",
        free=(1,),
        elsewhere=_short_masked_tokens,
    ),
    "audio_cnn": Architecture(
        sequences.AudioCnn, "features.6", _waveform, free=(2,), elsewhere=_long_waveform
    ),
    "tabular_mlp": Architecture(sequences.TabularMlp, "net.10", _table),
    "channels_last": Architecture(
        forms.ChannelsLastNet, "trunk.2", _channels_last, manifest={"layout": "HWC"}
    ),
    "bytes": Architecture(
        forms.BytesNet, "trunk.5", _bytes, stored=torch.uint8, manifest={"bounds": (0, 255)}
    ),
    "unet": Architecture(
        forms.UNet, "down2.2", logits=_second_output, manifest={"output": {"index": 1}}
    ),
    "binary": Architecture(forms.BinaryNet, "trunk.2", logits=_two_classes),
    "softmax": Architecture(
        lambda: forms.EndingNet(nn.Softmax(dim=1)), "trunk.5", logits=_before_ending
    ),
    "log_softmax": Architecture(
        lambda: forms.EndingNet(nn.LogSoftmax(dim=-1)), "trunk.6", logits=_before_ending
    ),
    "free_size": Architecture(forms.FreeSizeNet, "relu1", free=(2, 3), elsewhere=_other_images),
    "packed_text": Architecture(
        sequences.PackedText, "act", _tokens_and_lengths, ("tokens", "lengths"), "embedding"
    ),
}


@cache
def eager(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The architecture with seeded weights and batch statistics, in evaluation mode."""
    if dtype is not torch.float32:
        module = ZOO[name].build()
        module.load_state_dict(eager(name).state_dict())
        return module.to(dtype).eval()
    with torch.random.fork_rng():
        torch.manual_seed(11)
        module = ZOO[name].build()
        norms = [part for part in module.modules() if isinstance(part, _NORMS)]
        with torch.no_grad():
            for norm in norms:
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(std=0.2)
            for batch in range(_WARM_UP if norms else 0):
                module(*ZOO[name].rows(16, seed=100 + batch))
    return module.eval()
