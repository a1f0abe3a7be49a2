"""Targets as callers write them, to the targets of a batch and back."""

from collections.abc import Sequence

import torch

from ..errors import InvalidRequest
from ..models.classifier import Classifier
from ..models.targets import TargetKind, Targets
from ..registry import AnyPlugin
from .api import Target

_KINDS = {kind.value: kind for kind in TargetKind if kind is not TargetKind.NONE}


def decode_targets(
    targets: Sequence[Target],
    plugin: AnyPlugin,
    classifier: Classifier,
    rows: int,
    row: tuple[int, ...],
    *,
    has_inputs: bool,
) -> tuple[Targets, bool]:
    """The targets of every row, and whether they are yet to be predicted.

    Args:
        targets: none, one for all rows, or one per row.
        plugin: says which kinds it takes.
        classifier: says which units there are.
        rows: how many to make.
        row: the shape of an input row.
        has_inputs: whether the predicted class can stand in for a missing target.

    Raises:
        InvalidRequest: naming `target` or `layer`.
        FailedPrecondition: the model's layers cannot be read.
    """
    accepted = plugin.target_kinds
    if not targets:
        if not accepted or TargetKind.NONE in accepted:
            return Targets.none(rows), False
        if TargetKind.CLASS in accepted and has_inputs:
            return Targets.classes(torch.zeros(rows, dtype=torch.int64)), True
        raise InvalidRequest.field("target", f"{plugin.name} needs a target: {_named(accepted)}")
    kind = _single_kind(targets)
    if kind not in accepted:
        if not accepted - {TargetKind.NONE}:
            raise InvalidRequest.field("target", f"{plugin.name} takes no target; leave it out")
        raise InvalidRequest.field("target", f"{plugin.name} takes {_named(accepted)}, not {kind}")
    decoded = Targets(
        kind,
        _indices(targets, kind),
        targets[0].layer,
        _directions(targets, kind, classifier.dtype),
    )
    classifier.check_targets(decoded, row)
    if len(targets) == 1 < rows:
        decoded = decoded.take(torch.zeros(rows, dtype=torch.int64))
    return decoded, False


def report_targets(
    targets: Sequence[Target], predicted: Sequence[int], rows: int
) -> tuple[Target, ...]:
    """What each row aimed at, for the record.

    Args:
        targets: as the caller wrote them.
        predicted: the predicted class per row, where the caller wrote none.
        rows: how many there are.
    """
    if predicted:
        return tuple(Target("class", (index,)) for index in predicted)
    return tuple(targets) * rows if len(targets) == 1 else tuple(targets)


def _named(kinds: frozenset[TargetKind]) -> str:
    *others, last = [kind.value for kind in TargetKind if kind in kinds - {TargetKind.NONE}]
    return f"{', '.join(others)} or {last}" if others else last


def _single_kind(targets: Sequence[Target]) -> TargetKind:
    kinds = sorted({target.kind for target in targets})
    if len(kinds) > 1:
        raise InvalidRequest.field(
            "target", f"one call mixes {' and '.join(kinds)}; send one call per kind"
        )
    layers = {target.layer for target in targets}
    if len(layers) > 1:
        names = sorted(name or "the logits" for name in layers)
        raise InvalidRequest.field(
            "target", f"one call mixes the layers {' and '.join(names)}; send one call per layer"
        )
    if kinds[0] not in _KINDS:
        raise InvalidRequest.field(
            "target", f"unknown kind {kinds[0]!r}; use one of {', '.join(_KINDS)}"
        )
    return _KINDS[kinds[0]]


def _indices(targets: Sequence[Target], kind: TargetKind) -> torch.Tensor:
    widths = {len(target.index) for target in targets}
    if kind in (TargetKind.LAYER, TargetKind.DIRECTION):
        if widths != {0}:
            raise InvalidRequest.field("target", f"a {kind} takes no index")
    elif kind is TargetKind.NEURON:
        if len(widths) > 1:
            raise InvalidRequest.field("target", "the neurons differ in their number of indices")
    elif widths != {1}:
        raise InvalidRequest.field("target", f"a {kind} takes exactly one index")
    if any(not -(1 << 63) <= number < 1 << 63 for item in targets for number in item.index):
        raise InvalidRequest.field("target", "an index is out of the range of 64-bit integers")
    return torch.tensor([item.index for item in targets], dtype=torch.int64).reshape(
        len(targets), widths.pop()
    )


def _directions(
    targets: Sequence[Target], kind: TargetKind, dtype: torch.dtype
) -> torch.Tensor | None:
    from .inputs import check_finite, numbers

    if kind is not TargetKind.DIRECTION:
        return None
    given = [item.direction for item in targets]
    arrays = [array for array in given if array is not None]
    if len(arrays) < len(given):
        raise InvalidRequest.field("target", "a direction needs the values of its vector")
    if len({array.shape for array in arrays}) > 1:
        raise InvalidRequest.field("target", "the directions of one call differ in shape")
    directions = torch.stack([numbers(array, "target", dtype) for array in arrays])
    check_finite(directions, "target")
    return directions
