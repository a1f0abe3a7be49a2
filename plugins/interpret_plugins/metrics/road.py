"""ROAD: scores of inputs whose places are removed, and guessed from what is around them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from interpret_plugins.attribution.perturbation import channel_axis
from interpret_server.noise import generator
from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Capability,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Plugin,
    TargetKind,
    metric,
    output,
)

from .imputation import impute
from .judged import (
    TENSORS,
    USES,
    Positions,
    ScoringParams,
    judged,
    passes,
    per_value,
    scores_and_logits,
)


class ROADParams(ScoringParams):
    percentages: tuple[Annotated[float, Field(gt=0, lt=100)], ...] = Field(
        (10, 20, 30, 40, 50, 60, 70, 80, 90),
        min_length=1,
        max_length=100,
        description="Percentages of the places that are removed.",
    )
    noise: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Standard deviation of the noise on guessed values, as a share of the bounds.",
    )


@dataclass(frozen=True)
class ROADResult:
    gap: Tensor = metric(
        "Mean score, least relevant first, less that of most relevant first.", better="high"
    )
    morf: Tensor = metric("Mean score with the most relevant places removed first.")
    lerf: Tensor = metric("Mean score with the least relevant places removed first.")
    morf_curve: Tensor = output(
        "Scores, most relevant first, `(N, percentages)`.", like_input=False
    )
    lerf_curve: Tensor = output(
        "Scores, least relevant first, `(N, percentages)`.", like_input=False
    )
    attributions: Tensor = output("What was judged, as its method gave it.")
    morf_kept: Tensor | None = output(
        "1 where the target is still the predicted class, most relevant first, `(N, percentages)`; "
        "their mean over many inputs is the accuracy. For classes only.",
        like_input=False,
    )
    lerf_kept: Tensor | None = output("The same, least relevant first.", like_input=False)


class ROAD(Plugin[ROADParams, ROADResult]):
    """Scores with the most, or least, relevant places removed and debiased: a wide gap is good.

    Removed places, with all their channels, become the weighted mean of the places around them,
    which may be removed ones too (a linear system), plus a little noise: a model finds fewer traces
    of the removal itself than with a constant. A place's relevance is the sum of its attributions.
    For images and signals.

    Source: Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution
    Methods": remove and debias, noisy linear imputation, in the orders MoRF and LeRF.
    """

    name = "road"
    kind = Kind.METRIC
    requires = frozenset({Capability.SCORES})
    uses: ClassVar[Mapping[str, Kind]] = USES
    tensors: ClassVar[Mapping[str, AuxTensor]] = TENSORS

    def check(self, model: Classifier, params: ROADParams) -> None:
        shape = model.input_shape
        if (
            model.packing is not None
            or model.encoded
            or len(shape) > 3
            or channel_axis(model, shape) is None
        ):
            raise InvalidRequest.field(
                "model",
                f"road needs an image or a signal, whose layout is known; {model.name} has the "
                f"layout {model.input_layout!r}",
            )

    def run(self, model: Classifier, batch: Batch, params: ROADParams, job: Job) -> ROADResult:
        x, row = batch.inputs, tuple(batch.inputs.shape[1:])
        positions, channel = Positions.of(model, row), channel_axis(model, row)
        assert channel is not None
        shares = [int(share * positions.count / 100) for share in params.percentages]
        counts = torch.tensor(shares, device=x.device)
        found, kept = x.new_zeros(2, len(x), 2 * len(counts), dtype=torch.float64)
        of_classes = batch.targets.kind is TargetKind.CLASS and batch.targets.layer is None
        parts = passes(job, batch, 2 * len(counts))
        for step in job.track(1 + len(parts)):
            if not step:
                attributions = judged(model, batch, params, job)
                ranks = positions.ranks(per_value(model, batch, attributions, params), job)
                continue
            rows, numbers = parts[step - 1]
            least, share = numbers // len(counts), numbers % len(counts)
            places = ranks[rows]
            places = torch.where(least[:, None] == 1, positions.count - 1 - places, places)
            removed = places < counts[share, None]
            guessed = _guessed(x[rows], channel, removed)
            noise = _noise(guessed, [batch.seeds[index] for index in rows.tolist()], numbers)
            guessed = guessed + params.noise * model.scale * noise
            variants = torch.where(positions.where(removed), guessed, x[rows])
            targets = batch.targets.take(rows)
            values, logits = scores_and_logits(model, variants, targets, params.score)
            found[rows, numbers] = values
            if of_classes and logits is not None:
                kept[rows, numbers] = (logits.argmax(1) == targets.labels).double()
        morf_curve, lerf_curve = found.to(x.dtype).chunk(2, 1)
        morf, lerf = (curve.mean(1) for curve in found.chunk(2, 1))
        morf_kept, lerf_kept = kept.to(x.dtype).chunk(2, 1)
        return ROADResult(
            gap=(lerf - morf).to(x.dtype),
            morf=morf.to(x.dtype),
            lerf=lerf.to(x.dtype),
            morf_curve=morf_curve,
            lerf_curve=lerf_curve,
            attributions=attributions,
            morf_kept=morf_kept if of_classes else None,
            lerf_kept=lerf_kept if of_classes else None,
        )


def _guessed(x: Tensor, channel: int, removed: Tensor) -> Tensor:
    """`x` `(P, *row)` with the positions `(P, count)` guessed; a signal is an image of one line."""
    moved = x.movedim(channel + 1, 1)
    size = (*moved.shape[2:],) if x.dim() == 4 else (1, moved.shape[2])
    images = moved.reshape(len(x), moved.shape[1], *size)
    guessed = impute(images, removed.reshape(len(x), *size))
    return guessed.reshape(moved.shape).movedim(1, channel + 1)


def _noise(like: Tensor, seeds: list[int], numbers: Tensor) -> Tensor:
    sources = [generator(*pair) for pair in zip(seeds, numbers.tolist(), strict=True)]
    return torch.stack([torch.randn(like.shape[1:], generator=source) for source in sources]).to(
        like
    )
