"""Fixtures and rules that every test shares."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# gRPC would start its threads again in every process that a test forks.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import pytest
import torch

_SHARED = Path(os.environ.get("INTERPRET_SHARED_DATA", Path(__file__).parents[2] / "shared/data"))
_NO_SHARED = "INTERPRET_SHARED_DATA has no folder"


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    # Parallel test runners ignore Ctrl-C, and what a test starts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("shared_data") and not _SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=_NO_SHARED))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if count := sum(_NO_SHARED in str(report.longrepr) for report in skipped):
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


@pytest.fixture(scope="session")
def digit_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a digit classifier as `digits.pt` and `digits.onnx`, and digits to show it.

    `digits.npy` `(N, 1, 8, 8)` and `labels.npy` hold digits that it was not trained on,
    `digit.png` the first of them.
    """
    import numpy as np
    from PIL import Image

    from interpret_server.demo.digits import load_digits, save_onnx, save_torchscript, train

    folder = tmp_path_factory.mktemp("digits")
    training, _, held_out = load_digits()
    net = train(training, seed=0)
    save_torchscript(net, folder / "digits.pt")
    save_onnx(net, folder / "digits.onnx")
    np.save(folder / "digits.npy", held_out.images)
    np.save(folder / "labels.npy", held_out.labels)
    Image.fromarray((held_out.images[0, 0] * 255).astype("uint8")).save(folder / "digit.png")
    return folder


@pytest.fixture(scope="session")
def served_digits(digit_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with every installed plugin, the model `digits`, and audits."""
    from interpret_server.audits.manager import Audits
    from interpret_server.testing import serve

    root = tmp_path_factory.mktemp("audits")
    models = {"digits": (digit_files / "digits.pt", {"shape": [1, 8, 8], "bounds": [0, 1]})}

    with serve(
        models=models, audits=lambda worker, data: Audits(worker, root=root, data=data)
    ) as address:
        yield address
