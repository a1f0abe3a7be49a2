"""From computed tensors to the `Result` and the pictures that a caller gets."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from .. import __version__
from ..plugin import Role, role_of
from ..registry import AnyPlugin
from .api import Prediction, Provenance, Result, SecondModel
from .arrays import to_array
from .drawing import draw
from .explained import by_input, token_attributions
from .member import Outcome
from .request import Request
from .targets import report_targets

_TOP = 5


def assemble(request: Request, outcome: Outcome) -> Result:
    """A call's result: named tensors, metrics, predictions, pictures and provenance."""
    by_role: dict[Role, dict[str, Tensor]] = {role: {} for role in Role}
    for name, value in outcome.tensors.items():
        by_role[_role(request.plugin, name)][name] = value
    parts = by_input(request, by_role[Role.TENSOR] | by_role[Role.GROUP])
    sent = parts | token_attributions(request, parts)
    tensors = {name: to_array(value, half=request.call.half) for name, value in sent.items()}
    pictures, remarks = draw(request, sent, by_role[Role.LOGITS_BEFORE])
    labels = request.served.info.labels
    return Result(
        tensors=tensors,
        metrics={
            name: tuple(float(number) for number in value.flatten().tolist())
            for name, value in by_role[Role.METRIC].items()
        },
        before=_predictions(by_role[Role.LOGITS_BEFORE], labels),
        after=_predictions(by_role[Role.LOGITS_AFTER], labels),
        warnings=outcome.warnings + remarks,
        pictures=pictures,
        provenance=_provenance(request, outcome),
    )


def _role(plugin: AnyPlugin, name: str) -> Role:
    if not isinstance(plugin.result_type, type):  # a mapping with names of its own
        return Role.TENSOR
    return role_of(plugin.result_type, name)


def _predictions(logits: Mapping[str, Tensor], labels: Sequence[str]) -> tuple[Prediction, ...]:
    if not logits:
        return ()
    (values,) = logits.values()
    values = values.float()
    probabilities = values.softmax(1)
    top = values.topk(min(_TOP, values.shape[1]), dim=1)
    return tuple(
        Prediction(
            classes=tuple(classes),
            probabilities=tuple(chances),
            logits=tuple(heights),
            labels=tuple(labels[index] for index in classes) if labels else (),
        )
        for classes, chances, heights in zip(
            top.indices.tolist(),
            probabilities.gather(1, top.indices).tolist(),
            top.values.tolist(),
            strict=True,
        )
    )


def _provenance(request: Request, outcome: Outcome) -> Provenance:
    info, registration = request.served.info, request.registration
    return Provenance(
        model=info.name,
        model_sha256=info.sha256,
        model_version=info.version,
        plugin=request.plugin.name,
        plugin_version=registration.version,
        server_version=__version__,
        params=request.params_json,
        targets=report_targets(request.call.targets, outcome.predicted, request.rows),
        seeds=request.batch.seeds,
        device=info.device,
        precision=info.precision,
        queue_seconds=outcome.queue_seconds,
        run_seconds=outcome.run_seconds,
        batch_rows=outcome.batch_rows,
        models=tuple(
            SecondModel(role, second.info.name, second.info.sha256, second.info.version)
            for role, second in sorted(request.models.items())
        ),
    )
