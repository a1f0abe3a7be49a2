"""Many rows, a few at a time."""


def parts(count: int, size: int) -> list[range]:
    """The numbers 0 to `count` - 1 in parts of `size`, the last of which may be smaller."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
