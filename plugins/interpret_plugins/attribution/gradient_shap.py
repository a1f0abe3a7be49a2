"""GradientSHAP."""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from interpret_server.noise import normal_rows, uniform_rows
from interpret_server.plugin import AuxTensor, Batch, Capability, Classifier, Job, Kind, Plugin

from .backgrounds import BASELINES, BackgroundParams, background
from .baselines import check_baseline
from .path_samples import PathSamplesResult, Place, average_gradients


class GradientShapParams(BackgroundParams):
    samples: int = Field(
        50, ge=1, le=10_000, description="Gradients, each with a baseline and noise of its own."
    )
    noise: float = Field(
        0.05,
        ge=0,
        le=10,
        description="Standard deviation of the normal noise on the input, as a share of the "
        "bounds' width; in the input's own units where the model states no bounds.",
    )


class GradientShap(Plugin[GradientShapParams, PathSamplesResult]):
    """Gradients at random places between random baselines and noisy inputs, averaged.

    The mean over samples of `(x + e - x') dS(x' + a (x + e - x')) / dx`, with a random baseline
    `x'`, `a` uniform in [0, 1) and normal noise `e`. Values are in target units; their expectation
    sums to that of `S(x + e) - S(x')`. `convergence_delta` is what the sum misses of
    `S(x) - mean S(x')` over the baselines drawn, and rows where that is more than 5% of the
    difference are warned about. Baselines are drawn from the tensor `baselines`, or are normal
    noise around `baseline`; everything random comes from each row's seed. Tokens are attributed by
    their embeddings.

    Source: Lundberg & Lee's SHAP library (GradientExplainer), after expected gradients (Erion,
    Janizek, Sturmfels, Lundberg & Lee 2021) and SmoothGrad (Smilkov et al. 2017).
    """

    name = "gradient_shap"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT})
    tensors: ClassVar[dict[str, AuxTensor]] = {**BASELINES}

    def check(self, model: Classifier, params: GradientShapParams) -> None:
        check_baseline(model, params.baseline)

    def run(
        self, model: Classifier, batch: Batch, params: GradientShapParams, job: Job
    ) -> PathSamplesResult:
        choice = background(model, batch, params)
        examples = 1 if choice.given is None else choice.given.shape[1]

        def place(sample: int) -> Place:
            # three steps of noise each: of the baseline, of the input, of both numbers
            numbers = uniform_rows(
                batch.seeds, 3 * sample + 2, batch.inputs.new_empty(len(batch), 2)
            )
            start = choice.picked((numbers[:, 0] * examples).long(), 3 * sample)
            return Place(start, noisy(sample), numbers[:, 1])

        def noisy(sample: int) -> Tensor:
            noise = normal_rows(batch.seeds, 3 * sample + 1, batch.inputs)
            values = batch.inputs + params.noise * model.scale * noise
            return model.carry(values, batch.inputs)

        return average_gradients(model, batch, params.samples, place, job)
