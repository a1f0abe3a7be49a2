"""The official test cases of the installed onnx package, and which of them a classifier needs."""

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

SUITES = ("node", "pytorch-converted", "pytorch-operator", "light")
_DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
_RTOL, _ATOL = 1e-3, 1e-7  # where a case does not state its own

# Why a case is left out: the first reason that holds, of its operators or of its element types.
_OPERATORS: Mapping[str, str] = {
    **dict.fromkeys(("Bernoulli", "RandomUniformLike"), "draws random numbers"),
    **dict.fromkeys(
        (
            "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt",
            "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceLength",
            "SequenceMap", "SplitToSequence",
        ),
        "computes on sequences or optional values",
    ),
    **dict.fromkeys(
        ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
        "computes on text",
    ),
    "ImageDecoder": "decodes image files",
    **dict.fromkeys(
        ("NonMaxSuppression", "RoiAlign", "Unique", "MaxUnpool"), "belongs to detectors or decoders"
    ),
    "DeformConv": "belongs to detectors or decoders",
    **dict.fromkeys(
        ("CausalConvWithState", "LinearAttention", "TensorScatter"), "is a step of text generation"
    ),
    "BitCast": "reads the bits of numbers as others",
}  # fmt: skip
_TYPES: Mapping[int, str] = {
    **{
        code: "stores numbers of 8 bits or fewer in a form that torch lacks"
        for name, code in TensorProto.DataType.items()
        if name.startswith("FLOAT8") or name in ("FLOAT4E2M1", "INT4", "UINT4", "INT2", "UINT2")
    },
    TensorProto.STRING: "computes on text",
}
_WIDE_UNSIGNED = (TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64)
_TRAINING = "runs in training mode"


@dataclass(frozen=True)
class Case:
    """One official case.

    Args:
        suite: one of `SUITES`.
        name: unique within its suite.
        operator: that it is about; `several` in the suites of whole networks.
        model: with its weights.
        data: pairs of inputs and expected outputs, in the graph's order.
        rtol: relative tolerance of the comparison.
        atol: absolute tolerance.
    """

    suite: str
    name: str
    operator: str
    model: ModelProto
    data: list[tuple[list[Any], list[Any]]]
    rtol: float = _RTOL
    atol: float = _ATOL

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        versions = {item.domain or "ai.onnx": item.version for item in self.model.opset_import}
        return versions.get("ai.onnx", 1)

    @property
    def names(self) -> list[str]:
        """Names of the inputs that have no stored value."""
        stored = {tensor.name for tensor in self.model.graph.initializer}
        return [item.name for item in self.model.graph.input if item.name not in stored]


def selected(suites: tuple[str, ...] = SUITES) -> tuple[list[Case], dict[str, list[str]]]:
    """The cases that a classifier's operators can touch, and the others' names by reason."""
    chosen: list[Case] = []
    left_out: dict[str, list[str]] = {}
    for suite in suites:
        for case in _nodes() if suite == "node" else _stored(suite):
            reason = _reason(case) if suite == "node" else None
            if reason is None:
                chosen.append(case)
            else:
                left_out.setdefault(reason, []).append(case.name)
    return chosen, left_out


def _nodes() -> Iterator[Case]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, about the values that the cases try
        cases = {item.name: item for item in load_model_tests(kind="node")}
    for name, item in cases.items():
        whole = cases.get(name.partition("_expanded")[0], item)
        data = [
            tuple([_array(value) for value in part] for part in pair) for pair in item.data_sets
        ]
        yield Case("node", name, _subject(whole.model), item.model, data, item.rtol, item.atol)


def _stored(suite: str) -> Iterator[Case]:
    if suite == "light":
        for path in sorted((_DATA / suite).glob("*.onnx")):
            model = onnx.load(path)
            yield Case(suite, path.stem, "several", model, [_light(path, model)])
        return
    for path in sorted((_DATA / suite).glob("*/model.onnx")):
        model, settings = onnx.load(path), path.with_name("data.json")
        tolerances = json.loads(settings.read_text()) if settings.exists() else {}
        data = [
            (_read(folder, "input"), _read(folder, "output"))
            for folder in sorted(path.parent.glob("test_data_set_*"))
        ]
        yield Case(
            suite,
            path.parent.name,
            _subject(model),
            model,
            data,
            tolerances.get("rtol", _RTOL),
            tolerances.get("atol", _ATOL),
        )


def _light(path: Path, model: ModelProto) -> tuple[list[Any], list[Any]]:
    """A ramp from 0 to 1, and what was recorded for it; the files fill their weights themselves."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = []
    for item in model.graph.input:
        if item.name not in stored:
            shape = [axis.dim_value for axis in item.type.tensor_type.shape.dim]
            count = int(np.prod(shape))
            inputs.append((np.arange(count).reshape(shape) / count).astype(np.float32))
    outputs = [
        _tensor(path.with_name(f"{path.stem}_output_{index}.pb"))
        for index in range(len(model.graph.output))
    ]
    return inputs, outputs


def _read(folder: Path, kind: str) -> list[Any]:
    count = len(list(folder.glob(f"{kind}_*.pb")))
    return [_tensor(folder / f"{kind}_{index}.pb") for index in range(count)]


def _tensor(path: Path) -> Any:
    proto = TensorProto()
    proto.ParseFromString(path.read_bytes())
    return numpy_helper.to_array(proto)


def _array(value: Any) -> Any:
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.ndarray | np.generic) else value


def _operators(model: ModelProto) -> list[str]:
    found: dict[str, None] = {}
    pending = [model.graph]
    while pending:
        for node in pending.pop().node:
            found[node.op_type] = None
            pending += [item.g for item in node.attribute if item.HasField("g")]
    return list(found)


def _subject(model: ModelProto) -> str:
    top = {node.op_type: None for node in model.graph.node}
    told = [name for name in top if name not in ("Constant", "Identity")] or list(top)
    return told[0] if len(told) == 1 else "several"


def _types(model: ModelProto) -> set[int]:
    """Element types that a graph takes, gives, stores or casts to; 0 for what is no tensor."""
    graph = model.graph
    values = (*graph.input, *graph.output)
    found = {item.type.tensor_type.elem_type for item in values}
    found |= {tensor.data_type for tensor in graph.initializer}
    casts = (n for n in graph.node if n.op_type in ("Cast", "CastLike", "QuantizeLinear"))
    return found | {item.i for node in casts for item in node.attribute if item.name == "to"}


def _reason(case: Case) -> str | None:
    model = case.model
    domains = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if domains:
        return f"is of the domain {min(domains)}"
    for name in _operators(model):
        if name in _OPERATORS:
            return _OPERATORS[name]
    types = _types(model)
    if 0 in types:
        return "computes on sequences or optional values"
    for code in types:
        if code in _TYPES:
            return _TYPES[code]
    if case.name.startswith("test_dft_inverse"):
        return "expects zeros to be rounded as numpy rounds them"
    if any(_is_training(node) for node in model.graph.node) or "training_dropout" in case.name:
        return _TRAINING
    if types & set(_WIDE_UNSIGNED) and case.operator not in ("Cast", "CastLike", "Clip"):
        return "computes on unsigned integers of 16 bits or more"
    return None


def _is_training(node: onnx.NodeProto) -> bool:
    return node.op_type == "BatchNormalization" and any(
        item.name == "training_mode" and item.i for item in node.attribute
    )
