"""TorchScript files: opened with clear errors, and run as they are where they have no graph."""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InvalidModel, ModelRejected
from .repairs import is_quantised, repair

_TRAINING = "_interpret_training"  # the attribute of an opened archive that `repair` fills
_MOST_MODULES = 100_000
_MOST_UNPACKED = 100  # times the size of the file

_UNKNOWN_OPERATOR = re.compile(r"Unknown builtin op: ([\w:]+)")
_UNKNOWN_CLASS = re.compile(r"Unknown type name '([\w.]+)'|class ([\w.]+) does not exist")
_PACKED = re.compile(r"\b(prepacked|xnnpack)\b")
_FOR_PHONES = (
    " (torch.utils.mobile_optimizer.optimize_for_mobile wrote it; save the network as it was "
    "before that)"
)
_WITHOUT_WEIGHTS = "required keyword attribute 'value' is undefined"  # of ConstantMKLDNNTensor


def open_archive(path: Path) -> torch.jit.ScriptModule:
    """Load a TorchScript archive on the CPU, in evaluation mode, with frozen parameters.

    Devices and training flags that the export fixed in the code are replaced: the archive runs on
    the device of its inputs, in inference form.

    Raises:
        InvalidModel: the file is corrupt, truncated or of another format.
        ModelRejected: it calls operators that this installation of PyTorch does not have.
    """
    _check_format(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            archive: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location="cpu"
            )
    except RecursionError as error:
        raise ModelRejected("The TorchScript file's modules are nested too deeply.") from error
    except Exception as error:  # torch.jit.load raises whatever the archive's code makes it raise
        unknown = _UNKNOWN_OPERATOR.search(str(error)) or _UNKNOWN_CLASS.search(str(error))
        if unknown:
            name = next(group for group in unknown.groups() if group)
            raise ModelRejected(
                f"The TorchScript file needs {name}, which is not part of PyTorch "
                f"{torch.__version__}{_FOR_PHONES if _PACKED.search(name) else ''}."
            ) from error
        if _WITHOUT_WEIGHTS in str(error):
            raise InvalidModel(
                "The TorchScript file lacks its weights, as torch.jit.save leaves them out after "
                "torch.jit.optimize_for_inference; save the network as it was before that."
            ) from error
        raise InvalidModel(
            "The TorchScript file is corrupt or truncated; save it again with torch.jit.save."
        ) from error
    if len(list(archive.modules())) > _MOST_MODULES:
        raise ModelRejected(f"The TorchScript file has more than {_MOST_MODULES} modules.")
    try:
        object.__setattr__(archive, _TRAINING, repair(archive))
    except (RuntimeError, ValueError, LookupError) as error:
        raise ModelRejected(
            "The TorchScript file's code is nested too deeply or uses constructs that this "
            f"installation of PyTorch {torch.__version__} does not know."
        ) from error
    archive.eval()
    for tensor in (*archive.parameters(), *archive.buffers()):
        tensor.requires_grad_(False)
    return archive


def training_modules(archive: torch.jit.ScriptModule) -> tuple[str, ...]:
    """What was in training mode in the file: modules by path, `path: operator` in traced code.

    `open_archive` has put all of it in evaluation mode.

    Args:
        archive: from `open_archive`.
    """
    found: tuple[str, ...] = getattr(archive, _TRAINING, ())
    return found


def _check_format(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as file:
            names = {name.partition("/")[2] for name in file.namelist()}
            unpacked = sum(entry.file_size for entry in file.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InvalidModel(
            "The file is not a TorchScript archive, or is truncated; save it with torch.jit.save."
        ) from error
    if unpacked > _MOST_UNPACKED * path.stat().st_size:
        raise InvalidModel(
            f"The TorchScript file unpacks to {unpacked >> 20} MiB, more than {_MOST_UNPACKED} "
            "times its size; save it again with torch.jit.save, which packs nothing."
        )
    if "constants.pkl" in names or "model.json" in names:
        return
    if any("serialized_exported_program" in name or name.startswith("models/") for name in names):
        found = "an exported program (.pt2)"
    elif "data.pkl" in names:
        found = "a checkpoint of torch.save, which holds no executable network"
    else:
        found = "a zip file of another kind"
    raise InvalidModel(f"The file is not a TorchScript archive but {found}; use torch.jit.save.")


class ArchiveBody(nn.Module):
    """An archive run as it is, for what cannot become a graph.

    Quantised arithmetic has no derivative, so such an archive's outputs require no gradient, even
    where some path from the input avoids it.

    Its profiling executor rewrites backward passes after the first calls, which loses gradients'
    exactness and every backward rule; it is off here. The archive is given copies of its inputs,
    which it may write to.

    Args:
        archive: from `open_archive`.
    """

    def __init__(self, archive: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.archive = archive
        self.differentiable = not is_quantised(archive)

    def forward(self, *inputs: Tensor) -> Any:
        enabled = torch.is_grad_enabled() and self.differentiable
        with torch.jit.optimized_execution(False), torch.set_grad_enabled(enabled):  # type: ignore[attr-defined]
            try:
                return self.archive(*(value.clone() for value in inputs))
            except torch.jit.Error as error:  # of Python's own raise statements in the program
                raise RuntimeError(str(error)) from error
