"""Which cells are run: all of them, or a few of every kind."""

from itertools import cycle

import torch

from .architectures import ZOO
from .cells import Cell
from .exports import Export, Exporter

LEGACY_OPSETS = range(13, 21)
DYNAMO_OPSETS = range(18, 24)
_ARCHIVES = (Exporter.SCRIPT, Exporter.TRACE, Exporter.FREEZE)
_OTHER_ARCHIVES = (Exporter.MIXED, Exporter.FREEZE_TRACE)
_DOUBLE = torch.float64
# onnxruntime broadcasts no mask of this operator, so it does not run this sound file.
_ALSO = (Cell("transformer_masked", Export(Exporter.DYNAMO, 23)),)


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
    """Every architecture with every exporter; opsets, fixed batches and float64 take turns."""
    # From where attention and float64 do not meet an opset that the exporter refuses.
    old, new = cycle((*LEGACY_OPSETS[5:], *LEGACY_OPSETS[:5])), cycle(DYNAMO_OPSETS)
    cells = list(_ALSO)
    for index, name in enumerate(ZOO):
        even = index % 2 == 0
        exports = [
            *(Export(exporter) for exporter in _ARCHIVES),
            Export(_OTHER_ARCHIVES[index % 2]),
            Export(_ARCHIVES[index % 3], dtype=_DOUBLE),
            Export(Exporter.EXPORT),
            Export(Exporter.EXPORT, dtype=_DOUBLE)
            if even
            else Export(Exporter.EXPORT, dynamic=False),
            Export(Exporter.LEGACY, next(old)),
            Export(Exporter.LEGACY, next(old), dynamic=False),
            Export(Exporter.DYNAMO, next(new), dynamic=not even),
            Export(Exporter.DYNAMO, next(new), dtype=_DOUBLE)
            if index % 4 == 0
            else Export(Exporter.LEGACY, next(old), dtype=_DOUBLE),
        ]
        cells += [Cell(name, export) for export in exports]
    return cells
