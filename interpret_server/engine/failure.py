"""Unexpected errors: logged in full, told to callers by a number alone."""

import logging
import secrets

from ..errors import InterpretError

logger = logging.getLogger("interpret_server.engine")


def internal_error(error: BaseException, what: str) -> InterpretError:
    """Log an unexpected error and make the one that callers may see, with the same id."""
    request_id = secrets.token_hex(8)
    logger.error("request %s: %s failed", request_id, what, exc_info=error)
    return InterpretError(
        f"internal error; the server's log has the details under request id {request_id}"
    )


def bare(error: InterpretError) -> InterpretError:
    """The error without its traceback, whose frames would hold the model; changed in place."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error
