"""Passes of a network that are recorded once and then repeated without Python.

On a GPU a pass on few rows takes as long as its kernels take to launch one by one, a step of an
attack as much again for the way back. A recorded pass is launched as one. Recordings have fixed
sizes and lie in fixed memory, so rows are copied in and padded to the next recorded number, and
results are copied out.

What is recorded is examined first (nothing in it may depend on values, draw random numbers or come
from another device) and compared with the eager pass afterwards; what does not suit stays eager.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .examination import Unrecordable, examine

Tensors = tuple[Tensor, ...]
Work = Callable[[Tensor], Tensors]  # from rows `(N, ...)` to tensors of as many rows

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # rows of recordings; at most a third is padding
_MOST = 48  # recordings kept per network: each holds the activations of its pass
_MOST_KNOWN = 256  # kinds of passes that are remembered
_CHECKS = 2  # answers of a recording that are compared with the eager pass and not given
_TOLERANCE = 1e-3  # of the largest value; the kernels are the same, but for the order of sums
_log = logging.getLogger(__name__)


class Recorder(Protocol):
    """What a device records with.

    The recordings of one recorder may lie in the same memory. Each may be repeated where the one
    before it has just been.
    """

    def apart(self) -> "Recorder":
        """Another one of the same device."""

    def record(self, work: Callable[[], Tensors]) -> tuple[Tensors, Callable[[], None]]:
        """Run `work`, which reads and writes tensors on the device alone, and note what it does.

        Returns:
            Its results, and what does the same again to the same memory.
        """

    def has_room(self) -> bool:
        """Whether the device has memory to spare for another recording."""


class Replays:
    """The recorded passes of one network. Safe to use from several threads.

    Args:
        recorder: of the network's device.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._lock = threading.RLock()
        self._recorded: OrderedDict[Hashable, _Pass] = OrderedDict()
        self._seen: OrderedDict[Hashable, bool] = OrderedDict()  # kinds -> whether they suit

    def __len__(self) -> int:
        """How many recordings are kept."""
        return len(self._recorded)

    def forget(self) -> None:
        """Give up every recording, and its memory."""
        with self._lock:
            self._recorded.clear()
            self._seen.clear()

    def run(self, what: Hashable, work: Work, x: Tensor) -> Tensors:
        """What `work` gives for rows, differentiable by them.

        The second pass of a kind is recorded; before, and where it does not suit, `work` runs.

        Args:
            what: tells works apart; equal ones do the same to rows of one shape.
            work: treats every row by itself.
            x: `(N, ...)`.
        """
        rows = len(x) if x.dim() else 0
        if not 0 < rows <= SIZES[-1] or not _is_ordinary(x):
            return work(x)
        size = next(size for size in SIZES if size >= rows)
        differentiable = torch.is_grad_enabled() and x.requires_grad
        key = (what, differentiable, size, tuple(x.shape[1:]), x.dtype, x.device)
        with self._lock:
            found = self._find(key, work, x, size, differentiable=differentiable)
        if found is None:
            return work(x)
        if found.unchecked:
            return self._check(key, found, work, x)
        if differentiable:
            replayed: Tensors = _Replayed.apply(x, found, work)  # type: ignore[no-untyped-call]
            return replayed
        return found.forward(x)[0]

    def _find(
        self, key: Hashable, work: Work, x: Tensor, size: int, *, differentiable: bool
    ) -> "_Pass | None":
        if key in self._recorded:
            self._recorded.move_to_end(key)
            return self._recorded[key]
        if key not in self._seen:
            self._seen[key] = True
            if len(self._seen) > _MOST_KNOWN:
                self._seen.popitem(last=False)
            return None
        if not self._seen[key] or not self._recorder.has_room():
            return None
        while len(self._recorded) >= _MOST:
            self._recorded.popitem(last=False)
        try:
            recorder = self._recorder.apart()
            made = _Pass(recorder, work, x, size, differentiable=differentiable)
        except Exception as error:  # whatever the device's library refuses
            self._refuse(key, str(error) if isinstance(error, Unrecordable) else repr(error))
            return None
        self._recorded[key] = made
        return made

    def _check(self, key: Hashable, recorded: "_Pass", work: Work, x: Tensor) -> Tensors:
        expected = work(x)
        padded = _padded(x, recorded.size).requires_grad_(recorded.differentiable)
        if recorded.agrees(work, padded):
            recorded.unchecked -= 1
        else:
            with self._lock:
                self._recorded.pop(key, None)
                self._refuse(key, "its recording gives other values")
        return expected

    def _refuse(self, key: Hashable, why: str) -> None:
        self._seen[key] = False
        _log.warning("a network's pass is not recorded: %s", why)


class _Pass:
    """A recorded pass on `size` rows, and the one back."""

    def __init__(
        self, recorder: Recorder, work: Work, x: Tensor, size: int, *, differentiable: bool
    ) -> None:
        self.size, self.differentiable, self.unchecked = size, differentiable, _CHECKS
        self._lock = threading.RLock()
        self._turn = 0  # counts the passes forward
        leaf = _padded(x, size).requires_grad_(differentiable)
        with torch.set_grad_enabled(differentiable):
            examine(lambda: work(leaf))
            self._results, self._forward = recorder.record(lambda: work(leaf))
        self._leaf = leaf.detach()
        for result in self._results:
            if not result.dim() or len(result) != size or not result.is_floating_point():
                raise Unrecordable("it gives something else than numbers for every row")
        if not differentiable:
            return
        if not any(result.requires_grad for result in self._results):
            raise Unrecordable("it does not depend on its input")
        self._weights = tuple(torch.zeros_like(result) for result in self._results)

        def back() -> Tensors:
            return _back(self._results, leaf, self._weights, retain_graph=True)

        examine(back)
        (self._gradient,), self._backward = recorder.record(back)

    def forward(self, x: Tensor) -> tuple[Tensors, int]:
        """The results for rows, no more than `size`, and the pass's turn."""
        with self._lock, torch.no_grad():
            self._run_forward(x)
            return tuple(result[: len(x)].clone() for result in self._results), self._turn

    def backward(self, turn: int, x: Tensor, weights: Tensors) -> Tensor:
        """The gradient by `x` of the results' sum, weighted, after the pass forward of a turn."""
        with self._lock, torch.no_grad():
            if turn != self._turn:  # others have been here since
                self._run_forward(x)
            for ours, given in zip(self._weights, weights, strict=True):
                ours[: len(x)].copy_(given)
                ours[len(x) :].zero_()
            self._backward()
            return self._gradient[: len(x)].clone()

    def agrees(self, work: Work, x: Tensor) -> bool:
        """Whether the recording gives what the eager pass gives for `size` rows."""
        with self._lock, torch.set_grad_enabled(self.differentiable):
            expected = work(x)
            found, turn = self.forward(x.detach())
            if not all(map(_is_close, found, expected)):
                return False
            if not self.differentiable:
                return True
            weights = tuple(_slope(result) for result in expected)
            (gradient,) = _back(expected, x, weights)
            return _is_close(self.backward(turn, x.detach(), weights), gradient)

    def _run_forward(self, x: Tensor) -> None:
        self._leaf[: len(x)].copy_(x)
        self._leaf[len(x) :].copy_(x[-1:].expand_as(self._leaf[len(x) :]))
        self._forward()
        self._turn += 1


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, recorded: _Pass, work: Work) -> Tensors:
        ctx.recorded, ctx.work = recorded, work
        ctx.save_for_backward(x)
        found, ctx.turn = recorded.forward(x)
        return found

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        again = torch.is_grad_enabled()  # a derivative of the gradient is wanted
        if not again and not _get_current_dispatch_mode_stack():
            return ctx.recorded.backward(ctx.turn, x, weights), None, None
        with torch.enable_grad():  # so is a rectifier's rule
            leaf = x if again else x.detach().requires_grad_()
            (gradient,) = _back(ctx.work(leaf), leaf, weights, create_graph=again)
        return gradient, None, None


def _back(results: Tensors, leaf: Tensor, weights: Tensors, **settings: bool) -> Tensors:
    pairs = [pair for pair in zip(results, weights, strict=True) if pair[0].requires_grad]
    values, given = zip(*pairs, strict=True) if pairs else ((), ())
    if not pairs:
        return (torch.zeros_like(leaf),)
    return torch.autograd.grad(
        values, leaf, given, allow_unused=True, materialize_grads=True, **settings
    )


def _padded(x: Tensor, size: int) -> Tensor:
    x = x.detach()
    return torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])]).contiguous()


def _slope(result: Tensor) -> Tensor:
    """Weights that no symmetry of a network's results cancels."""
    values = torch.linspace(-1, 1, result.numel(), dtype=result.dtype, device=result.device)
    return values.reshape(result.shape)


def _is_close(found: Tensor, expected: Tensor) -> bool:
    found, expected = found.detach().double(), expected.detach().double()
    if found.shape != expected.shape:
        return False
    finite = expected.isfinite()
    if not torch.equal(found.isfinite(), finite):
        return False
    largest = expected.where(finite, 0).abs().amax().item() if expected.numel() else 0.0
    apart = (found - expected).where(finite, 0).abs()
    return not apart.numel() or apart.amax().item() <= _TOLERANCE * largest


def _is_ordinary(x: Tensor) -> bool:
    """Whether nothing looks at or changes the operations of a pass that begins now."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not _get_current_dispatch_mode_stack()
        and not torch.get_deterministic_debug_mode()
        and not torch.is_autocast_enabled(x.device.type)
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
    )
