"""Refuses programs whose values would not fit: an operator's result is sized before it is made."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import ModelRejected

LARGEST = 1 << 32  # bytes of one operator's results
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, AttributeError)


def check_result(target: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Size what an operator would give, by running it on tensors without memory.

    Operators that cannot be sized so give no more elements than they take.

    Args:
        target: an operator.
        args: its arguments, tensors among them.
        kwargs: by name.

    Raises:
        ModelRejected: the result is larger than 4 GiB.
    """
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return
    args, given = fx.node.map_aggregate((args, dict(kwargs)), _without_memory)
    kwargs = dict(given)
    if any(argument.name == "device" for argument in target._schema.arguments):
        kwargs["device"] = torch.device("meta")
    try:
        results = target(*args, **kwargs)
    except _FAILURES:
        return
    size = sum(leaf.numel() * leaf.element_size() for leaf in _tensors(results))
    if size > LARGEST:
        raise ModelRejected(
            f"the program computes a value of {size / (1 << 30):.3g} GiB for its example "
            f"({target}); at most {LARGEST >> 30} GiB are served"
        )


def _without_memory(item: Any) -> Any:
    if not isinstance(item, Tensor):
        return item
    return torch.empty_strided(item.shape, item.stride(), dtype=item.dtype, device="meta")


def _tensors(results: Any) -> Sequence[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    if isinstance(results, (list, tuple)):
        return [leaf for item in results for leaf in _tensors(item)]
    return []


def take_branch(
    condition: Any, true: nn.Module, false: nn.Module, operands: Sequence[Any] = ()
) -> Any:
    """What `torch.cond` gives, by running the branch itself."""
    return (true if condition else false)(*operands)


class _Checked(fx.Interpreter):
    def call_function(self, target: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        check_result(target, args, kwargs)
        if isinstance(target, torch._ops.HigherOrderOperator) and "wrap_with" in str(target):
            bodies = [i for i, item in enumerate(args) if isinstance(item, fx.GraphModule)]
            if bodies:
                return _Checked(args[bodies[0]]).run(*args[bodies[0] + 1 :])
        if target is take_branch:
            condition, true, false, operands = args
            return _Checked(true if condition else false).run(*operands)
        return super().call_function(target, args, kwargs)


def check_memory(graph: fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Run a graph once, sizing every result before it is made.

    Args:
        graph: of operators.
        inputs: of the graph, weights among them.

    Raises:
        ModelRejected: a value is larger than 4 GiB.
    """
    run: Callable[..., Any] = _Checked(graph).run
    with torch.no_grad():
        try:
            run(*inputs)
        except ModelRejected:
            raise
        except Exception:  # what does not run is told by whoever runs it
            return
