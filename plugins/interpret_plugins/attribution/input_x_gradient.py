"""Input times gradient."""

from dataclasses import dataclass

from torch import Tensor

from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    Job,
    Kind,
    Params,
    Plugin,
    logits_before,
    output,
)

from .gradients import input_gradient

_ZERO = (
    "every product of an input value and its gradient is zero, as it always is for a value of 0; "
    "integrated_gradients can take another baseline"
)


class InputXGradientParams(Params):
    pass


@dataclass(frozen=True)
class InputXGradientResult:
    attributions: Tensor = output(
        "Each input value times the target's gradient by it, `(N, *input_shape)`, signed."
    )
    logits: Tensor | None = logits_before()


class InputXGradient(Plugin[InputXGradientParams, InputXGradientResult]):
    """Each input value times the gradient of the target by it.

    Values are in target units. The input counts in the model's own bounds, before normalisation,
    so a value of 0 gets nothing whatever it means to the network; tokens count by their
    embeddings. For a network without biases whose only non-linearities are rectifiers and max
    pooling, the values of a row sum to the target.

    Source: Shrikumar, Greenside, Shcherbina & Kundaje 2016, "Not Just a Black Box: Learning
    Important Features Through Propagating Activation Differences", section 3.
    """

    name = "input_x_gradient"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT})

    def run(
        self, model: Classifier, batch: Batch, params: InputXGradientParams, job: Job
    ) -> InputXGradientResult:
        gradient, logits = input_gradient(model, batch, job)
        products = batch.inputs * gradient
        zero = gradient.flatten(1).any(1) & ~products.flatten(1).any(1)
        if zero.any():
            job.warn(zero, _ZERO)
        return InputXGradientResult(products, logits)
