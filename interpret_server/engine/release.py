"""Gives the memory of a model back once nobody uses it."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn

from ..models.classifier import Classifier
from .allocator import return_freed_memory
from .request import Served

_SECONDS = 1.0  # for the thread that computed the last call to let go of the model


async def release(served: Served, *, dismantled: bool) -> None:
    """Wait until nobody holds a model that is out of service, then give its memory back.

    A cancelled call holds it until its plugin's next step.

    Args:
        served: the caller keeps no other reference to it.
        dismantled: empty its modules; false where the classifier is somebody else's too.
    """
    loop, device, users = asyncio.get_running_loop(), served.classifier.device, served.users
    freed = asyncio.Event()

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(freed.set)

    classifier = served.classifier if dismantled else None
    weakref.finalize(served, _free, classifier, tell).atexit = False
    del served, classifier
    await users.empty()
    try:
        async with asyncio.timeout(_SECONDS):
            await freed.wait()
    except TimeoutError:  # a call still runs, or the traceback of a failed one is in a cycle
        await asyncio.to_thread(gc.collect)
        await freed.wait()
    await asyncio.to_thread(_return_memory, device)


def dismantle(classifier: Classifier) -> None:
    """Empty the modules of a classifier that is never called again.

    Graph modules and their graphs refer to each other: their weights would otherwise stay until
    a full garbage collection, which stops every thread for some tenths of a second.
    """
    for module in modules_of(classifier):
        vars(module).clear()


def modules_of(classifier: Classifier) -> list[nn.Module]:
    """Every module of a classifier and of the forms that it runs in."""
    return [module for root in _roots(classifier, set()) for module in root.modules()]


def _free(classifier: Classifier | None, tell: Callable[[], None]) -> None:
    if classifier is not None:
        dismantle(classifier)
    tell()


def _roots(thing: object, seen: set[int]) -> Iterator[nn.Module]:
    """The modules that an object of ours holds, at any depth."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        yield thing
        return
    held: Iterable[object] = ()
    if isinstance(thing, Mapping):
        held = thing.values()
    elif isinstance(thing, tuple | list):
        held = thing
    elif type(thing).__module__.startswith("interpret_server.") and hasattr(thing, "__dict__"):
        held = vars(thing).values()
    for item in held:
        yield from _roots(item, seen)


def _return_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return_freed_memory()
