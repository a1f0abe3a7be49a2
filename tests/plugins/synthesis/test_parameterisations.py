"""Fourier coefficients against numpy, rotation against scipy, Gram cosines against loops."""

import math

import numpy
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from interpret_plugins.synthesis.centred import Centred
from interpret_plugins.synthesis.parameterisations import Fourier, Pixels
from interpret_plugins.synthesis.rotation import rotate
from interpret_plugins.synthesis.similarity import mean_similarity
from interpret_plugins.synthesis.spatial import Axes

FREE = Centred.around(torch.tensor(0.25, dtype=torch.float64), 2.0, None)
BOUNDED = Centred.around(torch.tensor(0.4, dtype=torch.float64), 4.0, (-1.0, 3.0))
IMAGES = Axes((2, 3), (1,))


def _rows(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("sizes", [(6, 9), (5, 8), (1, 4)])
def test_the_spectrum_equals_numpys(sizes: tuple[int, int]) -> None:
    form = Fourier(FREE, IMAGES, sizes, decay=1.5, colours=False)
    x = 0.25 + 2 * _rows(2, 4, *sizes)
    values = form.values(x)
    coefficients = torch.view_as_complex(values).numpy()
    down, right = numpy.fft.fftfreq(sizes[0])[:, None], numpy.fft.rfftfreq(sizes[1])
    scale = numpy.maximum(numpy.hypot(down, right), 1 / max(sizes)) ** -1.5
    expected = numpy.fft.irfft2(coefficients * scale, s=sizes, norm="ortho") / 4
    numpy.testing.assert_allclose(expected, ((x - 0.25) / 2).numpy(), atol=1e-10)


@pytest.mark.parametrize("space", [FREE, BOUNDED])
@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        (IMAGES, (3, 7, 6)),
        (IMAGES, (2, 7, 6)),
        (Axes((1, 2), (3,)), (7, 6, 3)),
        (Axes((2,), (1,)), (3, 5)),
        (Axes((2, 3, 4), (1,)), (1, 4, 3, 5)),
        (Axes((), ()), (6,)),
    ],
)
def test_values_of_an_image_give_the_image(
    space: Centred, axes: Axes, shape: tuple[int, ...]
) -> None:
    sizes = axes.sizes((2, *shape))
    x = 1.0 + 0.9 * _rows(2, *shape).tanh()
    for form in (Fourier(space, axes, sizes), Pixels(space)):
        torch.testing.assert_close(form.image(form.values(x)), x)


def test_images_by_their_spectrum_stay_inside_the_bounds_and_three_channels_share_brightness() -> (
    None
):
    form = Fourier(BOUNDED, IMAGES, (8, 8))
    values = 100 * _rows(3, 3, 8, 5, 2)
    image = form.image(values)
    assert -1 <= image.min() <= image.max() <= 3
    grey = torch.zeros(1, 3, 8, 5, 2, dtype=torch.float64)
    grey[:, 0] = _rows(1, 8, 5, 2)
    channels = form.image(grey)[0].flatten(1).corrcoef()
    assert channels.min() > 0.99


def test_gradients_through_the_spectrum_agree_with_differences() -> None:
    form = Fourier(BOUNDED, IMAGES, (4, 5))
    values = _rows(1, 3, 4, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(form.image, values)


def test_rotation_equals_scipys() -> None:
    x = _rows(2, 3, 8, 8)
    angles = torch.tensor([0.3, -math.pi / 2], dtype=torch.float64)
    turned = rotate(x, IMAGES, angles)
    for row in range(2):
        degrees = math.degrees(float(angles[row]))
        for channel in range(3):
            expected = ndimage.rotate(
                x[row, channel].numpy(), degrees, reshape=False, order=1, mode="reflect"
            )
            numpy.testing.assert_allclose(turned[row, channel].numpy(), expected, atol=1e-9)


def test_rotation_of_volumes_turns_their_last_two_axes_and_leaves_signals() -> None:
    volume, quarter = _rows(1, 2, 3, 5, 5), torch.tensor([math.pi / 2], dtype=torch.float64)
    turned = rotate(volume, Axes((2, 3, 4), (1,)), quarter)
    torch.testing.assert_close(turned, volume.rot90(1, (3, 4)))
    signal = _rows(1, 2, 5)
    assert rotate(signal, Axes((2,), (1,)), quarter) is signal


@pytest.mark.parametrize("shape", [(3, 4, 5), (6, 2, 2), (5,)])
def test_similarity_is_the_mean_cosine_of_gram_matrices(shape: tuple[int, ...]) -> None:
    features = _rows(2, 3, *shape)
    found = mean_similarity(features)
    for row in range(2):
        maps = [variant.reshape(shape[0], -1) for variant in features[row]]
        grams = [(m @ m.T).flatten() for m in maps]
        for one in range(3):
            cosines = [
                float(grams[one] @ grams[other] / (grams[one].norm() * grams[other].norm()))
                for other in range(3)
                if other != one
            ]
            assert float(found[row, one]) == pytest.approx(sum(cosines) / 2)
