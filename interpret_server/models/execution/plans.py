"""Which form of a network runs, and when a faster one is made anew."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as hooks

from ..batching import InGroups, RowsAtOnce
from ..manifest import Precision
from .attention import fuse_attention
from .draft import Draft, Observed, graph_of, observe, writes
from .folding import fold, is_norm
from .layout import channels_last, is_depthwise
from .narrow import narrow_convolutions
from .pieces import cut_at_once
from .recurrence import simplify_recurrence
from .replay import Recorder, Replays
from .steady import is_float32_on_cpu, steady_convolutions
from .tidying import (
    call_directly,
    drop_identities,
    pool_by_halves,
    pool_vectorised,
    rectify_after_pooling,
    work_in_place,
)

_log = logging.getLogger(__name__)
_VERSION = attrgetter("_version")  # counts the writes to a tensor
_TENSOR_CORES = "cuda"
_MOST_PLANS = 32  # sub-graphs kept per model
_GLOBAL_HOOKS: tuple[Mapping[Any, Any], ...] = (
    hooks._global_forward_hooks,
    hooks._global_forward_pre_hooks,
    hooks._global_backward_hooks,
    hooks._global_backward_pre_hooks,
)


class Execution(StrEnum):
    """How much a faster form may differ from the canonical graph.

    EXACT: in no bit. AUTO: batch norm and constant scales are folded into the layer before them;
    on the CPU, attention that is written out runs by the fused kernel, networks with several
    two-dimensional convolutions, or one that is depthwise or has batch norm, run channels-last, and
    few rows are convolved as many are. All of these round differently; a network that has none of
    them keeps its bits. FAST: as AUTO, but a single two-dimensional convolution runs channels-last
    too, and small convolutions of few rows are left to torch. RECORDED: as AUTO, and passes on
    few rows are recorded on a GPU, and repeated.
    """

    EXACT = "exact"
    AUTO = "auto"
    FAST = "fast"
    RECORDED = "recorded"


class Plans:
    """The forms of one network.

    Plans share the network's weights but for those that are folded or laid out anew, of which they
    hold one copy together; they are made anew when such a weight is replaced or written to. While
    anything of the network is hooked, the canonical graph runs. Safe to use from several threads.

    Args:
        module: the classifier's whole module, whose hooks count.
        body: the part of it that plans are made of.
        execution: how much a plan may differ.
        plain: gradients are never taken under a rule for rectifiers.
        recorder: of passes; None to record none.

    Attributes:
        channels_last: two-dimensional convolutions run in that layout.
    """

    def __init__(
        self,
        module: nn.Module,
        body: nn.Module,
        execution: Execution,
        *,
        plain: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        self.body, self.execution, self._plain = body, execution, plain
        self._graph = graph_of(body)
        self._lock = threading.RLock()
        self._hooks = (*_GLOBAL_HOOKS, *chain.from_iterable(map(_hooks, module.modules())))
        self._observed: dict[str, Observed] | None = None
        reduced = getattr(module, "precision", Precision.FLOAT32) is not Precision.FLOAT32
        device = next((p.device.type for p in body.parameters()), "cpu")
        self._tensor_cores = reduced and device == _TENSOR_CORES  # which read channels last
        self.channels_last = execution is not Execution.EXACT and self._suits_channels_last()
        self._output: nn.Module | None = None
        self._layers: OrderedDict[tuple[bool, tuple[str, ...]], nn.Module] = OrderedDict()
        self._derived: dict[tuple[str, ...], nn.Module] = {}
        self._watch = _Watch(())
        together = self._graph is None or isinstance(body, InGroups | RowsAtOnce)
        self._replays = None if recorder is None or together else Replays(recorder)
        self._weights = _Watch(() if self._replays is None else tuple(module.modules()))

    @property
    def replays(self) -> Replays | None:
        """Recorded passes with the weights as they are; None where none are to be recorded."""
        if self._replays is None or self.hooked:
            return None
        with self._lock:
            if self._weights.changed():
                self._weights = _Watch(self._weights.copied)
                self._replays.forget()
        return self._replays

    @property
    def hooked(self) -> bool:
        """Whether anybody watches or changes what one of the modules computes."""
        return any(self._hooks)

    def output(self, example: Callable[[], Tensor]) -> nn.Module:
        """From inputs to what the body gives; not to be used while `hooked`.

        Args:
            example: gives two rows that the body takes.
        """
        form = self._output
        if form is None or self._watch.changed():
            with self._lock:
                self._refresh()
                form = self._output = self._output or self._make(None, example)
        return form

    def layers(self, nodes: tuple[str, ...], example: Callable[[], Tensor]) -> nn.Module:
        """From inputs to the values of some nodes, as a tuple, by no more than they need.

        Args:
            nodes: by name.
            example: as in `output`.
        """
        key = (self.hooked, nodes)
        with self._lock:
            self._refresh()
            if key not in self._layers:
                self._layers[key] = self._make(nodes, example)
                if len(self._layers) > _MOST_PLANS:
                    self._layers.popitem(last=False)
            self._layers.move_to_end(key)
            return self._layers[key]

    @property
    def graph(self) -> fx.GraphModule | None:
        """The canonical graph, if the body has one."""
        return self._graph

    @property
    def last(self) -> str:
        """The node of the canonical graph that gives the body's output."""
        assert self._graph is not None
        return str(self._graph.graph.output_node().args[0])

    def observed(self, example: Callable[[], Tensor]) -> Mapping[str, Observed]:
        """What the canonical graph's nodes gave at an example; empty where it does not take it."""
        with self._lock:
            return self._observations(example)

    def folded(self, node: str, example: Callable[[], Tensor]) -> Draft:
        """A copy of the canonical graph up to a node, with batch norm and constants folded.

        Nothing is folded in a graph that works in place.

        Args:
            node: by name.
            example: as in `output`.
        """
        assert self._graph is not None
        with self._lock:
            self._refresh()
            draft = Draft.of(self._graph, self._observations(example), (node,), self._derived)
            last = torch.channels_last if self.channels_last else torch.contiguous_format
            if not any(map(writes, self._graph.graph.nodes)):
                fold(draft, last)
            self._watch = _Watch((*self._watch.copied, *draft.copied))
            return draft

    def __len__(self) -> int:
        """How many plans of layers are kept."""
        return len(self._layers)

    def _make(self, nodes: Sequence[str] | None, example: Callable[[], Tensor]) -> nn.Module:
        if self._graph is None:
            return self.body
        rewritten = not self.hooked and not any(map(writes, self._graph.graph.nodes))
        observed = self._observations(example) if rewritten else {}
        draft = Draft.of(self._graph, observed, nodes, self._derived)
        if rewritten:
            self._rewrite(draft)
        plan: nn.Module = draft.compile()
        return self.body.around(plan) if isinstance(self.body, InGroups) else plan

    def _rewrite(self, draft: Draft) -> None:
        drop_identities(draft)
        simplify_recurrence(draft)
        cut_at_once(draft)
        if self.execution is not Execution.EXACT and not isinstance(self.body, RowsAtOnce):
            fuse_attention(draft)
        if self.execution is not Execution.EXACT:
            last = torch.channels_last if self.channels_last else torch.contiguous_format
            fold(draft, last)
        if not isinstance(self.body, RowsAtOnce):  # torch.vmap has no rule for these
            if self._plain:
                rectify_after_pooling(draft)
            work_in_place(draft)
            if self.channels_last and draft.observed:
                channels_last(draft)
                if not self._tensor_cores:
                    narrow_convolutions(draft)
                    pool_by_halves(draft)
            else:
                pool_vectorised(draft)
            if self.execution is not Execution.EXACT:
                hasty = self._plain or self.execution is Execution.FAST
                steady_convolutions(draft, large=hasty)
        call_directly(draft)
        self._watch = _Watch((*self._watch.copied, *draft.copied))

    def _observations(self, example: Callable[[], Tensor]) -> dict[str, Observed]:
        """Of the nodes at an example; empty where the network does not take it."""
        if self._observed is None:
            assert self._graph is not None
            rows = example()
            if isinstance(self.body, InGroups):
                rows = rows[torch.arange(self.body.size, device=rows.device) % len(rows)]
            devices = (rows.device,) if rows.is_cuda else ()
            try:
                with torch.random.fork_rng(devices):  # a network may draw random numbers
                    self._observed = observe(self._graph, rows)
            except Exception:  # a foreign program may raise anything
                _log.info("a network does not take its neutral input, so nothing is folded")
                self._observed = {}
        return self._observed

    def _suits_channels_last(self) -> bool:
        if self._graph is None:
            return False
        modules = dict(self._graph.named_modules())
        called = [
            modules[str(node.target)]
            for node in self._graph.graph.nodes
            if node.op == "call_module"
        ]
        convolutions = [m for m in called if type(m) in (nn.Conv2d, nn.ConvTranspose2d)]
        return (
            bool(convolutions)
            and not isinstance(self.body, RowsAtOnce)
            and (self._tensor_cores or all(map(is_float32_on_cpu, convolutions)))
            and (
                self.execution is Execution.FAST
                or len(convolutions) > 1
                or any(map(is_norm, called))
                or any(map(is_depthwise, convolutions))
            )
        )

    def _refresh(self) -> None:
        if self._watch.changed():
            self._watch = _Watch(())
            self._derived = {}
            self._layers.clear()
            self._output = None


def _hooks(module: nn.Module) -> tuple[Mapping[Any, Any], ...]:
    return (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )


class _Watch:
    """Tells whether weights have been written to or replaced since. Never changes itself.

    Args:
        copied: modules, all of whose weights count, and constants.
    """

    def __init__(self, copied: Sequence[nn.Module | Tensor]) -> None:
        self.copied = tuple(dict.fromkeys(copied))
        entries = [
            (store, name, tensor)
            for store in chain.from_iterable(map(_stores, self.copied))
            for name, tensor in store.items()
            if tensor is not None and tensor.is_floating_point()
        ]
        self._stores, self._names, self._tensors = tuple(zip(*entries, strict=True)) or ((), (), ())
        self._writes = sum(map(_VERSION, self._tensors))

    def changed(self) -> bool:
        kept = map(dict.get, self._stores, self._names)
        return sum(map(_VERSION, self._tensors)) != self._writes or not all(
            map(is_, kept, self._tensors)
        )


def _stores(item: nn.Module | Tensor) -> Sequence[dict[str, Any]]:
    return ({"": item},) if isinstance(item, Tensor) else (item._parameters, item._buffers)
