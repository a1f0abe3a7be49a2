"""Distributions of baselines: examples that the request brings, or noise around one baseline."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.noise import generator, normal_rows
from interpret_server.plugin import AuxTensor, Batch, Classifier, InvalidRequest, Params

from .baselines import Baseline, baseline_rows

BASELINES: Mapping[str, AuxTensor] = {
    "baselines": AuxTensor(
        "The examples that each row is compared with, `(N, B, *input_shape)`, in place of the "
        "parameters `baseline`, `spread` and `draws`.",
        like_input=False,
    )
}
SAMPLES = 1 << 32  # the first step of noise that does not draw baselines
_ORDER = 1 << 40  # the step of the noise that shuffles them


class BackgroundParams(Params):
    """What every method that compares with several baselines can be told."""

    baseline: Baseline = Field(
        Baseline.ZERO,
        description="What baselines are drawn around, in the model's own units: zero, the lower or "
        "the upper bound, or the manifest's mean (else the middle of the bounds). The tensor "
        "`baselines` replaces it.",
    )
    spread: float = Field(
        0.1,
        ge=0,
        le=10,
        description="Standard deviation of the normal noise that makes baselines of that one, as a "
        "share of the bounds' width; in the input's own units where the model states no bounds.",
    )
    draws: int = Field(
        16,
        ge=1,
        le=1000,
        description="Baselines of each row that are drawn so; all of the tensor `baselines` where "
        "it is given.",
    )


@dataclass(frozen=True)
class Background:
    """The baselines of every row.

    Args:
        model: that takes them.
        batch: of the call.
        centre: `(N, *input_shape)`, what others are drawn around.
        spread: standard deviation of the noise, in the input's units.
        count: B, how many there are.
        given: `(N, B, *input_shape)`, or None where they are drawn.
    """

    model: Classifier
    batch: Batch
    centre: Tensor
    spread: float
    count: int
    given: Tensor | None

    def example(self, number: int) -> Tensor:
        """The baselines of a number below B, `(N, *input_shape)`."""
        return self.examples(torch.full((len(self.batch),), number))

    def examples(self, numbers: Tensor) -> Tensor:
        """The same with a number of its own for every row, `(N,)`."""
        if self.given is not None:
            rows = torch.arange(len(numbers), device=self.given.device)
            chosen = self.given[rows, numbers.to(self.given.device)]
        else:
            rows_alone = zip(
                self.batch.seeds, numbers.tolist(), torch.split(self.centre, 1), strict=True
            )
            noise = [normal_rows((seed,), number, row) for seed, number, row in rows_alone]
            chosen = self.centre + self.spread * torch.cat(noise)
        return self.model.carry(chosen, self.batch.inputs)

    def shuffled(self, samples: int) -> Tensor:
        """Numbers below B by turns, in an order of each row's seed, `(samples, N)`."""
        orders = [
            torch.randperm(samples, generator=generator(seed, _ORDER)) for seed in self.batch.seeds
        ]
        return torch.stack(orders, 1) % self.count


def background(model: Classifier, batch: Batch, params: BackgroundParams) -> Background:
    """The baselines that a request asks for.

    Raises:
        InvalidRequest: the tensor `baselines` does not suit the model.
    """
    given = batch.tensors.get("baselines")
    if given is not None:
        row = tuple(batch.inputs.shape[1:])
        if model.packing is not None:
            raise InvalidRequest.field(
                "tensors.baselines",
                f"{model.name} takes several inputs, and so no tensor like its input",
            )
        if tuple(given.shape[2:]) != row or not given.shape[1]:
            raise InvalidRequest.field(
                "tensors.baselines",
                f"the shape is {list(given.shape)}; {model.name} takes "
                f"[rows, baselines, {', '.join(map(str, row))}], with 1 baseline at least",
            )
    centre = baseline_rows(model, params.baseline, batch.inputs)
    count = params.draws if given is None else given.shape[1]
    return Background(model, batch, centre, params.spread * model.scale, count, given)
