"""torch.export files, opened without running anything of them."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._export.serde import schema
from torch._export.serde.serialize import ExportedProgramDeserializer
from torch.export import ExportedProgram

from ...errors import InvalidModel, ModelRejected
from .container import Records, weights
from .document import Document

_OLD = "serialized_exported_program.json"
_VERIFIERS = ("TRAINING", "ATEN", "")
_MOST_NODES = 50_000
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
    _check_length(data)
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


def _check_length(data: dict[str, Any]) -> None:
    """Refuse more nodes than can be read in reasonable time, branches' and loops' included."""
    count, pending = 0, [data]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            nodes = item.get("nodes")
            count += len(nodes) if isinstance(nodes, list) else 0
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    if count > _MOST_NODES:
        raise ModelRejected(
            f"the program in the file has {count} nodes; at most {_MOST_NODES} are accepted"
        )


def _check_version(data: dict[str, Any]) -> None:
    version = data.get("schema_version")
    major = version.get("major") if isinstance(version, dict) else version
    ours = schema.SCHEMA_VERSION[0]
    if type(major) is not int:
        raise InvalidModel("the file does not tell the version of its format")
    if major != ours:
        age = "a newer" if major > ours else "an older"
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
