"""Files of scikit-learn's, ML.NET's and gradient boosters' converters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from styles import Sketch, check, close, load, run
from torch import Tensor

from interpret_server.errors import InvalidModel

ML = "ai.onnx.ml"
FLOWERS = ["versicolor", "setosa", "virginica"]  # not in alphabetical order


def _sketch(opset: int = 12) -> Sketch:
    return Sketch(opset, ir=6, ai_onnx_ml=1)


def _names(names: list[str] | list[int], integers: str = "classlabels_ints") -> dict[str, Any]:
    return {"classlabels_strings" if isinstance(names[0], str) else integers: names}


def _answers(sketch: Sketch, names: list[str] | list[int], zipped: bool = True) -> None:
    """The two outputs of every classifier of scikit-learn, from `label` and `scores`."""
    text = isinstance(names[0], str)
    kind = TensorProto.STRING if text else TensorProto.INT64
    sketch.add("Identity", ["label"], "output_label")
    sketch.output("output_label", [None], kind)
    if not zipped:
        sketch.add("Identity", ["scores"], "probabilities")
        sketch.output("probabilities", [None, len(names)])
        return
    sketch.add(
        "ZipMap",
        ["scores"],
        "output_probability",
        domain=ML,
        **_names(names, "classlabels_int64s"),
    )
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    mapped = helper.make_sequence_type_proto(helper.make_map_type_proto(kind, element))
    sketch.outputs.append(helper.make_value_info("output_probability", mapped))


def _logistic(
    path: Path, names: list[str] | list[int], transform: str, zipped: bool = True
) -> Path:
    sketch = _sketch()
    x = sketch.input("float_input", [None, 4])
    x = sketch.add("Imputer", [x], "filled", domain=ML, imputed_value_floats=[1.0, 2.0, 3.0, 4.0],
                   replaced_value_float=float("nan"))  # fmt: skip
    x = sketch.add("Scaler", [x], "scaled", domain=ML, offset=[1.0, 2.0, 0.0, 0.5], scale=[1.0] * 4)
    sketch.add(
        "LinearClassifier",
        [x],
        "label",
        "raw",
        domain=ML,
        coefficients=sketch.noise.standard_normal(4 * len(names)).tolist(),
        intercepts=sketch.noise.standard_normal(len(names)).tolist(),
        multi_class=1,
        post_transform=transform,
        **_names(names),
    )
    sketch.add("Normalizer", ["raw"], "scores", domain=ML, norm="L1")
    _answers(sketch, names, zipped)
    return sketch.save(path, "skl2onnx")


def _trees(path: Path, names: list[str] | list[int], zipped: bool = True) -> Path:
    """Two stumps of one split each."""
    sketch = _sketch()
    sketch.input("X", [None, 4])
    leaves = [(tree, node) for tree in (0, 1) for node in (1, 2)]
    votes = sketch.noise.dirichlet(np.ones(len(names)), 4) / 2
    classes = range(len(names))
    sketch.add(
        "TreeEnsembleClassifier",
        ["X"],
        "label",
        "scores",
        domain=ML,
        nodes_treeids=[0, 0, 0, 1, 1, 1],
        nodes_nodeids=[0, 1, 2] * 2,
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"] * 2,
        nodes_featureids=[0, 0, 0, 2, 0, 0],
        nodes_values=[0.1, 0.0, 0.0, -0.2, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0] * 2,
        nodes_falsenodeids=[2, 0, 0] * 2,
        nodes_hitrates=[1.0] * 6,
        nodes_missing_value_tracks_true=[0] * 6,
        class_treeids=[tree for tree, _ in leaves for _ in classes],
        class_nodeids=[node for _, node in leaves for _ in classes],
        class_ids=[*classes] * 4,
        class_weights=votes.reshape(-1).tolist(),
        post_transform="NONE",
        **_names(names, "classlabels_int64s"),
    )
    _answers(sketch, names, zipped)
    return sketch.save(path, "OnnxMLTools")


def _logs(path: Path, names: list[str] | list[int]) -> Any:
    def expected(x: Tensor) -> Tensor:
        rows = run(path, x)[1]
        values = [[row[name] for name in names] if isinstance(row, dict) else row for row in rows]
        return torch.tensor(np.array(values)).log()

    return expected


@pytest.mark.parametrize("transform", ["LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize("zipped", [True, False])
def test_logistic_regressions_are_differentiable_and_bring_their_labels(
    tmp_path: Path, transform: str, zipped: bool
) -> None:
    path = _logistic(tmp_path / "m.onnx", FLOWERS, transform, zipped)
    loaded = load(path)
    assert loaded.info.form == "graph"
    assert loaded.info.verification.reference == "onnxruntime"
    assert loaded.info.labels == loaded.classifier.labels == tuple(FLOWERS)
    assert loaded.info.output_name == ("output_probability" if zipped else "probabilities")
    assert loaded.info.logits_from == ("softmax" if transform == "SOFTMAX" else "probabilities")
    check(loaded, _logs(path, FLOWERS))


@pytest.mark.parametrize("names", [FLOWERS, [3, 7, 9], [0, 1, 2]])
@pytest.mark.parametrize("zipped", [True, False])
def test_trees_predict_as_onnxruntime(
    tmp_path: Path, names: list[str] | list[int], zipped: bool
) -> None:
    path = _trees(tmp_path / "m.onnx", names, zipped)
    loaded = load(path)
    assert loaded.info.form == "runtime"
    assert "TreeEnsembleClassifier" in loaded.info.form_reason
    assert loaded.info.labels == (() if names == [0, 1, 2] else tuple(map(str, names)))
    check(loaded, _logs(path, names))
    x = torch.randn(20, 4)
    winners = loaded.classifier(x).argmax(1).tolist()
    assert [names[winner] for winner in winners] == run(path, x)[0].tolist()


def test_the_manifest_overrides_labels_and_names_outputs(tmp_path: Path) -> None:
    path = _trees(tmp_path / "m.onnx", FLOWERS)
    loaded = load(path, labels=["a", "b", "c"], output={"name": "output_probability"})
    assert loaded.info.labels == ("a", "b", "c")


@pytest.mark.parametrize("names", [FLOWERS, [3, 7, 9]])
@pytest.mark.parametrize("make", [_trees, lambda path, names: _logistic(path, names, "LOGISTIC")])
def test_winners_by_name_become_positions(
    tmp_path: Path, names: list[str] | list[int], make: Any
) -> None:
    path = make(tmp_path / "m.onnx", names)
    loaded = load(path, output={"name": "output_label"})
    assert loaded.info.logits_from in ("classes", "argmax")
    assert loaded.info.labels == tuple(map(str, names))
    assert loaded.info.classes == 3
    x = torch.randn(20, 4)
    winners = loaded.classifier(x).argmax(1).tolist()
    assert [names[winner] for winner in winners] == run(path, x)[0].tolist()


@pytest.mark.parametrize("transform", ["NONE", "LOGISTIC"])
def test_winners_that_are_not_the_largest_scores_are_told(tmp_path: Path, transform: str) -> None:
    """onnxruntime scores a raw decision z as (1 - z, z), but decides by its sign."""
    sketch = _sketch()
    sketch.input("X", [None, 4])
    sketch.add("LinearClassifier", ["X"], "label", "scores", domain=ML, intercepts=[0.1],
               coefficients=[1.0, -0.5, 0.2, 0.3], classlabels_ints=[0, 1],
               post_transform=transform)  # fmt: skip
    _answers(sketch, [0, 1], zipped=False)
    path = sketch.save(tmp_path / "m.onnx")
    loaded = load(path)
    told = [note for note in loaded.info.notes if "'output_label' names other winners" in note]
    assert len(told) == (transform == "NONE")
    x = torch.randn(9, 4)
    scores = torch.tensor(run(path, x)[1])
    found = loaded.classifier(x)
    close(found if transform == "NONE" else found.exp(), scores)


def test_names_that_replace_positions_are_labels(tmp_path: Path) -> None:
    """As boosters are converted: integers inside, and a table of names behind them."""
    sketch = Sketch(12, ir=6, ai_onnx_ml=2)
    sketch.input("X", [None, 4])
    sketch.add("LinearClassifier", ["X"], "position", "scores", domain=ML,
               intercepts=[0.1, 0.0, -0.1], coefficients=sketch.noise.standard_normal(12).tolist(),
               classlabels_ints=[0, 1, 2], post_transform="SOFTMAX")  # fmt: skip
    sketch.add("LabelEncoder", ["position"], "label", domain=ML, keys_int64s=[0, 1, 2],
               values_strings=FLOWERS)  # fmt: skip
    sketch.add("Identity", ["label"], "output_label")
    sketch.output("output_label", [None], TensorProto.STRING)
    sketch.add("Identity", ["scores"], "probabilities")
    sketch.output("probabilities", [None, 3])
    path = sketch.save(tmp_path / "m.onnx")
    loaded = load(path)
    assert (loaded.info.form, loaded.info.labels) == ("graph", tuple(FLOWERS))
    x = torch.randn(9, 4)
    assert [FLOWERS[i] for i in loaded.classifier(x).argmax(1)] == run(path, x)[0].tolist()


def _columns(path: Path, text: bool = False) -> Path:
    """A pipeline over a data frame: an input for each column."""
    sketch = _sketch()
    for name in ("age", "fare"):
        sketch.input(name, [None, 1])
    sketch.input("deck", [None, 1], TensorProto.INT64)
    parts = [sketch.add("Concat", ["age", "fare"], "merged_columns", axis=1)]
    hot = sketch.add("OneHotEncoder", ["deck"], "hot", domain=ML, cats_int64s=[0, 1, 2], zeros=1)
    parts.append(sketch.add("Reshape", [hot, sketch.store("three", np.array([-1, 3]))], "deck3"))
    if text:
        sketch.input("sex", [None, 1], TensorProto.STRING)
        sketch.add("OneHotEncoder", ["sex"], "sex2", domain=ML, cats_strings=["f", "m"], zeros=1)
        parts.append(sketch.add("Reshape", ["sex2", sketch.store("two", np.array([-1, 2]))], "s"))
    width = 7 if text else 5
    sketch.add("Concat", parts, "transformed", axis=1)
    sketch.add(
        "LinearClassifier",
        ["transformed"],
        "label",
        "scores",
        domain=ML,
        coefficients=sketch.noise.standard_normal(2 * width).tolist(),
        intercepts=[0.1, -0.1],
        classlabels_ints=[0, 1],
        post_transform="SOFTMAX",
    )
    _answers(sketch, [0, 1])
    return sketch.save(path, "skl2onnx")


def test_every_column_of_a_data_frame_is_an_input(tmp_path: Path) -> None:
    path = _columns(tmp_path / "m.onnx")
    loaded = load(path)
    assert [(item.name, item.kind) for item in loaded.info.inputs] == [
        ("age", "values"), ("fare", "values"), ("deck", "integers")
    ]  # fmt: skip
    rows = [torch.rand(3, 1), torch.rand(3, 1), torch.tensor([[0], [1], [2]])]
    classifier = loaded.classifier
    x = classifier.encode(classifier.pack(rows))
    expected = torch.tensor([[row[0], row[1]] for row in run(path, *rows)[1]])
    close(classifier(x).softmax(1), expected)


def test_columns_of_text_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="'sex' is no tensor of numbers; export the model"):
        load(_columns(tmp_path / "m.onnx", text=True))


@pytest.mark.parametrize("names", [["no", "perhaps", "yes"], [0, 1, 2]])
def test_multilayer_perceptrons_of_scikit_learn(
    tmp_path: Path, names: list[str] | list[int]
) -> None:
    sketch = _sketch()
    x = sketch.input("X", [None, 4], TensorProto.DOUBLE)
    x = sketch.add("Cast", [x], "cast_input", to=TensorProto.FLOAT)
    for layer, (inner, outer) in enumerate([(4, 8), (8, 3)]):
        weight, bias = (
            sketch.weight(f"coefficient{layer or ''}", inner, outer),
            sketch.weight(f"intercepts{layer or ''}", 1, outer),
        )
        x = sketch.add("MatMul", [x, weight], f"mul_result{layer}")
        x = sketch.add("Add", [x, bias], f"add_result{layer}")
        x = sketch.add(("Relu", "Softmax")[layer], [x], f"next_activations{layer}")
    sketch.add("Identity", [x], "scores")
    sketch.store("classes", np.array(names, dtype=object if isinstance(names[0], str) else None))
    sketch.add("ArgMax", [x], "argmax_output", axis=1)
    sketch.add("ArrayFeatureExtractor", ["classes", "argmax_output"], "chosen", domain=ML)
    sketch.add("Reshape", ["chosen", sketch.store("flat", np.array([-1]))], "label")
    _answers(sketch, names)
    path = sketch.save(tmp_path / "m.onnx", "skl2onnx")
    loaded = load(path)
    assert loaded.info.form == "graph"
    assert loaded.info.logits_from == "softmax"
    assert loaded.info.labels == (tuple(names) if names[0] == "no" else ())
    assert "rectifiers" in loaded.info.capabilities
    check(loaded, _logs(path, names), slopes=False)
    by_label = load(path, output={"name": "output_label", "classes": 3}).classifier
    x = torch.randn(9, 4, dtype=by_label.dtype)
    expected = run(path, x.double())[0].tolist()
    assert [names[i] for i in by_label(x).argmax(1).tolist()] == expected
