"""Several variants of every row in one pass through the model."""

from itertools import pairwise

import torch
from torch import Tensor

from interpret_server.models.relu_rules import ReluRule
from interpret_server.plugin import Classifier, Job, Targets


def passes(job: Job, rows: int, variants: int) -> list[range]:
    """The numbers 0 to `variants` - 1 in even parts, one for each pass.

    A pass holds as many variants of every row as `job.max_rows` allows, and at least one.

    Args:
        job: that the passes belong to.
        rows: of the batch.
        variants: of every row, at least 1.
    """
    together = max(1, job.max_rows // max(1, rows))
    count = -(-variants // together)
    edges = [variants * number // count for number in range(count + 1)]
    return [range(first, last) for first, last in pairwise(edges)]


def variant_gradients(
    model: Classifier, variants: Tensor, targets: Targets, rule: ReluRule = ReluRule.PLAIN
) -> Tensor:
    """The gradient of row i's target at each variant of row i, like `variants`.

    Args:
        model: to differentiate.
        variants: `(P, N, *input_shape)`.
        targets: of the N rows.
        rule: of the rectifiers.
    """
    count, rows = variants.shape[:2]
    index = torch.arange(rows, device=variants.device).repeat(count)
    gradient = model.gradient(variants.flatten(0, 1), targets.take(index), rule)
    return gradient.inputs.reshape(variants.shape)
