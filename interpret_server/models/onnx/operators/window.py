"""What convolutions and pooling share: kernels, strides and padding."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ..call import Call
from ..values import Value


@dataclass(frozen=True)
class Window:
    """A sliding window over n spatial axes.

    Args:
        pads: at the start of each axis, then at the end of each; empty where `auto_pad` rules.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    ceil: bool

    @classmethod
    def of(cls, call: Call, kernel: Sequence[int]) -> "Window":
        """As the attributes of a node say."""
        count = len(kernel)
        auto_pad = call.text("auto_pad", "NOTSET")
        same = auto_pad.startswith("SAME")
        given = () if same or auto_pad == "VALID" else call.integers("pads") or ()
        return cls(
            tuple(kernel),
            tuple(call.integers("strides") or [1] * count),
            tuple(call.integers("dilations") or [1] * count),
            () if same else tuple(given or [0] * 2 * count),
            auto_pad,
            bool(call.integer("ceil_mode")),
        )

    @property
    def count(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def symmetric(self) -> tuple[int, ...] | None:
        """Padding that is the same on both sides, or None."""
        if self.pads and self.pads[: self.count] == self.pads[self.count :]:
            return self.pads[: self.count]
        return None


def window_pads(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    auto_pad: str,
    ceil: bool,
) -> list[tuple[int, int]]:
    """Padding before and after each axis, such that windows fit without a remainder.

    With `ceil`, a window that starts inside the input or the padding before it is kept and the
    padding after it is enlarged; one that starts in the padding after the input is dropped.
    """
    result = []
    count = len(kernel)
    for axis, (length, width, stride, dilation) in enumerate(
        zip(sizes, kernel, strides, dilations, strict=True)
    ):
        span = (width - 1) * dilation + 1
        if auto_pad.startswith("SAME"):
            total = max((-(-length // stride) - 1) * stride + span - length, 0)
            less, more = total // 2, total - total // 2
            result.append((less, more) if auto_pad == "SAME_UPPER" else (more, less))
            continue
        before, after = pads[axis], pads[count + axis]
        if ceil:
            windows = -(-(length + before + after - span) // stride) + 1
            if (windows - 1) * stride >= length + before:
                windows -= 1
            after = (windows - 1) * stride + span - length - before
        result.append((before, after))
    return result


def pad_window(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    auto_pad: str,
    ceil: bool,
    value: float,
) -> Tensor:
    """`x` padded for a window, so that the window itself needs no padding."""
    sides = window_pads(x.shape[2:], kernel, strides, dilations, pads, auto_pad, ceil)
    return F.pad(x, [side for pair in reversed(sides) for side in pair], value=value)


def padded(call: Call, x: Value, window: Window, value: float = 0.0) -> Value:
    """`x` with the window's padding made explicit."""
    return call.function(
        pad_window,
        x,
        window.kernel,
        window.strides,
        window.dilations,
        window.pads,
        window.auto_pad,
        window.ceil,
        value,
        kind="pad",
    )


def resolved(call: Call, x: Value, window: Window) -> Window:
    """The window with `auto_pad` worked out where the sizes do not depend on the batch."""
    shape = call.shape(x)
    if not window.auto_pad.startswith("SAME") or shape is None:
        return window
    sizes = [length for length in shape[2:] if length is not None]
    if len(sizes) != window.count:
        return window
    sides = window_pads(
        sizes, window.kernel, window.strides, window.dilations, (), window.auto_pad, False
    )
    pads = tuple(before for before, _ in sides) + tuple(after for _, after in sides)
    return Window(window.kernel, window.strides, window.dilations, pads, "NOTSET", window.ceil)
