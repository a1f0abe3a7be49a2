"""Expected gradients."""

from typing import ClassVar

from pydantic import Field

from interpret_server.noise import uniform_rows
from interpret_server.plugin import AuxTensor, Batch, Capability, Classifier, Job, Kind, Plugin

from .backgrounds import BASELINES, SAMPLES, BackgroundParams, background
from .baselines import check_baseline
from .path_samples import PathSamplesResult, Place, average_gradients


class ExpectedGradientsParams(BackgroundParams):
    samples: int = Field(
        100, ge=1, le=10_000, description="Gradients, each with a baseline and a place of its own."
    )


class ExpectedGradients(Plugin[ExpectedGradientsParams, PathSamplesResult]):
    """Integrated gradients averaged over a distribution of baselines, by sampling.

    `E[(x - x') dS(x' + a (x - x')) / dx]` over baselines `x'` and `a` uniform in [0, 1). Values are
    in target units and sum in expectation to `S(x) - E S(x')`; `convergence_delta` is what the sum
    misses, and rows where that is more than 5% of the difference are warned about. Both are drawn
    evenly, which leaves the expectation as it is: `a` lies once in each of `samples` equal parts of
    [0, 1), and baselines take turns in random order: those of the tensor `baselines`, or `draws` of
    normal noise around `baseline`. Everything random comes from each row's seed. Tokens are
    attributed by their embeddings.

    Source: Erion, Janizek, Sturmfels, Lundberg & Lee 2021, "Improving performance of deep learning
    models with axiomatic attribution priors and expected gradients".
    """

    name = "expected_gradients"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT})
    tensors: ClassVar[dict[str, AuxTensor]] = {**BASELINES}

    def check(self, model: Classifier, params: ExpectedGradientsParams) -> None:
        check_baseline(model, params.baseline)

    def run(
        self, model: Classifier, batch: Batch, params: ExpectedGradientsParams, job: Job
    ) -> PathSamplesResult:
        choice = background(model, batch, params)
        order = choice.shuffled(params.samples)

        def place(sample: int) -> Place:
            numbers = batch.inputs.new_empty(len(batch))
            within = uniform_rows(batch.seeds, SAMPLES + sample, numbers)
            start = choice.examples(order[sample])
            return Place(start, batch.inputs, (sample + within) / params.samples)

        return average_gradients(choice, params.samples, place, job)
