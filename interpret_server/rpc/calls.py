"""Runs calls on a worker for as long as their callers wait."""

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

from ..engine.api import Call, Result, Worker
from ..errors import InterpretError, InvalidRequest, Violation

PREDICT = "_predict"


async def result_of(
    worker: Worker, call: Call, fields: Mapping[str, str] = MappingProxyType({})
) -> Result:
    """The call's result; being cancelled cancels the call.

    Args:
        worker: holds the model.
        call: what to run.
        fields: a field of the call -> what the caller's request calls it.

    Raises:
        InterpretError: whatever the worker raised.
    """
    try:
        quiet = replace(call, progress=False) if call.progress else call
        async with aclosing(cast(Any, worker.run(quiet))) as events:
            async for event in events:
                if isinstance(event, Result):
                    return event
    except InvalidRequest as error:
        raise _renamed(error, fields) from None
    raise InterpretError("the worker gave no result")


def _renamed(error: InvalidRequest, fields: Mapping[str, str]) -> InvalidRequest:
    """The same error in the words of the caller's request."""
    message, violations = error.message, error.violations
    for theirs, ours in fields.items():
        message = message.replace(f"{theirs}:", f"{ours}:")
        violations = tuple(
            Violation(ours, item.description) if item.field == theirs else item
            for item in violations
        )
    return type(error)(message, violations=violations)
