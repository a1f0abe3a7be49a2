"""How much memory the constants that an import computes may take."""

from ...errors import InvalidModel

MAX_CONSTANT = 512 * 2**20
MAX_CONSTANTS = 2 * 2**30


class Allowance:
    """The bytes of constants that one import may compute."""

    def __init__(self) -> None:
        self.used = 0

    def claim(self, size: int) -> None:
        """Count the bytes of one more constant.

        Raises:
            InvalidModel: it, or all of them together, would be too large.
        """
        self.used += size
        if size > MAX_CONSTANT or self.used > MAX_CONSTANTS:
            raise InvalidModel(
                f"model: the graph computes constants of {size / 2**20:.0f} MiB; "
                f"at most {MAX_CONSTANT // 2**20} MiB are accepted"
            )
