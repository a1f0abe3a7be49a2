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
        "parameters `baseline` and `spread`.",
        like_input=False,
    )
}
_ORDER = 1 << 40  # the step of the noise that shuffles examples


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


@dataclass(frozen=True)
class Background:
    """The baselines of every row.

    Args:
        model: that takes them.
        batch: of the call.
        centre: `(N, *input_shape)`, what others are drawn around.
        spread: standard deviation of the noise, in the input's units.
        given: `(N, B, *input_shape)`, or None.
    """

    model: Classifier
    batch: Batch
    centre: Tensor
    spread: float
    given: Tensor | None

    def example(self, number: int, stream: int) -> Tensor:
        """The given example of a number, modulo B, or one that is drawn, `(N, *input_shape)`.

        Args:
            number: 0 or more.
            stream: step of the noise that draws.
        """
        if self.given is not None:
            chosen = self.given[:, number % self.given.shape[1]]
        else:
            noise = normal_rows(self.batch.seeds, stream, self.centre)
            chosen = self.centre + self.spread * noise
        return self.model.carry(chosen, self.batch.inputs)

    def picked(self, numbers: Tensor, stream: int) -> Tensor:
        """The same with a number of its own for every row, `(N,)`."""
        if self.given is None:
            return self.example(0, stream)
        rows = torch.arange(len(numbers), device=self.given.device)
        chosen = self.given[rows, numbers % self.given.shape[1]]
        return self.model.carry(chosen, self.batch.inputs)

    def shuffled(self, samples: int) -> Tensor:
        """0 to `samples` - 1 in an order of each row's seed, `(samples, N)`."""
        orders = [
            torch.randperm(samples, generator=generator(seed, _ORDER)) for seed in self.batch.seeds
        ]
        return torch.stack(orders, 1).to(self.centre.device)


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
    return Background(model, batch, centre, params.spread * model.scale, given)
