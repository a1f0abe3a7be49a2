"""Files of torch.export: opened whatever wrote them; corrupt and oversized ones refused."""

import io
import json
import zipfile

import exported_networks as networks
import pytest
import torch
from exported_networks import edited, free_rows, records, rewrite, save
from exported_refusals import Net, older, refuse
from torch import nn

from interpret_server.errors import InvalidModel, ModelRejected
from interpret_server.models.exported import inputs, lower, memory, open_program, original
from interpret_server.models.formats import identify
from interpret_server.models.manifest import Format


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    example = (torch.randn(2, 2, 2),)
    path = tmp_path_factory.mktemp("files") / "net.pt2"
    return save(path, Net().eval(), example, dynamic=free_rows(example))


@pytest.fixture
def marker(tmp_path):
    """A file that only a payload which runs would make."""
    return tmp_path / "payload-ran"


# Layouts


def test_both_layouts_give_the_same_program(source, tmp_path):
    old = older(source, tmp_path / "old.pt2")
    assert identify(source) is identify(old) is Format.EXPORTED_PROGRAM
    x = torch.randn(3, 2, 2)
    assert torch.equal(original(open_program(old))(x), original(open_program(source))(x))
    assert torch.equal(lower(open_program(old)).graph(x), original(open_program(source))(x))


def test_weights_in_one_pickled_record_are_read(source, tmp_path):
    contents = records(source)
    state = io.BytesIO()
    torch.save(dict(open_program(source).state_dict), state)
    root = next(iter(contents)).partition("/")[0]
    kept = {name: value for name, value in contents.items() if "/data/weights/" not in name}
    path = rewrite(tmp_path / "m.pt2", kept | {f"{root}/data/weights/model.pt": state.getvalue()})
    x = torch.randn(3, 2, 2)
    assert torch.equal(original(open_program(path))(x), original(open_program(source))(x))


def test_programs_exported_on_another_device_run_here(source, tmp_path):
    text = {"type": "cpu", "index": None}

    def move(document):
        for meta in document["graph_module"]["graph"]["tensor_values"].values():
            assert meta["device"] == text
            meta["device"] = {"type": "cuda", "index": 0}

    program = open_program(edited(source, tmp_path / "m.pt2", move))
    assert lower(program).graph(torch.randn(3, 2, 2)).device.type == "cpu"


# Corrupt files


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncated_files_are_refused(source, tmp_path, keep, marker):
    content = source.read_bytes()
    path = tmp_path / "m.pt2"
    path.write_bytes(content[: int(len(content) * keep)])
    refuse(path, InvalidModel, "archive", marker)


def test_every_lost_record_is_told_or_not_needed(source, tmp_path):
    contents = records(source)
    for name in contents:
        path = rewrite(tmp_path / "m.pt2", {k: v for k, v in contents.items() if k != name})
        try:
            open_program(path)
        except InvalidModel as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_damaged_documents_are_refused(source, tmp_path, marker):
    contents = records(source)
    name = next(name for name in contents if name.endswith("models/model.json"))
    document = contents[name]
    for damaged in (b"", b"{}", b"[]", b"[" * 100_000, document[:500], b'{"schema_version": 8}'):
        path = rewrite(tmp_path / "m.pt2", contents | {name: damaged})
        refuse(path, InvalidModel, "", marker)


@pytest.mark.parametrize(("major", "age"), [(9, "a newer"), (5, "an older")])
def test_other_versions_of_the_format_are_told(source, tmp_path, major, age, marker):
    def change(document):
        document["schema_version"]["major"] = major

    path = edited(source, tmp_path / "m.pt2", change)
    refuse(path, InvalidModel, f"written by {age}", marker)


def test_tensors_beyond_their_data_are_refused(source, tmp_path, marker):
    contents = records(source)
    name = next(name for name in contents if name.endswith("model_weights_config.json"))
    for sizes, strides in (
        ([3, 400], [400, 1]),
        ([1 << 40], [0]),
        ([3, -4], [4, 1]),
        ([3], [4, 1]),
    ):
        config = json.loads(contents[name])
        meta = config["config"]["fc.weight"]["tensor_meta"]
        meta["sizes"] = [{"as_int": size} for size in sizes]
        meta["strides"] = [{"as_int": stride} for stride in strides]
        path = rewrite(tmp_path / "m.pt2", contents | {name: json.dumps(config).encode()})
        refuse(path, InvalidModel, "'fc.weight'", marker)


def test_compressed_archives_are_refused(source, tmp_path, marker):
    path = rewrite(tmp_path / "m.pt2", records(source), zipfile.ZIP_DEFLATED)
    refuse(path, ModelRejected, "compressed", marker)


def test_packages_of_compiled_code_are_refused(source, tmp_path, marker):
    path = rewrite(
        tmp_path / "m.pt2",
        {"m/archive_format": b"pt2", "m/data/aotinductor/model/m.so": b"\x7fELF"},
    )
    refuse(path, ModelRejected, "AOTInductor", marker)
    with pytest.raises(ModelRejected, match="AOTInductor"):
        identify(path)


def test_inputs_beyond_memory_are_refused(source, tmp_path):
    def change(document):
        sizes = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[1] = {"as_int": 1 << 62}

    program = open_program(edited(source, tmp_path / "m.pt2", change))
    for use in (lower, original):
        with pytest.raises(ModelRejected, match="too large"):
            use(program)


@pytest.mark.parametrize(
    "text",
    [
        "s0",
        "2*s0 + 1",
        "(s0 - 1)//2",
        "s0**2",
        "Max(1, s0)",
        "Eq(PythonMod(s0, 2), 0)",
        "Add(Mul(Integer(2), Symbol('s77', positive=True, integer=True)), Integer(-1))",
        "Pow(Symbol('s77', positive=True, integer=True), Integer(2))",
        "FloorDiv(Symbol('s1', positive=True, integer=True), Integer(2))",
    ],
)
def test_sizes_as_all_versions_write_them_are_read(text):
    import sympy

    from interpret_server.models.exported.expressions import expression

    names = {"FloorDiv": sympy.Function("FloorDiv"), "PythonMod": sympy.Mod}
    found, expected = (sympy.sympify(each, locals=names) for each in (expression(text), text))
    assert found == expected


def test_ordinary_sizes_are_read(tmp_path):
    free = torch.export.Dim.DYNAMIC
    example = networks.inputs("residual", 2)
    path = save(
        tmp_path / "m.pt2",
        networks.network("residual"),
        example,
        dynamic=({0: free, 2: 2 * torch.export.Dim("h", min=2, max=64), 3: free},),
    )
    assert inputs(open_program(path))[0].shape == (None, 3, None, None)


class Huge(nn.Module):
    def forward(self, x):
        for _ in range(12):
            x = torch.cat([x, x, x, x], 1)
        return x.mean(1, keepdim=True)


def test_programs_that_would_not_fit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "LARGEST", 1 << 24)
    example = (torch.randn(2, 4),)
    path = save(tmp_path / "m.pt2", Huge(), example, dynamic=free_rows(example))
    program = open_program(path)
    with pytest.raises(ModelRejected, match="GiB"):
        lower(program)
    with pytest.raises(ModelRejected, match="GiB"):
        original(program)
