"""Workers for calls that name several models, so that none of them enters another's own worker."""

from collections.abc import Callable, Iterable

from ...errors import Overloaded
from .keeper import Keeper

MOST = 16  # sets that are kept at once


class Sets:
    """A keeper for every set of models that calls name together.

    A set is of models as they were loaded: a replaced model is another one. What has not been used
    for longest makes room for a new set.

    Args:
        make: a keeper for some models, which loads them when it is first asked for a worker.
        end: ends a keeper once nobody uses it any more.
    """

    def __init__(
        self, make: Callable[[tuple[Keeper, ...]], Keeper], end: Callable[[Keeper], object]
    ) -> None:
        self._make, self._end = make, end
        self._keepers: dict[frozenset[Keeper], Keeper] = {}

    def all(self) -> tuple[Keeper, ...]:
        """The keepers of all sets."""
        return tuple(self._keepers.values())

    def of(self, models: Iterable[Keeper]) -> Keeper:
        """The keeper of some models; of a single one its own.

        Raises:
            Overloaded: too many sets are in use.
        """
        key = frozenset(models)
        if len(key) == 1:
            return next(iter(key))
        if key not in self._keepers:
            self._make_room()
            self._keepers[key] = self._make(tuple(sorted(key, key=lambda keeper: keeper.name)))
        return self._keepers[key]

    def forget(self, model: Keeper) -> list[Keeper]:
        """Take the sets of a model out of service; returns their keepers."""
        return [self._keepers.pop(key) for key in tuple(self._keepers) if model in key]

    def _make_room(self) -> None:
        if len(self._keepers) < MOST:
            return
        idle = [key for key, keeper in self._keepers.items() if not keeper.users.count]
        if not idle:
            raise Overloaded(
                f"models: calls use {MOST} sets of several models already; try again later"
            )
        self._end(self._keepers.pop(min(idle, key=lambda key: self._keepers[key].used)))
