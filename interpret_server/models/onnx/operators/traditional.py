"""Operators of ai.onnx.ml that converters of scikit-learn put before and after linear models."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from ...lowered import Unlowerable
from ..call import Call
from ..registry import operator
from ..values import Maybe, Output, Value
from .linear import _linear

ML = "ai.onnx.ml"


def _row(call: Call, name: str) -> Tensor:
    return torch.tensor([float(item) for item in call.attributes.get(name, ())])


def _single(call: Call, x: Value) -> Value:
    """These operators compute in float32, whatever they are given."""
    return x if call.dtype(x) is torch.float32 else call.function(Tensor.float, x, kind="cast")


def scale(x: Tensor, offset: Tensor, factor: Tensor) -> Tensor:
    """`(x - offset) * factor`, per column."""
    return (x - offset) * factor


@operator("Scaler", domain=ML)
def scaler(call: Call, x: Value) -> Output:
    return call.function(scale, _single(call, x), _row(call, "offset"), _row(call, "scale"))


def normalise(x: Tensor, order: float) -> Tensor:
    """Rows by their norm; rows of zeros stay."""
    norm = torch.linalg.vector_norm(x, order, dim=-1, keepdim=True)
    return x / torch.where(norm == 0, 1.0, norm)


@operator("Normalizer", domain=ML)
def normalizer(call: Call, x: Value) -> Output:
    norm = call.text("norm", "MAX")
    if norm not in ("L1", "L2"):
        raise Unlowerable(f"Normalizer with the norm {norm}")
    if norm == "L1" and isinstance(x, fx.Node) and x.meta.get("kind") == "softmax":
        return x
    return call.function(normalise, _single(call, x), float(norm[1]))


def impute(x: Tensor, missing: float, values: Tensor) -> Tensor:
    """Per column, `values` where `x` is `missing`, which may be NaN."""
    lost = x.isnan() if missing != missing else x == missing
    return torch.where(lost, values, x)


@operator("Imputer", domain=ML)
def imputer(call: Call, x: Value) -> Output:
    if "imputed_value_floats" not in call.attributes:
        raise Unlowerable("Imputer of integers")
    missing = call.real("replaced_value_float", 0.0)
    return call.function(impute, _single(call, x), missing, _row(call, "imputed_value_floats"))


def one_hot(x: Tensor, categories: Tensor) -> Tensor:
    """A new last axis that is 1 at the category and 0 elsewhere."""
    return (x.long()[..., None] == categories).float()


@operator("OneHotEncoder", domain=ML)
def one_hot_encoder(call: Call, x: Value) -> Output:
    categories = call.integers("cats_int64s")
    if not categories or not call.integer("zeros", 1):
        raise Unlowerable("OneHotEncoder of texts, or without zeros=1")
    return call.function(one_hot, x, torch.tensor(categories))


def columns(*parts: Tensor) -> Tensor:
    """All columns of several inputs side by side."""
    return torch.cat([part.float().flatten(1) for part in parts], 1)


@operator("FeatureVectorizer", domain=ML)
def feature_vectorizer(call: Call, *parts: Value) -> Output:
    sizes = [(call.shape(part) or ())[1:] for part in parts]
    if call.integers("inputdimensions") != [size[0] if len(size) == 1 else None for size in sizes]:
        raise Unlowerable("FeatureVectorizer that cuts its inputs")
    return call.function(columns, *parts)


def pick(x: Tensor, indices: Tensor) -> Tensor:
    """Columns of the last axis."""
    return x.reshape(-1, x.shape[-1])[:, indices.reshape(-1)]


@operator("ArrayFeatureExtractor", domain=ML)
def array_feature_extractor(call: Call, x: Value, indices: Value) -> Output:
    return call.function(pick, x, indices)


@operator("ZipMap", domain=ML)
def zip_map(call: Call, x: Value) -> Output:
    """Scores stay a row each."""
    return x


@operator("LabelEncoder", domain=ML)
def label_encoder(call: Call, x: Value) -> Output:
    """Winners whose names are looked up stay positions."""
    keys = call.integers("keys_int64s")
    if keys is None or keys != list(range(len(call.attributes.get("values_strings", ())))):
        raise Unlowerable("LabelEncoder that is no list of names")
    return x


@operator("LinearClassifier", domain=ML)
def linear_classifier(call: Call, x: Value) -> Output:
    """The winner's position, and the scores."""
    weights, bias = _row(call, "coefficients"), _row(call, "intercepts")
    names: Any = call.attributes.get("classlabels_strings") or call.integers("classlabels_ints")
    transform = call.text("post_transform", "NONE")
    modules = {"NONE": None, "SOFTMAX": nn.Softmax(-1), "LOGISTIC": nn.Sigmoid()}
    if not names or len(names) < 2 or len(bias) != len(names) or transform not in modules:
        raise Unlowerable(
            f"LinearClassifier of {len(bias)} scores and {len(names or ())} classes with the "
            f"transform {transform}"
        )
    matrix = weights.reshape(len(names), -1)
    scores = call.module(_linear(matrix, bias), _single(call, x), kind="linear")
    label: Maybe = call.function(torch.argmax, scores, -1, kind="argmax")
    activation = modules[transform]
    if activation is None:
        return [label, scores]
    kind = "softmax" if transform == "SOFTMAX" else "sigmoid"
    return [label, call.module(activation, scores, kind=kind)]
