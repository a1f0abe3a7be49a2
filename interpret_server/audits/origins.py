"""Where an audit's figures come from, and whether a server can go on with them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from .. import __version__
from ..engine.api import ModelInfo, PluginInfo
from ..errors import FailedPrecondition
from .plan import Plan
from .records import Origin

_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "numpy")
_MUST_AGREE = {
    "model_sha256": "model",
    "device": "device",
    "precision": "precision",
    "input_shape": "shape of the input",
    "bounds": "bounds",
}


def origin_of(model: ModelInfo, plan: Plan, plugins: Sequence[PluginInfo], data: str) -> Origin:
    """The origin of the figures of a plan.

    Args:
        model: that is audited.
        plugins: all that the server has.
        data: what the data set is called.
    """
    assert model.bounds is not None  # plans are made for such models alone
    return Origin(
        model=model.name,
        model_version=model.version,
        model_sha256=model.sha256,
        model_format=model.format,
        manifest=json.dumps(model.manifest.model_dump(mode="json"), sort_keys=True),
        input_shape=model.input_shape,
        bounds=model.bounds,
        classes=model.classes,
        labels=model.labels,
        data=data,
        data_sha256="",
        versions=dict(_versions(plan, plugins)),
        device=model.device,
        precision=model.precision,
    )


def _versions(plan: Plan, plugins: Sequence[PluginInfo]) -> Iterator[tuple[str, str]]:
    yield "interpret-server", __version__
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
    used = {stage.plugin for stage in plan.stages}
    for plugin in plugins:
        if plugin.name in used:
            yield f"plugins.{plugin.name}", plugin.version


def check_same(origin: Origin, plan: Plan, model: ModelInfo, plugins: Sequence[PluginInfo]) -> None:
    """Refuse to add figures of another origin to those that are stored.

    Args:
        model: as it was loaded again from the audit's own copy.

    Raises:
        FailedPrecondition: naming what has changed.
    """
    now = origin_of(model, plan, plugins, origin.data)
    for name, words in _MUST_AGREE.items():
        before, after = getattr(origin, name), getattr(now, name)
        if before != after:
            raise FailedPrecondition(
                f"the audit began with the {words} {before}, and now it is {after}; figures of "
                "both would not belong together: create a new audit"
            )
    if plan.batch_size > model.max_batch:
        raise FailedPrecondition(
            f"the audit has batches of {plan.batch_size}, and the server now runs at most "
            f"{model.max_batch} rows at once; start it with the max_batch that it had"
        )
    _check_versions(origin.versions, now.versions)


def _check_versions(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise FailedPrecondition(
                f"the audit began with {name} {before.get(name, 'not installed')}, and now it is "
                f"{now.get(name, 'not installed')}; figures of both would not belong together: "
                "go on with a server of that version, or create a new audit"
            )
