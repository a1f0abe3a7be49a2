"""What goes wrong between processes, as opposed to what callers are told."""


class ProtocolError(Exception):
    """The other side sent what it never should; one sentence for the log."""
