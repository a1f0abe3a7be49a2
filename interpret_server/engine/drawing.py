"""The pictures of a call: what is known of its rows, given to `interpret_pictures`."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from interpret_pictures.drawing import Scene, draw_attributions, draw_images
from interpret_pictures.drawing import draw as draw_tensors
from interpret_pictures.options import Rendering, Style

from ..errors import InvalidRequest
from ..plugin import Kind
from .api import Array, Call, InputInfo, Preview, RowWarning
from .arrays import to_tensor
from .request import Request

Pictures = dict[str, tuple[bytes, ...]]

MAX_CUTS = 32  # rows of a call of which an object mask is drawn, about 0.3 s each


def check_rendering(call: Call, rows: int) -> None:
    """Refuse pictures that would take too long.

    Raises:
        InvalidRequest: naming `rendering.styles`.
    """
    if call.render is not None and Style.OBJECT_MASK in call.render.styles and rows > MAX_CUTS:
        raise InvalidRequest.field(
            "rendering.styles",
            f"object masks are drawn of at most {MAX_CUTS} rows a call, not {rows}",
        )


def draw(
    request: Request, tensors: Mapping[str, Tensor], logits: Mapping[str, Tensor]
) -> tuple[Pictures, tuple[RowWarning, ...]]:
    """The pictures of a result, and sentences about them.

    Args:
        request: its call says how to draw, or not to draw at all.
        tensors: of the result, by the names under which they are sent.
        logits: of the inputs, `(N, K)`, where the plugin computed them.
    """
    pictures: Pictures = {}
    warnings: list[RowWarning] = []
    if request.call.render is None:
        return pictures, ()
    info = request.served.info
    inputs = {item.name for item in info.inputs}
    classes = next((value.argmax(1).tolist() for value in logits.values()), None)
    together: dict[str, dict[str, NDArray[np.floating]]] = {}
    for name, value in tensors.items():
        kind, _, part = name.partition(".")
        per_token = f"token_{kind}.{part}" if part else f"token_{kind}"
        if value.is_floating_point() and value.dim() > 1 and per_token not in tensors:
            last = part.rpartition(".")[2]
            about = last if last in inputs else ""
            together.setdefault(about, {})[name] = value.float().cpu().numpy()
    for about, arrays in together.items():
        scene = replace(_scene(request, about), classes=classes, labels=info.labels)
        drawn = draw_tensors(arrays, request.call.render, scene)
        side_by_side = drawn.pictures.pop("comparison", None)
        pictures |= drawn.pictures
        if side_by_side is not None:
            pictures[f"comparison.{about}" if len(together) > 1 else "comparison"] = side_by_side
        warnings += [RowWarning(text, rows) for text, rows in drawn.warnings.items()]
    return pictures, tuple(warnings)


def draw_preview(request: Request, preview: Preview) -> Preview:
    """The preview with pictures of its image-shaped tensors, where the call asked for them."""
    if request.call.render is None:
        return preview
    accepts = request.served.classifier.accepts
    pictures: Pictures = {}
    for name, item in preview.tensors.items():
        if accepts(item.shape[1:]):
            array, scene = _floats(item), _scene(request)
            if request.plugin.kind is Kind.ATTRIBUTION:
                pictures |= draw_attributions(name, array, Rendering(), scene).pictures
            else:
                pictures[name] = draw_images(array, scene)
    return Preview(preview.done, preview.total, preview.tensors, pictures)


def _scene(request: Request, part: str = "") -> Scene:
    """What is known of an input: the one of that name, or the only one."""
    info, batch, classifier = request.served.info, request.batch, request.served.classifier
    about = next((item for item in info.inputs if item.name == part), None)
    if about is None:
        free = [item for item in info.inputs if item.kind != "integers"]
        about = free[0] if len(free) == 1 else None
    given = batch.has_inputs
    if about is not None and about.kind == "tokens":
        ids = _given(request, about)
        if given and classifier.packing is None:
            ids = batch.inputs.cpu().double().numpy()
        return Scene(layout="tokens", names=[] if ids is None else _token_names(ids))
    names = [] if about is None else [about.features] * len(batch)
    if classifier.packing is None:
        inputs = batch.inputs.float().cpu().numpy() if given and not classifier.encoded else None
        return Scene(inputs, info.input_layout, info.bounds, names)
    if about is None:
        return Scene()
    return Scene(_given(request, about) if given else None, about.layout, about.bounds, names)


def _given(request: Request, about: InputInfo) -> NDArray[np.floating] | None:
    """An input as its caller sent it."""
    inputs = request.call.inputs
    if isinstance(inputs, Mapping):
        inputs = inputs.get(about.name)
    return _floats(inputs) if isinstance(inputs, Array) else None


def _token_names(ids: NDArray[np.floating]) -> list[list[str]]:
    return [
        [f"{position} · {token:.0f}" for position, token in enumerate(row.ravel())] for row in ids
    ]


def _floats(array: Array) -> NDArray[np.floating]:
    values: NDArray[np.float32] = to_tensor(array, "inputs").float().numpy()
    return values
