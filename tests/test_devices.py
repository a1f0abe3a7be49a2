"""Plugins keep to the model's device: on a stand-in for a GPU they answer as on the CPU."""

import enum
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from interpret_server.engine.methods import Methods
from interpret_server.errors import InterpretError
from interpret_server.models.classifier import Classifier
from interpret_server.models.targets import TargetKind
from interpret_server.plugin import Job, Plugin, result_tensors
from interpret_server.registry import Registry
from interpret_server.testing import classifier
from interpret_server.testing.seconds import fill_roles
from interpret_server.testing.subjects import batch_of, subjects, targets_to_try
from tests.plugins.attribution.transformers import IMAGE, vision
from tests.stand_in_device import DEVICE, Distant, stand_in_device
from tests.test_conformance import POINTS, few, own_tensors

ROWS = 3
COLOUR, GREY, SIGNALS = 0, 1, 3  # of the suite's subjects; the last two in float64
AnyPlugin = Plugin[Any, Any]


def test_the_stand_in_computes_and_keeps_apart() -> None:
    with stand_in_device():
        x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).to(DEVICE).requires_grad_()
        (gradient,) = torch.autograd.grad((x * x).sum(), x)
        assert isinstance(gradient, Distant)
        assert gradient.tolist() == [[2.0, 4.0], [6.0, 8.0]]
        assert (x.detach() + torch.tensor(1.0)).cpu().tolist() == [[2.0, 3.0], [4.0, 5.0]]
        assert x.detach()[torch.tensor([1])].tolist() == [[3.0, 4.0]]
        near = torch.ones(2)
        with pytest.raises(RuntimeError, match="two devices"):
            x.detach() + near
        with pytest.raises(RuntimeError, match="two devices"):
            near[torch.tensor([1], device=DEVICE)]
        with pytest.raises(RuntimeError, match="numpy"):
            x.detach().numpy()


def answer(
    plugin: AnyPlugin, model: Classifier, params: Mapping[str, Any], kind: TargetKind, *, far: bool
) -> dict[str, Tensor]:
    """The plugin's result, moved to the CPU."""
    made = plugin.params_type.model_validate(dict(params))
    seconds = fill_roles(plugin.models, model)
    others = {item.plugin.name: item for item in Registry.installed()} if plugin.uses else {}
    Methods(model, others, plugin.tensors.keys(), seconds).resolve(plugin, made)
    plugin.check(model, made)
    batch = batch_of(plugin, model, targets_to_try(kind, model, ROWS)[0], own_tensors(plugin))
    if far:
        for item in (model, *seconds.values()):
            item.to(DEVICE)
        tensors = {name: tensor.to(DEVICE) for name, tensor in batch.tensors.items()}
        inputs, targets = batch.inputs.to(DEVICE), batch.targets.to(DEVICE)
        batch = replace(batch, inputs=inputs, targets=targets, tensors=tensors)
    result = plugin.run(model, batch, made, Job(seconds))
    found = result if isinstance(result, Mapping) else result_tensors(result)
    return {name: value.detach().to("cpu") for name, value in found.items()}


def variants(plugin: AnyPlugin) -> Iterator[dict[str, Any]]:
    """The default parameters with one choice made otherwise."""
    for name, field in plugin.params_type.model_fields.items():
        for value in choices(field.annotation):
            if value != field.default:
                yield {**few(plugin), name: value}


def choices(annotation: Any) -> list[Any]:
    """The values of a type that has few."""
    if annotation is bool:
        return [False, True]
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return list(annotation)
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return list(typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return [value for part in typing.get_args(annotation) for value in choices(part)]
    return []


def agree(plugin: AnyPlugin, index: int, params: Mapping[str, Any], kind: TargetKind) -> bool:
    """Compare the two devices, values in float64 alone; False where the plugin refuses this."""

    def subject() -> Classifier:
        if plugin.name == "attention_rollout":
            return classifier(vision().double(), IMAGE, input_layout="CHW")
        return subjects()[index]

    try:
        here = answer(plugin, subject(), params, kind, far=False)
    except (InterpretError, ValidationError):
        return False
    with stand_in_device():
        there = answer(plugin, subject(), params, kind, far=True)
    assert here.keys() == there.keys()
    if subject().dtype is not torch.float64:
        return True  # rounding may decide what an attack finds
    for name, value in here.items():
        size = float(value.double().abs().nan_to_num(0, 0, 0).max()) if value.numel() else 1.0
        torch.testing.assert_close(
            there[name],
            value,
            rtol=1e-3,
            atol=1e-4 * max(1.0, size),
            equal_nan=True,
            msg=lambda text, name=name: f"{plugin.name} {dict(params)} {kind} {name}: {text}",
        )
    return True


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_a_plugin_answers_the_same_on_another_device(point: EntryPoint) -> None:
    plugin: AnyPlugin = point.load()()
    kinds = sorted(plugin.target_kinds or {TargetKind.NONE})
    usual = TargetKind.CLASS if TargetKind.CLASS in kinds else kinds[0]
    if plugin.name == "attention_rollout":
        runs = [agree(plugin, 0, few(plugin), kind) for kind in kinds]
    else:
        runs = [agree(plugin, index, few(plugin), usual) for index in (COLOUR, SIGNALS)]
        runs += [agree(plugin, GREY, few(plugin), kind) for kind in kinds]
        runs += [agree(plugin, GREY, params, usual) for params in variants(plugin)]
    assert any(runs)
