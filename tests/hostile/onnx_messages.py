"""Protobuf messages as bytes, where the package itself would not write them."""


def varint(value: int) -> bytes:
    """A number of protobuf."""
    told = b""
    while value > 127:
        value, told = value >> 7, told + bytes([value & 127 | 128])
    return told + bytes([value])


def field(number: int, data: bytes) -> bytes:
    """A field that holds bytes, a text or a message."""
    return bytes([number << 3 | 2]) + varint(len(data)) + data
