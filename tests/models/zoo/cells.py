"""One cell of the zoo: an architecture, exported once, loaded, measured and judged."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpret_server.models.classifier import Capability, Classifier
from interpret_server.models.loading import LoadedModel, load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.relu_rules import ReluRule
from interpret_server.models.targets import TargetKind, Targets
from tests.stand_in_device import stand_in_device

from .architectures import ZOO
from .exports import Export, Exporter, write
from .known import ROUNDED, ROUNDED_LIMIT, WAITS, find
from .measures import (
    GRADIENT,
    GUIDED,
    LAYER,
    LOGITS,
    ROWS,
    SLOPE,
    Synchronisations,
    Values,
    allowed,
    classes,
    direction,
    expected,
    relative,
)

NAMELESS = frozenset({Exporter.FREEZE, Exporter.FREEZE_TRACE})  # files that hold no module paths
_INPUT_FIELDS = ("layout", "bounds")


@dataclass(frozen=True)
class Cell:
    """An architecture and how it is exported."""

    name: str
    export: Export

    def __str__(self) -> str:
        return f"{self.name}-{self.export}"

    @property
    def middle(self) -> str | None:
        """The name that the checked layer must have; None where the file holds no names."""
        return None if self.export.exporter in NAMELESS else ZOO[self.name].middle

    def allowed(self, quantity: str) -> float:
        """The largest relative difference that passes."""
        limit = allowed(self.name, quantity, self.export.dtype)
        return ROUNDED_LIMIT if find(ROUNDED, self) and limit < ROUNDED_LIMIT else limit


@dataclass(frozen=True)
class Difference:
    """How far one quantity of a cell is from what it must be.

    Args:
        quantity: what was measured.
        measured: the largest difference over the largest value.
        allowed: the most that passes.
    """

    quantity: str
    measured: float
    allowed: float

    @property
    def passes(self) -> bool:
        return self.measured <= self.allowed

    def __str__(self) -> str:
        return f"{self.quantity} differs by {self.measured:.2e}, allowed {self.allowed:.2e}"


class LayerNotFound(AssertionError):
    """The classifier has no layer of the expected name, or none with the expected values."""


class ExporterRefuses(Exception):
    """The exporter does not write this cell; the message is its own, on one line."""


def load(cell: Cell, folder: Path) -> LoadedModel:
    """Export a cell to a file, and load that.

    Raises:
        ExporterRefuses: there is no file.
        InterpretError: the file is not served.
    """
    path = folder / f"{cell}{cell.export.suffix}"
    try:
        write(cell.name, cell.export, path)
    except Exception as error:
        raise ExporterRefuses(" ".join(str(error).split())) from error
    return load_classifier(cell.name, path, manifest(cell), device=torch.device("cpu"))


def manifest(cell: Cell) -> Manifest:
    """What a user would say of the file."""
    architecture = ZOO[cell.name]
    told = dict(architecture.manifest)
    inputs: list[dict[str, Any]] = [
        {
            "name": name,
            "shape": [None if axis in architecture.free else x.shape[axis] for axis in axes],
            "example": tuple(x.shape[1:]),
            "dtype": str(x.dtype).removeprefix("torch."),
        }
        for name, x in zip(
            architecture.names, architecture.example(1, cell.export.dtype), strict=True
        )
        for axes in [range(1, x.dim())]
    ]
    inputs[0] |= {key: told.pop(key) for key in _INPUT_FIELDS if key in told}
    return Manifest.model_validate({"inputs": inputs, **told})


def rows(cell: Cell, classifier: Classifier, *, elsewhere: bool = False) -> Tensor:
    """The architecture's rows as the classifier takes them."""
    given = ZOO[cell.name].rows(ROWS, cell.export.dtype, elsewhere=elsewhere)
    packed = (
        given[0] if len(given) == 1 else torch.cat([x.reshape(ROWS, -1).double() for x in given], 1)
    )
    return classifier.encode(packed)


def find_layer(cell: Cell, classifier: Classifier, x: Tensor) -> str:
    """The name of the layer to check: the module path, or else where the values are its.

    Raises:
        LayerNotFound: there is none.
    """
    if cell.middle is not None:
        if cell.middle in classifier.layers:
            return cell.middle
        raise LayerNotFound(f"no layer {cell.middle} among {', '.join(classifier.layers)}")
    values = expected(cell.name, cell.export.dtype)[LAYER]
    alike = [n for n, layer in classifier.layers.items() if layer.shape == values.shape[1:]]
    with torch.no_grad():
        found = classifier.activations(x, alike)
    for name, value in zip(alike, found, strict=True):
        if relative(value, values) <= cell.allowed(LAYER):
            return name
    raise LayerNotFound(f"no layer has the values of {ZOO[cell.name].middle}")


def measure(classifier: Classifier, x: Tensor, layer: str) -> Values:
    """The quantities of a classifier at encoded rows."""
    with torch.no_grad():
        logits = classifier(x)
        (values,) = classifier.activations(x, [layer])
    chosen = Targets.classes(classes(len(x), classifier.classes)).to(x.device)
    along = Targets(
        TargetKind.DIRECTION,
        torch.zeros(len(x), 0, dtype=torch.int64, device=x.device),
        layer,
        direction(values).to(values).expand_as(values),
    )
    quantities = {
        LOGITS: logits,
        GRADIENT: _first_input(classifier, classifier.gradient(x, chosen).inputs),
        LAYER: values,
        SLOPE: _first_input(classifier, classifier.gradient(x, along).inputs),
    }
    if Capability.RECTIFIERS in classifier.capabilities:
        guided = classifier.gradient(x, chosen, ReluRule.GUIDED)
        quantities[GUIDED] = _first_input(classifier, guided.inputs)
    return quantities


def _first_input(classifier: Classifier, gradient: Tensor) -> Tensor:
    return next(iter(classifier.split(gradient).values()))


def judge(cell: Cell, loaded: LoadedModel) -> list[Difference]:
    """Every quantity against the eager module's, and every row of a batch against itself alone.

    Moves the classifier to another device at last.

    Raises:
        LayerNotFound: the layer to check is not there.
    """
    classifier, dtype = loaded.classifier, cell.export.dtype
    x = rows(cell, classifier)
    layer = find_layer(cell, classifier, x)
    together = measure(classifier, x, layer)
    first, last = (measure(classifier, x[row : row + 1], layer) for row in (0, ROWS - 1))
    differences = [
        *_compare(cell, "at batch 5", together, expected(cell.name, dtype)),
        *_compare(cell, "at batch 1", first, expected(cell.name, dtype, 1)),
        # The class asked for depends on the row's position in its batch.
        *_compare(
            cell,
            "of the last row alone",
            {name: last[name] for name in (LOGITS, LAYER, SLOPE)},
            {name: together[name][-1:] for name in (LOGITS, LAYER, SLOPE)},
        ),
    ]
    with torch.no_grad(), Synchronisations() as waits:
        classifier(x)
    if find(WAITS, cell) is None:
        differences.append(Difference("the host's waits for the device", len(waits.found), 0))
    if ZOO[cell.name].elsewhere is not None:
        other = measure(classifier, rows(cell, classifier, elsewhere=True), layer)
        differences += _compare(
            cell, "at another size", other, expected(cell.name, dtype, elsewhere=True)
        )
    differences += _compare(cell, "on another device", far(classifier, x, layer), together)
    return differences


def far(classifier: Classifier, x: Tensor, layer: str) -> Values:
    """The quantities on a stand-in for a GPU, where the classifier then stays."""
    with stand_in_device() as device:
        found = measure(classifier.to(device), x.to(device), layer)
        return {quantity: value.cpu() for quantity, value in found.items()}


def _compare(cell: Cell, where: str, found: Values, reference: Values) -> list[Difference]:
    return [
        Difference(
            f"{quantity} {where}",
            relative(found[quantity], reference[quantity])
            if quantity in found and quantity in reference
            else float("inf"),
            cell.allowed(quantity),
        )
        for quantity in dict.fromkeys((*found, *reference))
    ]
