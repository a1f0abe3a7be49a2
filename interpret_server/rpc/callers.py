"""Who calls, and whose work goes first."""

import re
from collections.abc import Mapping
from typing import Any

from interpret_api.v1 import types_pb2 as types

from ..errors import InvalidRequest

CLIENT_ID = "x-client-id"
_VALID_ID = re.compile(r"[\x20-\x7e]{1,128}")
_PORT = re.compile(r":\d+\Z")
_PRIORITIES: Mapping[int, int] = {
    types.PRIORITY_UNSPECIFIED: 0,
    types.PRIORITY_LOW: -1,
    types.PRIORITY_NORMAL: 0,
    types.PRIORITY_HIGH: 1,
}


def client_of(context: Any) -> str:
    """The client's `x-client-id`; where it sent none, its address without the port.

    Raises:
        InvalidRequest: the id is not of 1 to 128 printable ASCII characters.
    """
    for key, value in context.invocation_metadata() or ():
        if key == CLIENT_ID:
            if not (isinstance(value, str) and _VALID_ID.fullmatch(value)):
                raise InvalidRequest.field(CLIENT_ID, "give 1 to 128 printable ASCII characters")
            return value
    peer: str = context.peer()
    return _PORT.sub("", peer) if peer.startswith("ip") else peer


def to_priority(priority: int) -> int:
    """The priority of a request: -1, 0 or 1.

    Raises:
        InvalidRequest: there is no such priority.
    """
    if priority not in _PRIORITIES:
        names = ", ".join(types.Priority.keys()[1:])
        raise InvalidRequest.field("priority", f"{priority} is none of {names}")
    return _PRIORITIES[priority]
