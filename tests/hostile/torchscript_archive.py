"""TorchScript archives with code that no exporter writes."""

import io
import warnings
import zipfile
from functools import cache
from pathlib import Path
from textwrap import indent

import torch
from torch import Tensor, nn

_HEAD = """\
class {name}(Module):
  __parameters__ = ["w", ]
  __buffers__ = []
  w : Tensor
  training : bool
  n : int
  def forward(self: __torch__.{name}, x: Tensor) -> Tensor:
{forward}
"""
_STATE = """\
  def __getstate__(self: __torch__.{name}) -> Tuple[Tensor, bool]:
    return (self.w, self.training)
  def __setstate__(self: __torch__.{name}, state: Tuple[Tensor, bool]) -> NoneType:
    self.w = (state)[0]
    self.training = (state)[1]
    self.n = 0
    x = self.w
{load}
    return None
"""
HONEST = "return torch.linear(x, self.w)"


class Plain(nn.Module):
    """The honest network."""

    __module__ = "__main__"  # which makes it `__torch__.Plain` in the archive
    n: int

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.eye(4)[:3])
        self.n = 0

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.w)


class Loaded(Plain):
    """The honest network, which restores itself."""

    __module__ = "__main__"

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return (self.w, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.w = state[0]
        self.training = state[1]
        self.n = 0


@cache
def _saved(kind: type[Plain]) -> tuple[tuple[str, bytes], ...]:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(kind().eval()), buffer)
    with zipfile.ZipFile(buffer) as file:
        names = [name for name in file.namelist() if not name.endswith(".debug_pkl")]
        return tuple((name, file.read(name)) for name in names)


def honest_records(*, restores: bool = False) -> dict[str, bytes]:
    """The records of the honest archive, by name; `restores` itself with `__setstate__`."""
    return dict(_saved(Loaded if restores else Plain))


def source(forward: str = HONEST, load: str | None = None) -> bytes:
    """The code of an archive.

    Args:
        forward: the body of `forward`, from `x` to the logits.
        load: statements that run while the archive is loaded.
    """
    name = "Plain" if load is None else "Loaded"
    text = _HEAD.format(name=name, forward=indent(forward, "    "))
    if load is not None:
        text += _STATE.format(name=name, load=indent(load, "    "))
    return text.encode()


def write_records(path: Path, contents: dict[str, bytes], compression: int = 0) -> None:
    """Write an archive of the records."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in contents.items():
            file.writestr(name, content)


def write_source(path: Path, text: bytes) -> None:
    """Write the honest archive with other code."""
    contents = honest_records(restores=b"__setstate__" in text)
    name = next(name for name in contents if name.endswith("code/__torch__.py"))
    write_records(path, contents | {name: text})
