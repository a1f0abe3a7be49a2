"""Fixtures and rules that every test shares."""

import os
from pathlib import Path

import pytest
import torch

_SHARED = Path(os.environ.get("INTERPRET_SHARED_DATA", Path(__file__).parents[2] / "shared/data"))
_skipped = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_skipped] = 0
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("shared_data") and not _SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="INTERPRET_SHARED_DATA has no folder"))
            config.stash[_skipped] += 1
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if count := config.stash[_skipped]:
        terminalreporter.write_line(
            f"{count} tests skipped: no real classifiers and images at INTERPRET_SHARED_DATA"
        )


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real classifiers and images; for tests marked `shared_data`."""
    return _SHARED


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
