"""Loads wait for each other, but not for ever."""

import asyncio
from contextlib import AsyncExitStack

from interpret_server.engine.workers.turns import Turns

WAIT = 20  # seconds that no test should take


class Load:
    """A load that lasts until it is told to end."""

    def __init__(self, turns: Turns) -> None:
        self.began, self._end = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._run(turns))

    async def _run(self, turns: Turns) -> None:
        async with turns.turn():
            self.began.set()
            await self._end.wait()

    async def end(self) -> None:
        self._end.set()
        await self.task


async def begun(load: Load) -> None:
    await asyncio.wait_for(load.began.wait(), WAIT)


async def waiting(load: Load) -> bool:
    for _ in range(20):
        await asyncio.sleep(0)
    return not load.began.is_set()


async def test_a_load_waits_for_a_quick_one_to_end() -> None:
    turns = Turns(quick=2, seconds=1000)
    first, second, third = (Load(turns) for _ in range(3))
    await begun(first)
    await begun(second)
    assert await waiting(third)
    await first.end()
    await begun(third)
    await second.end()
    await third.end()


async def test_loads_that_take_long_keep_nobody_waiting_up_to_a_number() -> None:
    turns = Turns(quick=1, most=3, seconds=0.01)
    loads = [Load(turns) for _ in range(4)]
    for load in loads[:3]:
        await begun(load)
    assert await waiting(loads[3])
    await loads[1].end()
    await begun(loads[3])
    for load in (loads[0], loads[2], loads[3]):
        await load.end()


async def test_turns_come_back_after_cancelled_and_failed_loads() -> None:
    turns = Turns(quick=1, most=2, seconds=1000)
    holder, waiter = Load(turns), Load(turns)
    await begun(holder)
    assert await waiting(waiter)
    for load in (waiter, holder):
        load.task.cancel()
        await asyncio.wait({load.task})
    for _ in range(5):
        try:
            async with turns.turn():
                raise ValueError
        except ValueError:
            pass
    async with AsyncExitStack() as stack:
        await asyncio.wait_for(stack.enter_async_context(turns.turn()), WAIT)
