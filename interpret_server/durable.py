"""Entries of folders that survive a loss of power."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed and removed in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
