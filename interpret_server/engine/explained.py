"""What is computed of a model's rows, by the inputs and tokens that callers know."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..plugin import Kind, fields_like_input, shared_fields
from .api import InputInfo
from .request import Request

_FIELD = "attributions"


def by_input(request: Request, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors like the inputs of a model of several, each as one tensor per input.

    One input that can change keeps the tensor's own name; of several, `attributions` becomes
    `attributions.<input>`, and `attributions.<key>` of a field of several tensors
    `attributions.<key>.<input>`.
    """
    classifier, batch = request.served.classifier, request.batch
    whole = dict(tensors)
    if classifier.packing is None:
        return whole
    alike = fields_like_input(request.plugin.result_type)
    row = classifier.row_shape(batch.inputs) if batch.has_inputs else classifier.input_shape
    for name, value in tensors.items():
        if not alike & {name, name.partition(".")[0]} or tuple(value.shape[1:]) != row:
            continue
        del whole[name]
        parts = classifier.split(value)
        for part, piece in parts.items():
            whole[name if len(parts) == 1 else f"{name}.{part}"] = piece
    return whole


def token_attributions(request: Request, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each token got, `(N, T)`, for every input of tokens that a plugin attributed.

    The sum over a token's embedding; the mean for methods that treat it as one and give the whole
    to each of its values; what the method gives, where that is one number per token already. Empty
    for models without tokens and for what is no attribution.

    Args:
        request: that was answered.
        tensors: of the result, by input where there are several.

    Returns:
        `token_attributions`, or `token_attributions.<input>` where `tensors` has
        `attributions.<input>`.
    """
    plugin, classifier, batch = request.plugin, request.served.classifier, request.batch
    if plugin.kind is not Kind.ATTRIBUTION:
        return {}
    inputs = request.served.info.inputs
    parts = [] if classifier.packing is None else classifier.packing.parts
    changing = [part.name for part in parts if not part.fixed] or [inputs[0].name]
    by_value = _FIELD in fields_like_input(plugin.result_type)
    shared = _FIELD in shared_fields(plugin.result_type)
    found = {}
    for item in inputs:
        end = "" if len(changing) == 1 else f".{item.name}"
        if item.kind != "tokens" or item.name not in changing or _FIELD + end not in tensors:
            continue
        value = tensors[_FIELD + end]
        if by_value and _fits(item, value.shape[1:-1]):
            found[f"token_{_FIELD}{end}"] = value.mean(-1) if shared else value.sum(-1)
        elif not parts and value.shape[1:] == batch.inputs.shape[1:]:
            found[f"token_{_FIELD}{end}"] = value
    return found


def _fits(item: InputInfo, sizes: Sequence[int]) -> bool:
    return len(sizes) == len(item.shape) and all(
        known in (-1, size) for known, size in zip(item.shape, sizes, strict=True)
    )
