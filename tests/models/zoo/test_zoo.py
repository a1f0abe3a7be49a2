"""Every architecture, however exported, is served as the eager module computes it.

By default a covering choice of cells; with ZOO=full in the environment, all of them.
"""

import os
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from captum.attr import GuidedBackprop
from torch import nn

from .architectures import ZOO, eager
from .cells import Cell, ExporterRefuses, judge, load
from .exports import Exporter, parameters
from .known import DEFECTS, REFUSED, find
from .measures import GRADIENT, GUIDED, ROWS, classes, expected, noise, relative, tapped
from .plan import DYNAMO_OPSETS, LEGACY_OPSETS, covering, full

CELLS = full() if os.environ.get("ZOO") == "full" else covering()
SEPARATE_RELUS = ("channels_last", "bytes", "unet", "binary", "softmax", "free_size")


def _parameters(cells: list[Cell]) -> list[object]:
    marked = []
    for cell in cells:
        defect = find(DEFECTS, cell)
        marks = [pytest.mark.xfail(reason=defect, strict=True)] if defect else []
        marked.append(pytest.param(cell, id=str(cell), marks=marks))
    return marked


@pytest.mark.parametrize("cell", _parameters(CELLS))
def test_served_as_the_eager_module_computes(cell: Cell, tmp_path: Path) -> None:
    refusal = find(REFUSED, cell)
    try:
        loaded = load(cell, tmp_path)
    except ExporterRefuses as error:
        if refusal is None or refusal not in str(error):
            raise
        pytest.skip(f"{cell}: the exporter refuses: {refusal}")
    assert refusal is None, f"{cell}: the exporter no longer refuses"
    assert loaded.info.form == "graph", f"{cell}: {loaded.info.form_reason}"
    if cell.export.dynamic:
        assert not loaded.info.form_reason, f"{cell}: {loaded.info.form_reason}"
    wrong = [str(item) for item in judge(cell, loaded) if not item.passes]
    assert not wrong, f"{cell}: {'; '.join(wrong)}"


def test_every_architecture_meets_every_exporter_and_every_opset_occurs() -> None:
    cells = covering()
    assert set(map(str, cells)) <= set(map(str, full()))
    for name in ZOO:
        exporters = Counter(cell.export.exporter for cell in cells if cell.name == name)
        assert len(exporters) >= len(Exporter) - 1, name  # mixed and frozen traces take turns
    for exporter, opsets in ((Exporter.LEGACY, LEGACY_OPSETS), (Exporter.DYNAMO, DYNAMO_OPSETS)):
        found = Counter(cell.export.opset for cell in cells if cell.export.exporter is exporter)
        assert set(found) == set(opsets)
        assert min(found.values()) >= 3


@pytest.mark.parametrize("name", ZOO)
def test_networks_are_small_and_do_something(name: str) -> None:
    module = eager(name)
    assert parameters(module) < 300_000
    values = expected(name, torch.float32)
    assert all(value.isfinite().all() and value.abs().max() > 1e-6 for value in values.values())
    assert max(noise(name, quantity) for quantity in values) < 1e-5 / 4
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_mean.abs().max() > 1e-3


@pytest.mark.parametrize("name", ZOO)
def test_nothing_changes_the_checked_layer_in_place(name: str) -> None:
    module, (path, _, call) = eager(name), ZOO[name].middle.partition(":")
    with tapped(module, path) as values, torch.no_grad():
        hook = module.get_submodule(path).register_forward_hook(lambda _m, _x, y: copies.append(+y))
        copies: list[torch.Tensor] = []
        module(*ZOO[name].rows(ROWS))
        hook.remove()
    assert torch.equal(values[int(call or 0)], copies[int(call or 0)])


@pytest.mark.parametrize("name", SEPARATE_RELUS)
def test_guided_backprop_of_the_eager_module_is_captums(name: str) -> None:
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = eager(name, torch.float64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return ZOO[name].logits(self.module, (x,))

    (x,) = ZOO[name].rows(ROWS, torch.float64)
    values = expected(name, torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target = classes(ROWS, values["logits"].shape[1])
        found = GuidedBackprop(Logits()).attribute(x.requires_grad_(), target=target)
    assert relative(found, values[GUIDED]) <= 1e-12
    assert relative(values[GRADIENT], values[GUIDED]) > 1e-2
