"""A layer's codes of many inputs as points in the plane."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Params,
    Plugin,
    Rows,
    TargetKind,
    group_output,
    logits_before,
    metric,
    output,
)

from .embedding import PrincipalComponents, StochasticNeighbours, conditional, trustworthiness
from .layers import LAYER, layer_before, over_positions, position_of
from .parts import parts

_MOST_VALUES = 1 << 26  # of all codes together: half a gigabyte
_MOST_COMPONENTS = 2048  # rows or values of a code, whichever are fewer
_MOST_NEIGHBOURS = 3000  # rows of t-SNE, whose work grows with their square
_TOGETHER = 128  # rows whose distances to all others are looked at in one step


class CodeEmbeddingParams(Params):
    layer: str | None = Field(None, description=f"The layer whose values are the codes; {LAYER}")
    pool: bool = Field(
        True, description="A code is the mean over positions, one value for each channel."
    )
    method: Literal["pca", "tsne"] = Field(
        "pca",
        description="What `positions` are: the first two principal components, or t-SNE, which "
        "begins with them.",
    )
    components: int = Field(2, ge=2, le=64, description="Principal components that are given.")
    perplexity: float | None = Field(
        None,
        ge=1,
        le=500,
        description="t-SNE's neighbours, roughly; below the number of rows. null: 30, or a third "
        "of the rows where they are few.",
    )
    steps: int = Field(
        1000, ge=1, le=10_000, description="Iterations of t-SNE, a quarter of them exaggerated."
    )
    neighbours: int = Field(
        5,
        ge=1,
        le=100,
        description="Neighbours that trustworthiness is about; below half the rows.",
    )


@dataclass(frozen=True)
class CodeEmbeddingResult:
    positions: Tensor = output("Where each input lies, `(N, 2)`.", like_input=False)
    components: Tensor = output(
        "Codes along the principal components, `(N, components)`.", like_input=False
    )
    predicted: Tensor = metric("The class that the model predicts.")
    trustworthiness: Tensor = metric(
        "How far a row's neighbours among the positions are neighbours among the codes, at most 1; "
        "the mean over all rows is the embedding's."
    )
    layer: Tensor = metric("Position of the layer in the model's list, from 0.")
    explained_variance: Tensor = group_output("Variance along each component, `(components,)`.")
    explained_share: Tensor = group_output("The same as a share of all variance.")
    divergence: Tensor | None = group_output(
        "What t-SNE minimised, the Kullback-Leibler divergence in nats, `()`."
    )
    logits: Tensor | None = logits_before()


class CodeEmbedding(Plugin[CodeEmbeddingParams, CodeEmbeddingResult]):
    """The codes that a layer has for many inputs, as points in the plane.

    The inputs are those of the request. Principal components say how far codes vary along straight
    lines; t-SNE keeps neighbours together and says nothing by its distances and densities. It
    compares all pairs, so at most 3,000 inputs are taken. No random number is drawn: t-SNE begins
    with the principal components. A component's largest loading is positive.

    Source: van der Maaten & Hinton 2008, "Visualizing Data using t-SNE", section 3; Kobak & Berens
    2019, "The art of using t-SNE for single-cell transcriptomics", for the start and the learning
    rate; Venna & Kaski 2001, "Neighborhood Preservation in Nonlinear Projection Methods", for the
    trustworthiness.
    """

    name = "code_embedding"
    kind = Kind.INTERNALS
    requires = frozenset({Capability.LAYERS})
    rows = Rows.COLLECTION
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset()

    def check(self, model: Classifier, params: CodeEmbeddingParams) -> None:
        if params.layer is not None:
            model.layer(params.layer, "params.layer")

    def run(
        self, model: Classifier, batch: Batch, params: CodeEmbeddingParams, job: Job
    ) -> CodeEmbeddingResult:
        layer = layer_before(model, None, params.layer)
        shape = model.layer_shape(layer.name, tuple(batch.inputs.shape[1:]))
        _check_size(len(batch), shape, params)
        work = _Work(model, batch, params, layer.name, job.max_rows)
        for step in job.track(len(work.steps)):
            work.steps[step]()
        return CodeEmbeddingResult(
            work.positions,
            work.principal.scores,
            work.logits.argmax(1),
            torch.cat(work.trust),
            position_of(model, layer, len(batch)),
            work.principal.variance,
            work.principal.share,
            work.divergence,
            work.logits,
        )


class _Work:
    """All there is to do, in steps that are short each."""

    principal: PrincipalComponents
    neighbours: StochasticNeighbours
    positions: Tensor
    logits: Tensor

    def __init__(
        self,
        model: Classifier,
        batch: Batch,
        params: CodeEmbeddingParams,
        layer: str,
        together: int,
    ) -> None:
        rows = len(batch)
        self._model, self._layer, self._params = model, layer, params
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._likely: list[Tensor] = []
        self.trust: list[Tensor] = []
        self.divergence: Tensor | None = None
        few = parts(rows, _TOGETHER)
        self.steps: list[Callable[[], None]] = [
            partial(self._read, inputs) for inputs in torch.split(batch.inputs, together)
        ]
        self.steps.append(self._components)
        if params.method == "tsne":
            default = max(1.0, min(30.0, (rows - 1) / 3))
            perplexity = params.perplexity or default
            self.steps += [partial(self._neighbourhoods, part, perplexity) for part in few]
            self.steps.append(self._begin)
            self.steps += [partial(self._iterate, number) for number in range(params.steps)]
        self.steps += [partial(self._judge, part) for part in few]

    @torch.no_grad()
    def _read(self, inputs: Tensor) -> None:
        (values,) = self._model.activations(inputs, [self._layer])
        if self._params.pool:
            values = over_positions(values) / max(1, values[0, 0].numel())
        self._parts.append((values.flatten(1).double(), self._model(inputs)))

    def _components(self) -> None:
        codes, logits = zip(*self._parts, strict=True)
        self._codes, self.logits = torch.cat(codes), torch.cat(logits)
        self._parts.clear()
        self.principal = PrincipalComponents(self._codes, self._params.components)
        self.positions = self.principal.scores[:, :2]

    def _neighbourhoods(self, part: range, perplexity: float) -> None:
        self._likely.append(conditional(self._codes, part, perplexity))

    def _begin(self) -> None:
        self.neighbours = StochasticNeighbours(
            torch.cat(self._likely), self.positions, self._params.steps
        )
        self._likely.clear()

    def _iterate(self, number: int) -> None:
        self.neighbours.step(number)
        if number == self._params.steps - 1:
            self.positions = self.neighbours.positions
            self.divergence = self.neighbours.divergence()

    def _judge(self, part: range) -> None:
        k = min(self._params.neighbours, (len(self._codes) - 1) // 2)
        self.trust.append(
            trustworthiness(self._codes, self.positions, part, k)
            if k
            else self._codes.new_ones(len(part))
        )


def _check_size(rows: int, shape: tuple[int, ...], params: CodeEmbeddingParams) -> None:
    """Refuse what would take too much memory or too long.

    Raises:
        InvalidRequest: naming the field.
    """
    if params.method == "tsne" and not 4 <= rows <= _MOST_NEIGHBOURS:
        raise InvalidRequest.field(
            "params.method", f"t-SNE takes 4 to {_MOST_NEIGHBOURS} rows, not {rows}"
        )
    if params.method == "tsne" and (params.perplexity or 1) >= rows:
        raise InvalidRequest.field(
            "params.perplexity", f"{params.perplexity:g} is not below the {rows} rows"
        )
    pooled = shape[:1] if params.pool else shape
    values = int(torch.Size(pooled).numel())
    if rows * values > _MOST_VALUES or min(rows, values) > _MOST_COMPONENTS:
        raise InvalidRequest.field(
            "inputs" if params.pool else "params.pool",
            f"{rows} codes of {values} values are too many: at most {_MOST_VALUES} values in all, "
            f"and {_MOST_COMPONENTS} rows or values of a code, whichever are fewer; send fewer "
            "rows, pool, or name another layer",
        )
