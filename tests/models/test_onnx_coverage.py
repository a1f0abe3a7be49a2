"""The official cases of the onnx package, and the tool that scores them."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx_coverage
import pytest
from onnx import TensorProto, helper
from onnx_official import Case

_TOOL = Path(onnx_coverage.__file__)


@pytest.mark.timeout(600)
def test_every_official_case_that_a_classifier_can_touch_passes(tmp_path):
    page = tmp_path / "page.md"
    command = [sys.executable, str(_TOOL), str(page), "--quick", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = page.read_text() if page.exists() else done.stderr
    assert done.returncode == 0, told.partition("## Failures")[2] or told
    counts = {suite: int(n) for suite, n in re.findall(r"^\| ([a-z-]+) \| (\d+) \|", told, re.M)}
    expected = {"node": 1312, "pytorch-converted": 82, "pytorch-operator": 35, "light": 9}
    assert all(counts[suite] >= count for suite, count in expected.items())


def case(
    operator: str = "Sin", expected: float = 0.0, dtype: int = TensorProto.FLOAT, **attributes: int
) -> Case:
    """`y = operator(x)` at 0."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], **attributes)],
        "graph",
        [helper.make_tensor_value_info("x", dtype, [2])],
        [helper.make_tensor_value_info("y", dtype, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    values = [np.zeros(2, kind)], [np.full(2, expected, kind)]
    return Case("node", "case", operator, model, [values])


def test_a_right_case_passes_with_its_gradient():
    assert onnx_coverage.examine(case()) == onnx_coverage.Result("", "checked")
    assert onnx_coverage.examine(case("Cos", 1.0)).gradient == "checked"
    assert onnx_coverage.examine(case("Neg", 0.0, TensorProto.INT32)).gradient == "none"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (case(expected=0.01), "differs by up to 0.01"),
        (case("Cast", dtype=TensorProto.FLOAT, to=TensorProto.DOUBLE), "float64 rather than"),
        (case("Nonsense"), "InvalidModel"),
        (case("RandomNormalLike"), "Unlowerable"),
    ],
)
def test_a_wrong_case_fails_in_words(wrong, told):
    result = onnx_coverage.examine(wrong)
    assert told in result.reason
    assert not result.passed


def test_a_wrong_gradient_is_noticed(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "sin", lambda x: x.detach().sin() + x - x.detach())
    near_zero = onnx_coverage.examine(case())
    assert near_zero.passed  # the straight-through slope is right there
    far = case("Sin", float(np.sin(1.0, dtype=np.float32)))
    far.data[0] = ([np.ones(2, np.float32)], far.data[0][1])
    assert " rather than " in onnx_coverage.examine(far).gradient


def test_crashes_and_endless_cases_cost_one_case_each(monkeypatch):
    import os

    def behave(item: Case, gradients: bool = True) -> onnx_coverage.Result:
        if item.name == "crash":
            os._exit(1)
        if item.name == "hang":
            time.sleep(60)
        return onnx_coverage.Result("")

    monkeypatch.setattr(onnx_coverage, "examine", behave)
    names = ("a", "crash", "b", "hang", "c", "crash", "d")
    cases = [Case("node", name, "Sin", case().model, []) for name in names]
    results = onnx_coverage.run(cases, 2, limit=1.0)
    told = [result.reason for result in results]
    assert told == [
        "", "the process crashed", "", "not done after 1 seconds", "", "the process crashed", "",
    ]  # fmt: skip
