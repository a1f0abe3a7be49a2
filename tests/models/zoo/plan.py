"""Which cells are run: all of them, or a few of every kind."""

from itertools import cycle, islice

import torch

from .architectures import ZOO
from .cells import Cell
from .exports import Export, Exporter

LEGACY_OPSETS = range(13, 21)
DYNAMO_OPSETS = range(18, 24)
_ARCHIVES = (Exporter.SCRIPT, Exporter.TRACE, Exporter.FREEZE)
_OTHER_ARCHIVES = (Exporter.MIXED, Exporter.FREEZE_TRACE)
_DOUBLE = torch.float64


def full() -> list[Cell]:
    """Every architecture, exporter, opset, batch and data type."""
    exports = [
        Export(exporter, dtype=dtype)
        for dtype in (torch.float32, _DOUBLE)
        for exporter in (*_ARCHIVES, *_OTHER_ARCHIVES)
    ]
    for dtype in (torch.float32, _DOUBLE):
        for dynamic in (True, False):
            exports.append(Export(Exporter.EXPORT, 0, dynamic, dtype))
            exports += [Export(Exporter.LEGACY, o, dynamic, dtype) for o in LEGACY_OPSETS]
            exports += [Export(Exporter.DYNAMO, o, dynamic, dtype) for o in DYNAMO_OPSETS]
    return [Cell(name, export) for name in ZOO for export in exports]


def covering() -> list[Cell]:
    """Every architecture with every exporter, free and fixed; the opsets take turns."""
    cells = []
    legacy = (list(islice(cycle(LEGACY_OPSETS), start, start + len(ZOO))) for start in (0, 3))
    dynamo = (list(islice(cycle(DYNAMO_OPSETS), start, start + len(ZOO))) for start in (0, 3))
    turns = zip(ZOO, *legacy, *dynamo, strict=True)
    for index, (name, old, old_fixed, new, new_fixed) in enumerate(turns):
        exports = [
            *(Export(exporter) for exporter in _ARCHIVES),
            Export(_ARCHIVES[index % 3], dtype=_DOUBLE),
            Export(_OTHER_ARCHIVES[index % 2]),
            Export(Exporter.EXPORT),
            Export(Exporter.EXPORT, dynamic=False),
            Export(Exporter.EXPORT, dtype=_DOUBLE),
            Export(Exporter.LEGACY, old),
            Export(Exporter.LEGACY, old_fixed, dynamic=False),
            Export(Exporter.DYNAMO, new),
            Export(Exporter.DYNAMO, new_fixed, dynamic=False),
            Export(Exporter.LEGACY, old_fixed, dtype=_DOUBLE)
            if index % 2
            else Export(Exporter.DYNAMO, new_fixed, dtype=_DOUBLE),
        ]
        cells += [Cell(name, export) for export in exports]
    return cells
