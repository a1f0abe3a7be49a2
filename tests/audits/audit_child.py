"""Servers' parts in processes that can be killed: `python audit_child.py FOLDER`.

Torch is imported once; then every line `create ROOT` or `run ROOT` of the standard input becomes a
process of its own, whose number is answered, and its exit status when it has ended. `FOLDER` holds
`net.pt`, `x.npy` and `y.npy`.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import torch

from interpret_plugins.attacks.fgsm import FGSM
from interpret_plugins.attacks.pgd import PGD
from interpret_plugins.attacks.square import Square
from interpret_server.audits.ingest import DataChunk
from interpret_server.audits.manager import Audits
from interpret_server.audits.records import State
from interpret_server.audits.spec import AuditSpec
from interpret_server.data.arrays import as_array
from interpret_server.engine.local import LocalWorker
from interpret_server.models.manifest import Manifest
from interpret_server.registry import Registry

MANIFEST = Manifest.model_validate({"shape": [6], "bounds": [0, 1]})
SPEC = AuditSpec.model_validate(
    {
        "model": "net",
        "threats": [{"norm": "linf", "epsilons": [0.02, 0.05, 0.1, 0.2]}],
        "attacks": [
            {"plugin": "fgsm"},
            {"plugin": "pgd", "params": {"steps": 5}},
            {"plugin": "square", "params": {"queries": 20}},
        ],
        "batch_size": 8,
    }
)


async def create(worker: LocalWorker, audits: Audits, folder: Path) -> None:
    """Queue an audit, and leave before much of it is done."""
    inputs, labels = np.load(folder / "x.npy"), np.load(folder / "y.npy")

    async def chunks() -> AsyncIterator[DataChunk]:
        for first in range(0, len(inputs), 20):
            part = slice(first, first + 20)
            yield DataChunk(as_array(inputs[part]), tuple(labels[part].tolist()))

    await worker.load("net", folder / "net.pt", MANIFEST)
    await audits.create(SPEC, chunks())


async def run(audits: Audits) -> None:
    """Go on with the one audit until it is finished."""
    (audit,) = audits.list()
    async for item in audits.watch(audit.id):
        audit = item
    assert audit.state is State.FINISHED, audit.error


async def serve(command: str, root: Path, folder: Path, registry: Registry) -> None:
    worker = LocalWorker(registry, device="cpu")
    audits = Audits(worker, root=root)
    await audits.start()
    try:
        await (create(worker, audits, folder) if command == "create" else run(audits))
    finally:
        await audits.close(0.0)
        await worker.close(0.0)


def main() -> None:
    torch.set_num_threads(1)
    folder, registry = Path(sys.argv[1]), Registry()
    for plugin in (FGSM, PGD, Square):
        registry.add(plugin, "the built-in plugins")
    for line in sys.stdin:
        command, root = line.split()
        child = os.fork()
        if not child:
            status = 1
            try:
                asyncio.run(serve(command, Path(root), folder, registry))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
