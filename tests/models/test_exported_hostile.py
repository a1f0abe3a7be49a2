"""Hostile files of torch.export: nothing in them is ever evaluated, imported or unpickled."""

import io
import json
import os
import pickle
import zipfile

import pytest
import torch
from exported_networks import edited, free_rows, records, rewrite, save
from exported_refusals import Net, older, refuse

from interpret_server.errors import InvalidModel, ModelRejected
from interpret_server.models.exported import lower, open_program, original


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    example = (torch.randn(2, 2, 2),)
    path = tmp_path_factory.mktemp("files") / "net.pt2"
    return save(path, Net().eval(), example, dynamic=free_rows(example))


@pytest.fixture
def marker(tmp_path):
    """A file that only a payload which runs would make."""
    return tmp_path / "payload-ran"


def payload(marker):
    return f"__import__('os').mkdir({str(marker)!r})"


class Payload:
    """What makes a directory when it is unpickled."""

    def __init__(self, marker) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


_DANGEROUS_TARGETS = [
    "torch.os.system",
    "torch.serialization.load",
    "torch.hub.load",
    "torch.ops.load_library",
    "torch.jit.load",
    "_operator.methodcaller",
    "_operator.attrgetter",
    "math.__loader__.load_module",
    "torch.ops.aten.from_file.default",
    "torch.ops.aten.save.default",
    "torch.ops.aten.__class__.__init__",
    "torch.ops.aten.set_.source_Storage",
    "torch.ops.aten._reshape_alias.default",
    "torch.ops.aten.segment_reduce.default",
    "torch.ops.aten.add.out",
    "torch.ops.higher_order.inline_asm_elementwise",
    "torch.ops.higher_order.run_const_graph",
    "torch.ops.profiler._record_function_enter_new.default",
    "#triton:kernel",
    "os.system",
    "",
]


@pytest.mark.parametrize("target", _DANGEROUS_TARGETS)
def test_only_known_operators_are_looked_up(source, tmp_path, target, marker):
    def change(document):
        document["graph_module"]["graph"]["nodes"][0]["target"] = target

    refuse(edited(source, tmp_path / "m.pt2", change), ModelRejected, "is not served", marker)


def test_operators_as_arguments_are_checked_too(source, tmp_path, marker):
    def change(document):
        node = document["graph_module"]["graph"]["nodes"][-1]
        node["inputs"][0]["arg"] = {"as_operator": "torch.os.system"}

    refuse(edited(source, tmp_path / "m.pt2", change), ModelRejected, "torch.os.system", marker)


@pytest.mark.parametrize(
    "text",
    [
        "{payload}",
        "s77 + {payload}",
        "Symbol('s77', positive={payload})",
        "Symbol({payload})",
        "().__class__.__base__.__subclasses__()",
        "Lambda(s77, s77)",
        "lambdify([], 1)",
        "[s77 for s77 in s78]",
        "s77.xreplace",
        "9**9**9**9",
        "Pow(Pow(9, 8), 8)",
        "S('{payload}')",
        "Integer('{payload}')",
        "factorial(10**8)",
        "1" + "+1" * 2000,
        "(" * 500 + "1" + ")" * 500,
        "-" * 900 + "1",
        "f'{payload}'",
    ],
)
@pytest.mark.parametrize("place", ["size", "hint", "range"])
def test_symbolic_sizes_are_never_evaluated_as_code(source, tmp_path, text, place, marker):
    text = text.replace("{payload}", payload(marker))

    def change(document):
        (size, *_) = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        if place == "size":
            size["as_expr"]["expr_str"] = text
        elif place == "hint":
            size["as_expr"]["hint"] = {"as_expr": text}
        else:
            document["range_constraints"] = {text: {"min_val": 1, "max_val": 9}}

    path = edited(source, tmp_path / "m.pt2", change)
    with pytest.raises((InvalidModel, ModelRejected)):
        open_program(path)
    assert not marker.exists()


def test_sizes_of_inner_values_are_not_even_read(source, tmp_path, marker):
    def change(document):
        values = document["graph_module"]["graph"]["tensor_values"]
        for name, meta in values.items():
            if name != "x" and not name.startswith("p_"):
                meta["sizes"] = [{"as_expr": {"expr_str": payload(marker)}}]

    program = open_program(edited(source, tmp_path / "m.pt2", change))
    assert not marker.exists()
    assert lower(program).graph(torch.randn(5, 2, 2)).shape == (5, 3)


def test_guards_and_traces_of_a_file_are_never_run(source, tmp_path, marker):
    def change(document):
        document["guards_code"] = [payload(marker)]
        document["graph_module"]["metadata"] = {"custom": payload(marker)}
        for node in document["graph_module"]["graph"]["nodes"]:
            node["metadata"]["stack_trace"] = payload(marker)
            node["metadata"]["source_fn_stack"] = "x,torch.os.system"
            node["metadata"]["from_node"] = json.dumps([{"name": payload(marker)}])

    program = open_program(edited(source, tmp_path / "m.pt2", change))
    x = torch.randn(3, 2, 2)
    assert torch.equal(lower(program).graph(x), original(program)(x))
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["x): {payload}\ndef f(", "x = {payload}", "None", "a b", "é", "", "x" * 600]
)
def test_names_that_would_become_python_are_refused(source, tmp_path, name, marker):
    name = name.replace("{payload}", payload(marker))

    def rename(item):
        if isinstance(item, dict):
            return {(name if key == "x" else key): rename(value) for key, value in item.items()}
        if isinstance(item, list):
            return [rename(value) for value in item]
        return name if item == "x" else item

    def change(document):
        document.update(rename(document))

    path = edited(source, tmp_path / "m.pt2", change)
    refuse(path, ModelRejected, "which is not served", marker)


@pytest.mark.parametrize(
    "text", ['a"), {payload}, getattr(self, "a', "a.", "..", "a\nb", "a'b", 'a", "b', "é"]
)
def test_module_paths_never_become_python(source, tmp_path, text, marker):
    text = text.replace("{payload}", payload(marker))

    def change(document):
        for node in document["graph_module"]["graph"]["nodes"]:
            stack = f"L__self__,,a.Net;L__self___x,{text},torch.nn.modules.linear.Linear"
            node["metadata"]["nn_module_stack"] = stack

    lowered = lower(open_program(edited(source, tmp_path / "m.pt2", change)))
    assert lowered.graph(torch.randn(3, 2, 2)).shape == (3, 3)
    assert not marker.exists()
    assert text not in lowered.layers


def test_paths_of_weights_that_would_become_python_are_refused(source, tmp_path, marker):
    path = 'fc.weight")); __import__("os").mkdir("x"); ((("'

    def change(document):
        for spec in document["graph_module"]["signature"]["input_specs"]:
            if "parameter" in spec:
                spec["parameter"]["parameter_name"] = path

    refuse(edited(source, tmp_path / "m.pt2", change), ModelRejected, "the path", marker)


@pytest.mark.parametrize(
    ("kind", "context"),
    [
        (
            "collections.defaultdict",
            {
                "default_factory_module": "antigravity",
                "default_factory_name": "fly",
                "dict_context": ["x"],
            },
        ),
        ("builtins.dict", '[{"__enum__": true, "fqn": "antigravity:X", "name": "y"}]'),
        ("torch.Size", "null"),
        ("builtins.dict", "null"),
    ],
)
def test_nesting_imports_nothing(source, tmp_path, kind, context, monkeypatch):
    import importlib

    def forbidden(name, *rest):
        raise AssertionError(f"{name} was imported")

    def change(document):
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        protocol, _ = json.loads(signature["out_spec"])
        leaf = {"type": None, "context": None, "children_spec": []}
        wrapped = {"type": kind, "context": context, "children_spec": [leaf]}
        signature["out_spec"] = json.dumps([protocol, wrapped])

    path = edited(source, tmp_path / "m.pt2", change)
    monkeypatch.setattr(importlib, "import_module", forbidden)
    try:
        program = open_program(path)
    except ModelRejected as error:
        assert "nest in a" in str(error)  # noqa: PT017
    else:
        assert set(original(program)(torch.randn(2, 2, 2))) == {"x"}


@pytest.mark.parametrize("kind", ["state", "constants"])
@pytest.mark.parametrize("form", ["bare", "inside"])
def test_pickles_in_older_files_run_nothing(source, tmp_path, marker, kind, form):
    buffer = io.BytesIO()
    if form == "bare":
        buffer.write(pickle.dumps(Payload(marker)))
    else:
        torch.save({"fc.weight": Payload(marker)}, buffer)
    state = buffer if kind == "state" else None
    path = older(source, tmp_path / "m.pt2", state, buffer if kind == "constants" else None)
    with pytest.raises((InvalidModel, ModelRejected)):
        open_program(path)
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["weights", "constants"])
def test_pickled_tensors_run_nothing(source, tmp_path, marker, kind):
    contents = records(source)
    root = next(iter(contents)).partition("/")[0]
    config_name = f"{root}/data/{kind}/model_{kind}_config.json"
    config = json.loads(contents[config_name])
    buffer = io.BytesIO()
    torch.save(Payload(marker), buffer)
    path_name = "weight_99" if kind == "weights" else "opaque_obj_0"
    config["config"]["x"] = {
        "path_name": path_name,
        "is_param": False,
        "use_pickle": True,
        "tensor_meta": None,
    }
    changed = {
        config_name: json.dumps(config).encode(),
        f"{root}/data/{kind}/{path_name}": buffer.getvalue(),
    }
    path = rewrite(tmp_path / "m.pt2", contents | changed)
    refuse(path, ModelRejected, "no plain tensor", marker)


def test_example_inputs_are_not_read(source, tmp_path, marker):
    contents = records(source)
    name = next(name for name in contents if "sample_inputs" in name)
    path = rewrite(tmp_path / "m.pt2", contents | {name: pickle.dumps(Payload(marker))})
    assert open_program(path).example_inputs is None
    assert not marker.exists()


def test_records_outside_of_their_folder_are_not_read(source, tmp_path, marker):
    contents = records(source)
    name = next(name for name in contents if name.endswith("model_weights_config.json"))
    config = json.loads(contents[name])
    config["config"]["fc.weight"]["path_name"] = "../../../../etc/passwd"
    path = rewrite(tmp_path / "m.pt2", contents | {name: json.dumps(config).encode()})
    refuse(path, ModelRejected, "the record", marker)


def test_custom_objects_are_refused(source, tmp_path, marker):
    def change(document):
        node = document["graph_module"]["graph"]["nodes"][-1]
        node["inputs"][0]["arg"] = {"as_custom_obj": {"name": "x", "class_fqn": "a.B"}}

    refuse(edited(source, tmp_path / "m.pt2", change), ModelRejected, "a custom object", marker)


def test_two_records_of_one_name_are_refused(source, tmp_path, marker):
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as file:
        for name, content in records(source).items():
            file.writestr(name, content)
            if name.endswith("model.json"):
                with pytest.warns(UserWarning, match="Duplicate"):
                    file.writestr(name, content)
    refuse(path, InvalidModel, "two records", marker)


def test_endless_counters_of_sizes_are_refused(source, tmp_path, marker):
    def change(document):
        document["range_constraints"]["u999999999999"] = {"min_val": 1, "max_val": 9}

    refuse(edited(source, tmp_path / "m.pt2", change), ModelRejected, "a size", marker)
