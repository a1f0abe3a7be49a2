"""Cells that an exporter refuses, or whose format cannot hold float64; and open defects."""

from fnmatch import fnmatchcase

# Exporters that refuse an architecture: pattern of the cell -> part of the exporter's message.
REFUSED: dict[str, str] = {
    "transformer_*-onnx13*": "aten::scaled_dot_product_attention",
    "transformer_masked-onnx*-float64": "Unsupported type for attn_mask",
    "packed_text-onnx*": "vector::_M_range_check",
    "packed_text-export*": "failed to unpack the object",
    "packed_text-dynamo*": "failed to unpack the object",
    "vit-onnx13*": "aten::scaled_dot_product_attention",
}

# Numbers that an exporter writes in float32 into a float64 file -> what they cost.
ROUNDED: dict[str, str] = {
    "tabular_mlp-onnx*-float64": "ONNX attributes (alpha of Elu and LeakyRelu) are float32",
    "tabular_mlp-dynamo*-float64": "ONNX attributes (alpha of Elu and LeakyRelu) are float32",
    "audio_cnn-onnx*-float64": "ONNX attributes (alpha of LeakyRelu) are float32",
    "audio_cnn-dynamo*-float64": "ONNX attributes (alpha of LeakyRelu) are float32",
    "mobilenet-onnx13*-float64": "there is no HardSwish, and torch differentiates a float64 "
    "hardsigmoid with a sixth in float32",
    "transformer_*-dynamo23*-float64": "ONNX attributes (scale of Attention) are float32",
    "vit-dynamo23*-float64": "ONNX attributes (scale of Attention) are float32",
    "swin-dynamo*-float64": "the exporter writes GELU's constants in float32",
}
ROUNDED_LIMIT = 1e-7

# Networks whose forward pass cannot but wait for the device -> why.
WAITS: dict[str, str] = {
    "packed_text-*": "torch packs sequences by lengths that the host reads",
}

# Defects of ours: pattern of the cell -> what is wrong.
DEFECTS: dict[str, str] = {}


def find(patterns: dict[str, str], cell: object) -> str | None:
    """What is said of a cell, by its name, or None."""
    return next((why for pattern, why in patterns.items() if fnmatchcase(str(cell), pattern)), None)
