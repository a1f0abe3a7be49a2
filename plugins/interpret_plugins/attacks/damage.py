"""Common corruptions of images, at five severities.

Every function takes an image `(height, width, channels)`, float64 in [0, 1], with any number of
channels, one severity's constants, and a random generator, and returns the corrupted image, which
is clipped to [0, 1] afterwards. Constants are those of ImageNet-C, for 224 pixels (CIFAR-10-C has
milder ones); lengths in pixels are scaled by `unit`, the image's shorter side as a share of 224.

Source: Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations", and its published constants.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy
from numpy.typing import NDArray

Image = NDArray[numpy.float64]
CorruptionName = Literal[
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "gaussian_blur",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "saturate",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
    "spatter",
]
NAMES: tuple[CorruptionName, ...] = get_args(CorruptionName)

_SIDE = 224  # of the images that the constants are for
_WATER, _MUD = (175 / 255, 238 / 255, 238 / 255), (63 / 255, 42 / 255, 20 / 255)
_EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))


def corrupt(image: Image, name: CorruptionName, severity: int, seed: int) -> Image:
    """An image with one corruption; the same for the same seed."""
    kind = _CORRUPTIONS[name]
    unit = min(image.shape[:2]) / _SIDE
    random = numpy.random.default_rng(seed)
    return kind.apply(image, kind.severities[severity - 1], unit, random).clip(0, 1)


class _Corruption(NamedTuple):
    apply: Callable[[Image, Any, float, numpy.random.Generator], Image]
    severities: Sequence[Any]


def _gaussian_noise(x: Image, c: float, unit: float, random: numpy.random.Generator) -> Image:
    return x + random.normal(scale=c, size=x.shape)


def _shot_noise(x: Image, c: float, unit: float, random: numpy.random.Generator) -> Image:
    return random.poisson(x * c) / c


def _impulse_noise(x: Image, c: float, unit: float, random: numpy.random.Generator) -> Image:
    salt = (random.random(x.shape) < 0.5).astype(x.dtype)
    return numpy.where(random.random(x.shape) < c, salt, x)


def _speckle_noise(x: Image, c: float, unit: float, random: numpy.random.Generator) -> Image:
    return x + x * random.normal(scale=c, size=x.shape)


def _blurred(x: Image, sigma: float) -> Image:
    from scipy.ndimage import gaussian_filter

    blurred: Image = gaussian_filter(x, (sigma, sigma, 0), mode="nearest")
    return blurred


def _filtered(x: Image, kernel: Image) -> Image:
    """The image convolved with a square kernel of odd length, mirrored at its edges."""
    from scipy.signal import fftconvolve

    edge = len(kernel) // 2
    padded = numpy.pad(x, ((edge, edge), (edge, edge), (0, 0)), mode="symmetric")
    kernel = (kernel / kernel.sum())[..., None]
    found: Image = fftconvolve(padded, kernel, mode="valid", axes=(0, 1))
    return found


def _gaussian_blur(x: Image, c: float, unit: float, random: numpy.random.Generator) -> Image:
    return _blurred(x, c * unit)


def _defocus_blur(
    x: Image, c: tuple[float, float], unit: float, random: numpy.random.Generator
) -> Image:
    radius = c[0] * unit
    axis = numpy.arange(-math.ceil(radius) - 1, math.ceil(radius) + 2, dtype=numpy.float64)
    disk = (radius + 0.5 - numpy.hypot(axis[:, None], axis)).clip(0, 1)
    return _blurred(_filtered(x, disk), c[1] * unit)


def _glass_blur(
    x: Image, c: tuple[float, int, int], unit: float, random: numpy.random.Generator
) -> Image:
    sigma, reach, times = c
    reach = max(1, round(reach * unit))
    found, rows, columns = _blurred(x, sigma * unit), *numpy.indices(x.shape[:2])
    for _ in range(times):
        moves = random.integers(-reach, reach + 1, size=(2, *x.shape[:2]))
        down = (rows + moves[0]).clip(0, x.shape[0] - 1)
        found = found[down, (columns + moves[1]).clip(0, x.shape[1] - 1)]
    return _blurred(found, sigma * unit)


def _streaked(x: Image, radius: float, sigma: float, angle: float) -> Image:
    """Motion blur: the image smeared in one direction, less and less."""
    count = max(2, round(2 * radius) + 1)
    kernel = numpy.zeros((2 * count + 1, 2 * count + 1))
    for step in range(count):
        down, right = round(step * math.sin(angle)), round(step * math.cos(angle))
        kernel[count + down, count + right] += math.exp(-(step**2) / (2 * sigma**2))
    return _filtered(x, kernel)


def _motion_blur(
    x: Image, c: tuple[float, float], unit: float, random: numpy.random.Generator
) -> Image:
    angle = random.uniform(-math.pi / 4, math.pi / 4)
    return _streaked(x, c[0] * unit, max(c[1] * unit, 0.3), angle)


def _sampled(x: Image, places: Sequence[Image] | Image, mode: str) -> Image:
    """The image at other places, rows and columns, by linear interpolation."""
    from scipy.ndimage import map_coordinates

    planes = [map_coordinates(plane, places, order=1, mode=mode) for plane in x.transpose(2, 0, 1)]
    return numpy.stack(planes, 2)


def _zoomed(x: Image, factor: float) -> Image:
    """The middle of the image, magnified to its size."""
    axes = [(numpy.arange(size) - (size - 1) / 2) / factor + (size - 1) / 2 for size in x.shape[:2]]
    return _sampled(x, numpy.meshgrid(*axes, indexing="ij"), "nearest")


def _zoom_blur(
    x: Image, c: tuple[float, float], unit: float, random: numpy.random.Generator
) -> Image:
    factors = numpy.arange(1, *c)
    return (x + sum(_zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


def _snow(x: Image, c: tuple[float, ...], unit: float, random: numpy.random.Generator) -> Image:
    mean, spread, zoom, threshold, radius, sigma, kept = c
    flakes = _zoomed(random.normal(mean, spread, size=(*x.shape[:2], 1)), max(1.0, zoom * unit))
    flakes = numpy.where(flakes < threshold, 0, flakes).clip(0, 1)
    angle = random.uniform(math.pi / 4, 3 * math.pi / 4)
    flakes = _streaked(flakes, radius * unit, max(sigma * unit, 0.3), angle)
    pale: Image = numpy.maximum(x, x.mean(2, keepdims=True) * 1.5 + 0.5)
    snowy: Image = kept * x + (1 - kept) * pale + flakes + flakes[::-1, ::-1]
    return snowy


def _plasma(shape: Sequence[int], decay: float, random: numpy.random.Generator) -> Image:
    """A fractal of clouds `(height, width, 1)` in [0, 1], by the diamond-square algorithm."""
    size = 2 ** math.ceil(math.log2(max(2, *shape[:2])))
    heights, step, spread = numpy.zeros((size, size)), size, 1.0

    def jitter(mean: Image) -> Image:
        return mean + spread * random.uniform(-1, 1, size=mean.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        sides = corners + numpy.roll(corners, -1, 0)
        middles = jitter((sides + numpy.roll(sides, -1, 1)) / 4)
        heights[half::step, half::step] = middles
        across = middles + numpy.roll(middles, 1, 0) + corners + numpy.roll(corners, -1, 1)
        heights[::step, half::step] = jitter(across / 4)
        along = middles + numpy.roll(middles, 1, 1) + corners + numpy.roll(corners, -1, 0)
        heights[half::step, ::step] = jitter(along / 4)
        step, spread = half, spread / decay
    heights = heights[: shape[0], : shape[1], None]
    lowest, highest = float(heights.min()), float(heights.max())
    return (heights - lowest) / max(highest - lowest, 1e-12)


def _frost(x: Image, c: tuple[float, float], unit: float, random: numpy.random.Generator) -> Image:
    ridges = 1 - numpy.abs(2 * _plasma(x.shape, 1.5, random) - 1)
    return c[0] * x + c[1] * ridges**2


def _fog(x: Image, c: tuple[float, float], unit: float, random: numpy.random.Generator) -> Image:
    brightest = float(x.max())
    return (x + c[0] * _plasma(x.shape, c[1], random)) * brightest / (brightest + c[0])


def _brightness(x: Image, c: float, unit: float, random: numpy.random.Generator) -> Image:
    value: Image = x.max(2, keepdims=True)
    lighter: Image = (value + c).clip(0, 1)
    return numpy.where(value > 0, x * lighter / numpy.where(value > 0, value, 1), lighter)


def _contrast(x: Image, c: float, unit: float, random: numpy.random.Generator) -> Image:
    mean: Image = x.mean((0, 1), keepdims=True)
    return (x - mean) * c + mean


def _saturate(
    x: Image, c: tuple[float, float], unit: float, random: numpy.random.Generator
) -> Image:
    value: Image = x.max(2, keepdims=True)
    spread = value - x.min(2, keepdims=True)
    coloured = spread > 0
    saturation = numpy.where(coloured, spread / numpy.where(coloured, value, 1), 1)
    factor = (saturation * c[0] + c[1]).clip(0, 1) / saturation
    return value - (value - x) * factor


def _elastic_transform(
    x: Image, c: tuple[float, float, float], unit: float, random: numpy.random.Generator
) -> Image:
    from scipy.ndimage import gaussian_filter

    side = min(x.shape[:2])
    strength, sigma, bend = (side * share for share in c)
    corners = numpy.array([[1, 1], [1, -1], [-1, -1]]) * (side / 3)
    before = numpy.array(x.shape[:2]) / 2 + corners
    after = before + random.uniform(-bend, bend, size=before.shape)
    matrix = numpy.linalg.solve(numpy.hstack([after, numpy.ones((3, 1))]), before)
    down, right = numpy.indices(x.shape[:2]).astype(numpy.float64)
    shifts = [
        gaussian_filter(
            random.uniform(-1, 1, size=x.shape[:2]), max(sigma, 1), mode="reflect", truncate=3
        )
        for _ in range(2)
    ]
    moved = numpy.stack(
        [down + shifts[0] * strength, right + shifts[1] * strength, numpy.ones_like(down)], 2
    )
    return _sampled(x, (moved @ matrix).transpose(2, 0, 1), "mirror")


def _pixelate(x: Image, c: float, unit: float, random: numpy.random.Generator) -> Image:
    import PIL.Image

    height, width = x.shape[:2]
    small = (max(1, int(width * c)), max(1, int(height * c)))
    planes = []
    for plane in x.astype(numpy.float32).transpose(2, 0, 1):
        coarse = PIL.Image.fromarray(plane).resize(small, PIL.Image.Resampling.BOX)
        planes.append(coarse.resize((width, height), PIL.Image.Resampling.NEAREST))
    return numpy.stack([numpy.asarray(plane, dtype=numpy.float64) for plane in planes], 2)


def _jpeg_compression(x: Image, c: int, unit: float, random: numpy.random.Generator) -> Image:
    pixels = (x * 255).round().astype(numpy.uint8)
    if pixels.shape[2] == 3:
        return _through_jpeg(pixels, c)
    return numpy.stack([_through_jpeg(plane, c) for plane in pixels.transpose(2, 0, 1)], 2)


def _through_jpeg(pixels: NDArray[numpy.uint8], quality: int) -> Image:
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return numpy.asarray(PIL.Image.open(file), dtype=numpy.float64) / 255


def _relief(wet: NDArray[numpy.bool_]) -> Image:
    """How drops `(height, width)` catch the light, which comes from a side."""
    from scipy.ndimage import binary_erosion, correlate, distance_transform_edt, uniform_filter

    edges = wet & ~binary_erosion(wet)
    depth = (
        distance_transform_edt(~edges).clip(max=20) if edges.any() else numpy.full(wet.shape, 20)
    )
    levels = uniform_filter(depth.astype(numpy.float64), 3, mode="mirror").astype(numpy.uint8)
    counts = numpy.bincount(levels.ravel(), minlength=256).cumsum()
    below = counts[levels.min()]
    even = ((counts - below) / max(levels.size - below, 1) * 255).round().clip(0)[levels]
    lit = correlate(even, numpy.array(_EMBOSS, dtype=numpy.float64), mode="mirror")
    smooth: Image = uniform_filter(lit.clip(0, 255), 3, mode="mirror")
    return smooth


def _spatter(x: Image, c: tuple[float, ...], unit: float, random: numpy.random.Generator) -> Image:
    """Drops of water, or of mud; drawn at the size that the constants are for."""
    import PIL.Image

    mean, spread, sigma, threshold, strength, muddy = c
    size = tuple(max(1, round(side / unit)) for side in x.shape[:2])
    liquid = _blurred(random.normal(mean, spread, size=(*size, 1)), sigma)
    wet = liquid > threshold
    if muddy:
        drops = _blurred(wet.astype(numpy.float64), strength)[..., 0]
        drops = numpy.where(drops < 0.8, 0, drops)
    else:
        drops = numpy.where(wet, liquid, 0)[..., 0] * _relief(wet[..., 0])
        drops *= strength / max(float(drops.max()), 1e-12)
    plane = PIL.Image.fromarray(drops.astype(numpy.float32))
    plane = plane.resize(x.shape[1::-1], PIL.Image.Resampling.BOX)
    share = numpy.asarray(plane, dtype=numpy.float64)[..., None]
    colour = numpy.array(_MUD if muddy else _WATER)
    colour = colour if x.shape[2] == 3 else colour.mean(keepdims=True)
    kept = 1 - share if muddy else 1.0
    spattered: Image = x * kept + share * colour
    return spattered


_CORRUPTIONS: Mapping[CorruptionName, _Corruption] = {
    "gaussian_noise": _Corruption(_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": _Corruption(_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": _Corruption(_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle_noise": _Corruption(_speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian_blur": _Corruption(_gaussian_blur, (1, 2, 3, 4, 6)),
    "defocus_blur": _Corruption(_defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": _Corruption(
        _glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
    ),
    "motion_blur": _Corruption(_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": _Corruption(
        _zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
    ),
    "snow": _Corruption(
        _snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": _Corruption(_frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "fog": _Corruption(_fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": _Corruption(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": _Corruption(_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "saturate": _Corruption(_saturate, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))),
    "elastic_transform": _Corruption(
        _elastic_transform,
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    ),
    "pixelate": _Corruption(_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": _Corruption(_jpeg_compression, (25, 18, 15, 10, 7)),
    "spatter": _Corruption(
        _spatter,
        (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
    ),
}
