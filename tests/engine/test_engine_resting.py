"""Freed memory is returned after a time without calls, and not before."""

import asyncio

from interpret_server.engine.resting import Resting

SECONDS = 0.05


class Memory:
    def __init__(self) -> None:
        self.busy = False
        self.returned = asyncio.Event()
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self.resting = Resting(lambda: self.busy, SECONDS, self.give_back)

    def give_back(self) -> None:
        self.count += 1
        self._loop.call_soon_threadsafe(self.returned.set)


async def test_memory_is_returned_once_nobody_calls() -> None:
    memory = Memory()
    for _ in range(3):
        memory.resting.called()
    await asyncio.wait_for(memory.returned.wait(), 10)
    assert memory.count == 1
    memory.returned.clear()
    memory.resting.called()
    await asyncio.wait_for(memory.returned.wait(), 10)
    assert memory.count == 2


async def test_a_running_call_keeps_it() -> None:
    memory = Memory()
    memory.busy = True
    memory.resting.called()
    await asyncio.sleep(4 * SECONDS)
    assert not memory.count
    memory.busy = False
    await asyncio.wait_for(memory.returned.wait(), 10)


async def test_nothing_is_returned_after_closing() -> None:
    memory = Memory()
    memory.resting.called()
    memory.resting.close()
    await asyncio.sleep(4 * SECONDS)
    assert not memory.count
