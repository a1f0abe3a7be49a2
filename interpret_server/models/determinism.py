"""What tells that a network may answer the same input differently."""

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, fx

from .verification import difference

_DRAWS = frozenset(
    {
        "bernoulli", "cauchy", "exponential", "geometric", "log_normal", "multinomial", "normal",
        "poisson", "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "random",
        "randperm", "uniform",
        "randomnormal", "randomnormallike", "randomuniform", "randomuniformlike",
    }
)  # fmt: skip
_REPEATS = 4


def draws(names: Iterable[str]) -> str:
    """Why a network of these operators is random; empty where it is not."""
    found = sorted({name for name in names if name.lower().rstrip("_") in _DRAWS})
    if not found:
        return ""
    return (
        f"the network draws random numbers ({', '.join(found)}) and gives another answer each time "
        "for the same input"
    )


def draws_of(graph: fx.GraphModule) -> str:
    """As `draws`, of the nodes of a graph."""
    return draws(str(node.meta.get("kind", "")) for node in graph.graph.nodes)


def repeats(run: Callable[[Tensor], Tensor], batches: Sequence[Tensor], times: int = 2) -> bool:
    """Whether a network gives the same values every time.

    Args:
        run: the network.
        batches: inputs to try.
        times: that each is run.
    """
    return all(
        difference(run(batch), first).absolute == 0
        for batch in batches
        for first in [run(batch)]
        for _ in range(times - 1)
    )


def repeats_surely(run: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> bool:
    """As `repeats`, by more trials."""
    return repeats(run, batches, _REPEATS)
