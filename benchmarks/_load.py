"""Callers: threads with a connection each."""

import threading
import time
from collections.abc import Callable
from typing import Any

import interpret_client

Ask = Callable[[interpret_client.Client, int], Any]  # by the caller with this number


def rate(address: str, callers: int, calls: int, ask: Ask) -> float:
    """Calls per second of callers that each make `calls` calls, one after the other.

    The clock runs from when all are connected until the last one has its last answer.

    Raises:
        RuntimeError: a call failed.
    """
    barrier = threading.Barrier(callers + 1)
    failures: list[Exception] = []

    def caller(number: int) -> None:
        with interpret_client.connect(address) as client:
            client.plugins()
            barrier.wait()
            try:
                for _ in range(calls):
                    ask(client, number)
            except Exception as error:  # told by the thread that measures
                failures.append(error)
            barrier.wait()

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - start
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"{len(failures)} of {callers} callers failed") from failures[0]
    return callers * calls / seconds
