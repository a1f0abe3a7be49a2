"""Rotations and translations of images."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from interpret_server.noise import uniform_rows
from interpret_server.plugin import Batch, Classifier, InvalidRequest, Job, Plugin, metric

from ..synthesis.spatial import Axes
from .attack import AimParams, AttackResult, Attempt, drive
from .decisions import AnyClassifier
from .minimal import Unlimited
from .region import Region

_AT_ONCE = 16  # transformations of a row before it is seen whether one succeeded
_PADDING = {"lower": "zeros", "edge": "border", "reflect": "reflection"}


class SpatialParams(AimParams):
    rotation: float = Field(30.0, ge=0, le=180, description="Largest angle, in degrees.")
    translation: float = Field(
        0.1, ge=0, le=0.5, description="Largest shift along an axis, as a share of its length."
    )
    search: Literal["grid", "random"] = Field(
        "grid",
        description="Every combination of evenly spaced angles and shifts, or random ones "
        "(worst-of-k).",
    )
    angles: int = Field(31, ge=1, le=1000, description="Angles of the grid.")
    shifts: int = Field(5, ge=1, le=100, description="Shifts along each axis of the grid.")
    samples: int = Field(
        10, ge=1, le=100_000, description="Random transformations (k); the grid ignores it."
    )
    padding: Literal["lower", "edge", "reflect"] = Field(
        "lower",
        description="What comes in from outside the image: the lowest value (black), the edge's "
        "own pixels, or the mirrored image.",
    )


@dataclass(frozen=True)
class SpatialResult(AttackResult):
    rotation: Tensor = metric("Degrees that the image was turned by, counterclockwise.")
    shift_down: Tensor = metric("Pixels that the image was moved down by.")
    shift_right: Tensor = metric("Pixels that the image was moved to the right by.")


class Spatial(Unlimited, AnyClassifier, Plugin[SpatialParams, SpatialResult]):
    """The image turned about its middle and shifted, by bilinear interpolation.

    The grid is tried from the smallest transformations to the largest, 16 of them at a time; a row
    stops after the first 16 with a success and returns, like worst-of-k, the one with the largest
    margin. Without a success that is the one closest to it. Distances in pixel values are reported
    as for any attack, though they say little here.

    Source: Engstrom, Tran, Tsipras, Schmidt & Madry 2019, "Exploring the Landscape of Spatial
    Robustness", section 3; the default ranges and grid are its own (30 degrees, about 10%
    of the image, 5 x 5 x 31).
    """

    name = "spatial"

    def check(self, model: Classifier, params: Any) -> None:
        super().check(model, params)
        if len(Axes.of(model).spatial) != 2:
            raise InvalidRequest.field("model", f"{model.name} takes no images")

    def run(
        self, model: Classifier, batch: Batch, params: SpatialParams, job: Job
    ) -> SpatialResult:
        region = Region.everywhere(batch.inputs, "linf", model.bounds)
        labels = batch.targets.labels.to(batch.inputs.device)
        attempt = Attempt.start(model, batch, params.goal(labels), region, job)
        settings = _settings(batch, params, Axes.of(model))
        kept = torch.zeros(len(batch), 3, dtype=torch.float64)
        groups = -(-settings.shape[1] // _AT_ONCE)
        total = groups * -(-len(batch) * _AT_ONCE // job.max_rows)
        drive(job, total, _steps(attempt, settings, kept, params, job))
        angle, down, right = kept.unbind(1)
        return SpatialResult(
            **vars(attempt.finish(job)), rotation=angle, shift_down=down, shift_right=right
        )


def _settings(batch: Batch, params: SpatialParams, axes: Axes) -> Tensor:
    """`(N, count, 3)`: degrees, pixels down and pixels to the right."""
    sizes = axes.sizes(batch.inputs.shape)
    ranges = [params.rotation, *(params.translation * size for size in sizes)]
    if params.search == "random":
        like = torch.empty(len(batch), params.samples, 3, dtype=torch.float64)
        return (uniform_rows(batch.seeds, 0, like) * 2 - 1) * torch.tensor(ranges).double()
    counts = [params.angles, params.shifts, params.shifts]
    shares = [
        torch.linspace(-1, 1, count, dtype=torch.float64).tolist() if count > 1 and most else [0.0]
        for count, most in zip(counts, ranges, strict=True)
    ]
    grid = sorted(itertools.product(*shares), key=lambda point: sum(part**2 for part in point))
    settings = torch.tensor(grid, dtype=torch.float64) * torch.tensor(ranges).double()
    return settings.expand(len(batch), -1, -1)


def _steps(
    attempt: Attempt, settings: Tensor, kept: Tensor, params: SpatialParams, job: Job
) -> Iterator[None]:
    model, x = attempt.model, attempt.batch.inputs
    axes, lower = Axes.of(model), model.bounds.lower
    for first in range(0, settings.shape[1], _AT_ONCE):
        group = settings[:, first : first + _AT_ONCE]
        rows = attempt.open
        if not len(rows):
            return
        here = rows.cpu()
        owners = rows.repeat_interleave(group.shape[1])
        flat = group[here].flatten(0, 1)
        logits = []
        for begin in range(0, len(owners), job.max_rows):
            part = slice(begin, begin + job.max_rows)
            moved = transform(x[owners[part]], axes, flat[part], params.padding, lower)
            with torch.no_grad():
                logits.append(model(attempt.region.take(owners[part]).confine(moved)))
            if part.stop < len(owners):
                yield
        attempt.queries[rows] += group.shape[1]
        whole = torch.cat(logits)
        margins = attempt.goal.take(owners).margin(whole).reshape(len(rows), -1)
        best = margins.argmax(1)
        place = torch.arange(len(rows), device=best.device) * group.shape[1] + best
        chosen = flat[place.cpu()]
        better = (margins.amax(1) > attempt.margin[rows]).cpu()
        kept[here[better]] = chosen[better]
        moved = transform(x[rows], axes, chosen, params.padding, lower)
        attempt.offer(rows, attempt.region.take(rows).confine(moved), whole[place])
        job.preview(adversarial=attempt.best.clone)
        yield


def transform(x: Tensor, axes: Axes, settings: Tensor, padding: str, lower: float) -> Tensor:
    """Images turned about their middle, then shifted; by bilinear interpolation.

    Args:
        x: `(N, *shape)` with two spatial axes.
        axes: of a batch.
        settings: `(N, 3)`: degrees counterclockwise, pixels down and to the right.
        padding: `lower`, `edge` or `reflect`.
        lower: what `lower` fills with.
    """
    height, width = axes.sizes(x.shape)
    down, right = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) - (height - 1) / 2,
        torch.arange(width, dtype=torch.float64) - (width - 1) / 2,
        indexing="ij",
    )
    angle, moved_down, moved_right = (part.reshape(-1, 1, 1) for part in settings.unbind(1))
    angle = angle * (math.pi / 180)
    from_down, from_right = down - moved_down, right - moved_right
    source_right = from_right * angle.cos() - from_down * angle.sin()
    source_down = from_right * angle.sin() + from_down * angle.cos()
    # Coordinates of grid_sample run from -1 to 1 between the outer edges of the pixels.
    grid = torch.stack([source_right * 2 / width, source_down * 2 / height], -1).to(x)
    channels = axes.channels[0]
    images = x.movedim(channels, 1) - lower
    mode = _PADDING[padding]
    found = F.grid_sample(images, grid, mode="bilinear", padding_mode=mode, align_corners=False)
    return (found + lower).movedim(1, channels)
