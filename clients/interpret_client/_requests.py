"""A call of the client as a value."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One RPC, ready to be sent.

    Args:
        method: `Service.Method`.
        request: the message, or a function that yields the messages of a client stream.
        parse: reads an answer, and its parts where the call is chunked.
        retry: asking twice does no harm.
        timeout: seconds; None for the client's own.
        chunked: the field of a chunked call's header that holds the request; None for other calls.
    """

    method: str
    request: Message | Callable[[], Iterator[Message]]
    parse: Callable[..., T]
    retry: bool = False
    timeout: float | None = None
    chunked: str | None = None
