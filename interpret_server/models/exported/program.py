"""torch.export files: opened without running anything of them, described, and run as they are."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._export.serde import schema
from torch._export.serde.serialize import ExportedProgramDeserializer
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from ...errors import InvalidModel, ModelRejected
from ..inputs import FileInput
from .container import Records, weights
from .document import Document

_OLD = "serialized_exported_program.json"
_VERIFIERS = ("TRAINING", "ATEN", "")
_RESAVE = "export the model again with this server's PyTorch"


def open_program(path: Path) -> ExportedProgram:
    """The program of a torch.export file, on the CPU, with frozen parameters.

    Runs no code of the file: its JSON document is built anew from checked parts, its tensors are
    read as raw bytes or by the unpickler that makes tensors alone, and its example inputs, guards
    and stack traces are left out.

    Args:
        path: written by `torch.export.save`, in its present or its older layout.

    Raises:
        InvalidModel: the file is corrupt, or of a version of the format that PyTorch cannot read.
        ModelRejected: it holds no program, or one with functions, objects or sizes that are not
            known to be safe.
    """
    records = Records(path)
    try:
        document, state, constants = _parts(records)
    finally:
        records.close()
    try:
        with _quiet():
            program = ExportedProgramDeserializer({}).deserialize(document, state, constants)
    except Exception as error:  # whatever an inconsistent document leads to
        raise InvalidModel(
            f"the program in the file is inconsistent, so PyTorch cannot read it; {_RESAVE}"
        ) from error
    return program


def _parts(records: Records) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    names = records.names()
    if _OLD in names:
        document = _document(records, _OLD)
        kinds = ("serialized_state_dict", "serialized_constants")
        found = [
            next((f"{k}{s}" for s in (".pt", ".json") if f"{k}{s}" in names), "") for k in kinds
        ]
        if not all(found):
            raise InvalidModel("the torch.export archive lacks its tensors")
        state, constants = (weights(records, "", "", legacy=name) for name in found)
        return document, state, constants
    models = [name for name in names if name.startswith("models/") and name.endswith(".json")]
    if not models:
        if any(name.startswith("data/aotinductor/") for name in names):
            raise ModelRejected(
                "the file is an AOTInductor package, which holds compiled code and no program; "
                "save the exported program with torch.export.save instead"
            )
        raise InvalidModel("the torch.export archive holds no program")
    model = models[0].removeprefix("models/").removesuffix(".json")
    if len(models) > 1:
        if "models/model.json" not in models:
            raise ModelRejected(
                f"the torch.export archive holds {len(models)} programs; save one alone"
            )
        model = "model"
    document = _document(records, f"models/{model}.json")
    return document, weights(records, model, "weights"), weights(records, model, "constants")


def _document(records: Records, name: str) -> Any:
    data = records.json(name)
    if not isinstance(data, dict):
        raise InvalidModel("the program in the file is corrupt")
    _check_version(data)
    module = data.get("graph_module")
    fields = module.get("treespec_namedtuple_fields") if isinstance(module, dict) else None
    named_tuples = {
        key: item["field_names"]
        for key, item in (fields if isinstance(fields, dict) else {}).items()
        if isinstance(item, dict) and isinstance(item.get("field_names"), list)
    }
    document = Document(named_tuples).build(schema.ExportedProgram, data)
    if any(name not in _VERIFIERS for name in document.verifiers):
        raise ModelRejected(
            f"the program is of the dialect {document.verifiers[0]}, which is not served; save it "
            "before it is lowered for a backend"
        )
    entries = document.graph_module.module_call_graph
    if not entries or entries[0].fqn or entries[0].signature is None:
        raise InvalidModel("the program in the file does not tell its inputs")
    del entries[1:]
    return document


def _check_version(data: dict[str, Any]) -> None:
    version = data.get("schema_version")
    major = version.get("major") if isinstance(version, dict) else version
    ours = schema.SCHEMA_VERSION[0]
    if type(major) is not int:
        raise InvalidModel("the file does not tell the version of its format")
    if major != ours:
        age = "newer" if major > ours else "older"
        raise InvalidModel(
            f"the file was written by {age} PyTorch (format {major}, PyTorch {torch.__version__} "
            f"reads format {ours}); {_RESAVE}"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns and logs about every program that is read."""
    logger = logging.getLogger("torch._export.serde.serialize")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


def user_inputs(program: ExportedProgram) -> list[tuple[str, Tensor | None, Any]]:
    """The program's own inputs in order: name, and either a shape-carrying tensor or a constant."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found: list[tuple[str, Tensor | None, Any]] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            continue
        if isinstance(spec.arg, TensorArgument):
            found.append((spec.arg.name, nodes[spec.arg.name].meta["val"], None))
        elif isinstance(spec.arg, ConstantArgument):
            found.append((spec.arg.name, None, spec.arg.value))
        else:
            raise ModelRejected(f"the input {spec.arg.name!r} is a number, which is not served")
    return found


def inputs(program: ExportedProgram) -> tuple[FileInput, ...]:
    """The program's tensor inputs in order, nested ones taken apart; None for a free size.

    Raises:
        ModelRejected: an input is a number that may vary.
    """
    return tuple(
        FileInput(
            name,
            tuple(int(size) if isinstance(size, int) else None for size in value.shape),
            value.dtype,
        )
        for name, value, _ in user_inputs(program)
        if value is not None
    )


def output_names(program: ExportedProgram) -> tuple[str, ...]:
    """Names of the program's outputs in order: keys of its dictionary, else of its values."""
    flat = [
        getattr(spec.arg, "name", "") or f"output_{index}"
        for index, spec in enumerate(program.graph_signature.output_specs)
        if spec.kind is OutputKind.USER_OUTPUT
    ]
    spec = program.call_spec.out_spec
    if spec is None:
        return tuple(flat)
    paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(flat, spec))
    names = []
    for path, name in paths:
        keys = [str(key.key) for key in path if isinstance(key, pytree.MappingKey)]
        names.append(".".join(keys) if keys and len(keys) == len(path) else str(name))
    return tuple(names)


class ProgramBody(nn.Module):
    """A program run as it is, on its tensor inputs alone, in inference.

    Guards on sizes are no part of it, so that a batch of another size fails, if it does, in the
    operator that fixes it.

    Args:
        program: opened by `open_program`.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        signature = program.graph_signature
        self.graph = inference_form(program.graph_module)
        self._out_spec = program.call_spec.out_spec
        self._kept = [spec.kind is OutputKind.USER_OUTPUT for spec in signature.output_specs]
        self._given: list[str | None] = []  # by input of the graph: a weight, a constant, or None
        self._constants: dict[str, Any] = {}
        users = iter(user_inputs(program))
        for index, spec in enumerate(signature.input_specs):
            name: str | None = f"weight_{index}"
            if spec.kind is not InputKind.USER_INPUT:
                path = spec.target or ""
                weight = program.state_dict.get(path, program.constants.get(path))
                self.register_buffer(str(name), None if weight is None else weight.detach())
            else:
                _, value, constant = next(users)
                name = f"constant_{index}" if value is None else None
                self._constants[f"constant_{index}"] = constant
            self._given.append(name)

    def forward(self, *inputs: Tensor) -> Any:
        """The program's outputs, in its own nesting."""
        if len(inputs) != self._given.count(None):
            raise TypeError(f"the program takes {self._given.count(None)} inputs")
        tensors = iter(inputs)
        outputs = self.graph(*(self._value(name, tensors) for name in self._given))
        kept = [value for value, kept in zip(outputs, self._kept, strict=True) if kept]
        return kept if self._out_spec is None else pytree.tree_unflatten(kept, self._out_spec)

    def _value(self, name: str | None, tensors: Iterator[Tensor]) -> Any:
        if name is None:
            return next(tensors)
        return self._constants[name] if name in self._constants else getattr(self, name)


def original(program: ExportedProgram) -> nn.Module:
    """The program as it runs by itself, in inference: from its tensor inputs to its outputs.

    Raises:
        ModelRejected: an input is a number that may vary.
    """
    return ProgramBody(program)


_TRAINING: dict[str, Any] = {"training": False, "train": False, "dropout_p": 0.0}


def inference_form(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph, with batch norm and dropout in inference and no counters of batches."""
    copied = fx.GraphModule(module, copy.deepcopy(module.graph))
    for node in list(copied.graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target is torch.ops.aten.add_.Tensor and not node.users:
            (counter, *_) = node.args
            if isinstance(counter, fx.Node) and counter.op == "placeholder":
                copied.graph.erase_node(node)  # `num_batches_tracked`
                continue
        for position, argument in enumerate(node.target._schema.arguments):
            if argument.name not in _TRAINING:
                continue
            if position < len(node.args):
                node.update_arg(position, _TRAINING[argument.name])
            elif argument.name in node.kwargs:
                node.update_kwarg(argument.name, _TRAINING[argument.name])
    copied.recompile()
    return copied
