"""Imports torch and onnxruntime once, and runs each named case in a confined child.

Arguments: a folder with `net.pt`, `net.onnx` and `net.pt2`, then names of cases. Prints one line
of JSON for each.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sandbox_child import outcome

from interpret_server.engine.sandbox import Policy
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest

GIB = 1 << 30


def forward_and_backward(folder: Path) -> float:
    """On two threads."""
    torch.set_num_threads(2)
    inputs = torch.ones(16, 3, 64, 64, requires_grad=True)
    weight = torch.full((8, 3, 3, 3), 0.01, requires_grad=True)
    loss = torch.conv2d(inputs, weight).relu().square().mean()
    loss.backward()
    assert inputs.grad is not None
    return round(float(inputs.grad.sum() / loss), 3)


def torchscript(folder: Path) -> int:
    module = torch.jit.load(folder / "net.pt")
    module(torch.zeros(2, 3, 8, 8)).sum().backward()
    return int(module(torch.zeros(2, 3, 8, 8)).shape[1])


def exported(folder: Path) -> int:
    module = torch.export.load(folder / "net.pt2").module()
    return int(module(torch.zeros(2, 3, 8, 8)).shape[1])


def runtime(folder: Path) -> int:
    """On as many threads as onnxruntime wishes, which it pins."""
    session = onnxruntime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])
    return int(session.run(None, {"input": np.zeros((2, 3, 8, 8), np.float32)})[0].shape[1])


def served(name: str) -> Callable[[Path], str]:
    """The whole of loading, verification included."""

    def load(folder: Path) -> str:
        manifest = Manifest(shape=(3, 8, 8), bounds=(0.0, 1.0))
        loaded = load_classifier(
            "net", folder / name, manifest, device=torch.device("cpu"), default_max_batch=8
        )
        inputs = torch.zeros(2, 3, 8, 8, requires_grad=True)
        loaded.classifier(inputs).sum().backward()
        assert inputs.grad is not None
        return loaded.info.form

    return load


def too_much_memory(folder: Path) -> int:
    return torch.ones(8 * GIB).numel()


def outside(folder: Path) -> int:
    return len(torch.jit.load(folder.parent / "outside.pt").code)


CASES: dict[str, Callable[[Path], object]] = {
    "forward_and_backward": forward_and_backward,
    "torchscript": torchscript,
    "exported": exported,
    "runtime": runtime,
    "served net.pt": served("net.pt"),
    "served net.onnx": served("net.onnx"),
    "served net.pt2": served("net.pt2"),
    "too_much_memory": too_much_memory,
    "outside": outside,
}


def main(folder: Path, names: list[str]) -> None:
    policy = Policy(read=(folder,), memory_bytes=12 * GIB)
    for name in names:
        answer = outcome(lambda case=CASES[name]: case(folder), policy)  # type: ignore[misc]
        print(json.dumps([name, answer]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(CASES))
