"""Superpixels: connected groups of positions whose values are alike."""

import torch
from torch import Tensor

from interpret_server.plugin import Capability, Classifier, InvalidRequest

from .perturbation import changeable, channel_axis, joined

_LIGHTNESS = 100  # L* of white; other values than colours get the same range


def check_superpixels(model: Classifier, row: tuple[int, ...]) -> None:
    """Refuse a model whose input has no positions.

    Raises:
        InvalidRequest: naming `params.features`.
    """
    shapes = changeable(model, row)
    if len(shapes) > 1:
        raise InvalidRequest.field(
            "params.features", f"{model.name} takes several inputs; superpixels need a single one"
        )
    if channel_axis(model, shapes[0]) is None:
        raise InvalidRequest.field(
            "params.features",
            f"superpixels need an image or a signal, and {model.name} takes rows of shape "
            f"{list(shapes[0])} whose axes are not known; use a grid or values, or say the layout "
            "in the manifest",
        )


def superpixels(model: Classifier, inputs: Tensor, segments: int, compactness: float) -> Tensor:
    """The number of the superpixel of each value, `(N, *row)` int64; -1 for what is carried along.

    Simple linear iterative clustering of every row by itself (Achanta et al. 2012): k-means over
    positions and values that starts from a regular grid, in which a distance of `compactness` in
    value weighs as much as one of a grid's step in place. Images of three channels are compared as
    colours, in CIELAB; other values as they are, the width of the bounds counting as 100, which is
    the lightness of white. Where the model states no bounds, the row's own extremes take their
    place. Parts of a superpixel that are not connected become others, or go to a neighbour.

    Args:
        model: that takes the inputs.
        inputs: `(N, *row)`.
        segments: about how many.
        compactness: the greater, the squarer.

    Raises:
        InvalidRequest: as `check_superpixels`.
    """
    from skimage.segmentation import slic

    row = tuple(inputs.shape[1:])
    check_superpixels(model, row)
    (shape,) = changeable(model, row)
    channel = channel_axis(model, shape)
    assert channel is not None
    found = []
    for values in _changed(model, inputs):
        image = _in_units_of_lightness(model, values).movedim(channel, -1)
        if image.dim() == 2:
            image = image.unsqueeze(0)
        elif image.shape[-1] == 3:
            image = _lab(image)
        # The library stretches every image to [0, 1] before it weighs values against places.
        spread = float(image.max() - image.min()) or 1.0
        numbers = slic(
            image.numpy(),
            n_segments=segments,
            compactness=compactness / spread,
            convert2lab=False,
            start_label=0,
        )
        places = torch.from_numpy(numbers)
        places = places[0] if len(shape) == 2 else places
        found.append(places.unsqueeze(channel).expand(shape))
    return joined(model, row, [torch.stack(found).double()], -1).to(model.device, torch.int64)


def _changed(model: Classifier, inputs: Tensor) -> Tensor:
    """What may be hidden of inputs, on the CPU in float64."""
    if model.packing is not None:
        parts = zip(model.packing.parts, model.packing.unpack(inputs), strict=True)
        (inputs,) = [values for part, values in parts if not part.fixed]
    return inputs.detach().cpu().double()


def _in_units_of_lightness(model: Classifier, values: Tensor) -> Tensor:
    if Capability.BOUNDS in model.capabilities and not model.encoded:
        lower, upper = model.bounds
    else:
        lower, upper = float(values.min()), float(values.max())
    return (values - lower) * (_LIGHTNESS / ((upper - lower) or 1.0))


def _lab(image: Tensor) -> Tensor:
    from skimage.color import rgb2lab

    return torch.from_numpy(rgb2lab((image / _LIGHTNESS).clamp(0, 1).numpy()))
