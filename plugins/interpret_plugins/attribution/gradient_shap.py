"""GradientSHAP."""

from typing import ClassVar

from pydantic import Field

from interpret_server.noise import normal_rows, uniform_rows
from interpret_server.plugin import AuxTensor, Batch, Capability, Classifier, Job, Kind, Plugin

from .backgrounds import BASELINES, SAMPLES, BackgroundParams, background
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
    `S(x) - mean S(x')`, and rows where that is more than 5% of the
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

        def place(sample: int) -> Place:
            step = SAMPLES + 2 * sample
            numbers = uniform_rows(batch.seeds, step, batch.inputs.new_empty(len(batch), 2))
            start = choice.examples((numbers[:, 0] * choice.count).long())
            noise = params.noise * model.scale * normal_rows(batch.seeds, step + 1, batch.inputs)
            end = model.carry(batch.inputs + noise, batch.inputs)
            return Place(start, end, numbers[:, 1])

        return average_gradients(choice, params.samples, place, job)
