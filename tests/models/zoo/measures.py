"""What is measured of a network, and the eager module's word on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .architectures import ZOO, Inputs, eager

ROWS = 5
LOGITS, GRADIENT, LAYER, SLOPE, GUIDED = (
    "logits",
    "input gradient",
    "layer",
    "layer gradient",
    "guided backprop",
)
QUANTITIES = (LOGITS, GRADIENT, LAYER, SLOPE, GUIDED)
Values = dict[str, Tensor]

_RECTIFIERS = frozenset(
    {
        F.relu,
        F.relu6,
        F.hardtanh,
        F.leaky_relu,
        F.prelu,
        torch.relu,
        torch.prelu,
        Tensor.relu,
        Tensor.relu_,
    }
)


class _Positive(torch.autograd.Function):
    """The identity, through which only positive gradients pass back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clamp(min=0)


class Synchronisations(TorchDispatchMode):
    """Counts what would make a host wait for its device: values read into Python, sizes by data."""

    WAITING = frozenset(
        {
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.nonzero,
            torch.ops.aten.masked_select,
            torch.ops.aten._unique2,
            torch.ops.aten.equal,
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.overloadpacket in self.WAITING:
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


class Guided(TorchFunctionMode):
    """Guided backpropagation (Springenberg et al. 2014) of eager code, however it calls ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.hits = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        values = func(*args, **(kwargs or {}))
        if func not in _RECTIFIERS:
            return values
        self.hits += 1
        return _Positive.apply(values)


@contextmanager
def replaced(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Makes the first output of any of `modules` a leaf, which the list then holds."""
    leaves: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        if leaves:
            return output
        leaves.append(output.detach().clone().requires_grad_())
        return leaves[0]

    hooks = [module.register_forward_hook(cut) for module in modules]
    try:
        yield leaves
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def tapped(module: nn.Module, path: str) -> Iterator[list[Tensor]]:
    """The outputs of a submodule's calls."""
    values: list[Tensor] = []
    hook = module.get_submodule(path).register_forward_hook(lambda _m, _x, y: values.append(y))
    try:
        yield values
    finally:
        hook.remove()


def classes(rows: int, count: int) -> Tensor:
    """A class for each row, none of them the constant one of a single-score head."""
    return 1 + torch.arange(rows) % (count - 1)


def direction(values: Tensor) -> Tensor:
    """A seeded direction over a row of a layer's values, in float64 until cast."""
    generator = torch.Generator().manual_seed(5)
    drawn = torch.randn(values.shape[1:], generator=generator, dtype=torch.float64)
    return drawn.to(values.dtype)


def pulled(values: Tensor) -> Tensor:
    """The sum over rows of a layer's values along `direction`."""
    return (values * direction(values)).sum()


def chosen(logits: Tensor) -> Tensor:
    """The sum over rows of the logits of `classes`."""
    return logits.gather(1, classes(*logits.shape)[:, None]).sum()


@dataclass(frozen=True)
class _Pass:
    leaf: Tensor
    logits: Tensor
    layer: Tensor


def _forward(name: str, module: nn.Module, inputs: Inputs) -> _Pass:
    architecture = ZOO[name]
    path, _, call = architecture.middle.partition(":")
    with tapped(module, path) as taps:
        if architecture.embedding is None:
            leaf = inputs[0].detach().clone().requires_grad_()
            logits = architecture.logits(module, (leaf, *inputs[1:]))
        else:
            with replaced([module.get_submodule(architecture.embedding)]) as leaves:
                logits = architecture.logits(module, inputs)
            (leaf,) = leaves
    return _Pass(leaf, logits, taps[int(call or 0)])


def _slope(objective: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(objective, leaf, retain_graph=True)[0].detach()


def measure_eager(name: str, module: nn.Module, inputs: Inputs) -> Values:
    """The quantities of an eager module; guided backprop only where it has rectifiers."""
    done = _forward(name, module, inputs)
    values = {
        LOGITS: done.logits.detach(),
        GRADIENT: _slope(chosen(done.logits), done.leaf),
        LAYER: done.layer.detach(),
        SLOPE: _slope(pulled(done.layer), done.leaf),
    }
    with Guided() as guided:
        done = _forward(name, module, inputs)
    if guided.hits:
        values[GUIDED] = _slope(chosen(done.logits), done.leaf)
    return values


@cache
def expected(name: str, dtype: torch.dtype, rows: int = ROWS, *, elsewhere: bool = False) -> Values:
    """The eager module's quantities on the first rows of the architecture's inputs."""
    inputs = tuple(x[:rows] for x in ZOO[name].rows(ROWS, dtype, elsewhere=elsewhere))
    return measure_eager(name, eager(name, dtype), inputs)


def relative(found: Tensor, reference: Tensor) -> float:
    """The largest difference over the largest value; infinite where the shapes differ."""
    if found.shape != reference.shape:
        return float("inf")
    found, reference = found.detach().double(), reference.detach().double()
    gap = (found - reference).abs().nan_to_num(nan=float("inf"))
    return float(gap.max() / reference.abs().max().clamp(min=1e-300))


@cache
def noise(name: str, quantity: str) -> float:
    """The eager module's own: its float32 against its float64."""
    single, double = (expected(name, dtype) for dtype in (torch.float32, torch.float64))
    return relative(single[quantity], double[quantity])


def allowed(name: str, quantity: str, dtype: torch.dtype) -> float:
    """The largest relative difference that passes."""
    return 1e-10 if dtype is torch.float64 else max(1e-5, 4 * noise(name, quantity))
