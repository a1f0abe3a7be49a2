"""The `interpret` command: what it sends, prints, writes and returns."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_interpret_server as fakes
import grpc
import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_interpret_server import Failure, FakeServer
from google.rpc import error_details_pb2

from interpret_api.v1 import types_pb2 as types
from interpret_api.v1.rendering_pb2 import PICTURE_STYLE_OVERLAY, PICTURE_STYLE_TOP_K
from interpret_client.cli import main

Command = Callable[..., Result]


@pytest.fixture
def interpret(fake: FakeServer) -> Command:
    def invoke(*arguments: Any, env: dict[str, str] | None = None, stdin: str = "") -> Result:
        words = [str(argument) for argument in arguments]
        environment = {"INTERPRET_ADDRESS": fake.address} if env is None else env
        return CliRunner().invoke(main, words, env=environment, input=stdin)

    return invoke


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "digit.png").write_bytes(b"p" * 40)
    return tmp_path / "digit.png"


@pytest.fixture
def array(tmp_path: Path) -> Path:
    np.save(tmp_path / "digits.npy", np.random.default_rng(2).random((2, *fakes.SHAPE)))
    return tmp_path / "digits.npy"


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_models_table_and_document(interpret: Command) -> None:
    result = interpret("models")
    assert result.exit_code == 0
    assert re.search(r"net +1 +onnx +graph +1x2x2 +3 +cpu +abababababab", result.stdout)
    assert document(interpret("--json", "models"))[0]["name"] == "net"
    assert document(interpret("models", "--json"))[0]["bounds"] == [0.0, 1.0]


def test_no_models_is_said(interpret: Command, fake: FakeServer) -> None:
    fake.loaded.clear()
    assert "No model is loaded" in interpret("models").stdout
    assert document(interpret("models", "--json")) == []


def test_one_model_with_its_layers(interpret: Command) -> None:
    result = interpret("models", "show", "net")
    assert "/fc/Gemm  linear  3" in result.stdout
    assert "rectifiers: net has no rectifier" in result.stdout
    assert "cat, dog, owl" in result.stdout
    assert document(interpret("models", "show", "net", "--json"))["classes"] == 3


def test_load_merges_manifest_and_flags(
    interpret: Command, fake: FakeServer, tmp_path: Path
) -> None:
    (tmp_path / "net.pt").write_bytes(b"model")
    (tmp_path / "net.toml").write_text('version = "7"\nbounds = [0, 255]\n')
    result = interpret(
        "load", "new", tmp_path / "net.pt", "--manifest", tmp_path / "net.toml",
        "--shape", "1,?,2", "--bounds", "0,1", "--mean", "0.5", "--replace",
    )  # fmt: skip
    assert "Loaded new: onnx, input 1x2x2, 3 classes, 1 layers." in result.stdout
    header = fake.requests["UploadModel"][0][0].header
    assert header.replace
    assert json.loads(header.manifest_json) == {
        "version": "7",
        "bounds": [0, 1],
        "shape": [1, None, 2],
        "mean": [0.5],
    }


def test_load_without_file_takes_the_servers_own(interpret: Command, fake: FakeServer) -> None:
    assert document(interpret("load", "new", "--server-path", "net/1", "--json"))["name"] == "new"
    (request,) = fake.requests["LoadModel"]
    assert (request.path, request.manifest_json) == ("net/1", "")


def test_unload(interpret: Command, fake: FakeServer) -> None:
    assert interpret("unload", "net").stdout == "Unloaded net.\n"
    assert not fake.loaded


def test_plugins_table_and_page(interpret: Command) -> None:
    listed = interpret("plugins").stdout
    assert "The gradient [bold] of the target." in listed
    page = interpret("plugins", "show", "saliency").stdout
    assert "A second paragraph." in page
    assert re.search(r"steps +integer >= 1 +3 +Steps to take\.", page)
    assert re.search(r"epsilon +number > 0 \| null +required", page)
    assert re.search(r'norm +l1 \| l2 \| linf +"linf"', page)
    assert re.search(r"mask +optional +Where to look\.", page)
    assert document(interpret("plugins", "--kind", "attack", "--json")) == []
    assert document(interpret("plugins", "show", "saliency", "--json"))["schema"] == fakes.SCHEMA


def test_predict_images_and_arrays(
    interpret: Command, fake: FakeServer, image: Path, array: Path
) -> None:
    result = interpret("predict", "net", image)
    assert re.search(r"digit\.png +\d (cat|dog|owl) \d+\.\d%", result.stdout)
    rows = document(interpret("predict", "net", array, array, "--json"))
    assert len(rows) == 4
    assert len(rows[0]["all_logits"]) == 3
    images, arrays = fake.requests["Predict"]
    assert list(images.inputs.images.images) == [image.read_bytes()]
    assert fakes.array(arrays.inputs.tensor).shape == (4, *fakes.SHAPE)


def test_npz_files_by_name_and_single_rows(
    interpret: Command, fake: FakeServer, tmp_path: Path
) -> None:
    row = np.ones(fakes.SHAPE, np.float32)
    np.savez(tmp_path / "many.npz", adversarial=row, other=row)
    np.savez(tmp_path / "one.npz", row)
    interpret("predict", "net", tmp_path / "many.npz:adversarial", tmp_path / "one.npz")
    (request,) = fake.requests["Predict"]
    assert fakes.array(request.inputs.tensor).shape == (2, *fakes.SHAPE)
    result = interpret("predict", "net", tmp_path / "many.npz")
    assert result.exit_code == 2
    assert "adversarial, other" in result.stderr


def test_run_writes_pictures_and_sums_up(
    interpret: Command, fake: FakeServer, array: Path, image: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "mask.npy", np.ones((2, 4), np.float32))
    out = tmp_path / "out"
    result = interpret(
        "run", "saliency", "net", array, "--target", "1,2", "--param", "epsilon=8/255",
        "--param", 'norms=["l1"]', "--param", "name=text", "--params", "-", "--seed", "3",
        "--tensor", f"mask={tmp_path / 'mask.npy'}", "--output", out,
        stdin='{"epsilon": 1, "steps": 2}',
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    for name in ("tensors.npz", "result.json", "attributions-0.png", "attributions-1.png"):
        assert str(out / name) in result.stdout
        assert (out / name).is_file()
    assert "Warning (0): the gradient vanishes" in result.stdout
    assert re.search(r"success +distance\s+0 .*yes +0\s+1 .*yes +0\.1", result.stdout)
    assert re.search(r"attributions: float32 2x1x2x2, \S+ to \S+", result.stdout)
    request = fake.requests["RunStream"][0].request
    assert json.loads(request.params_json) == {
        "epsilon": 8 / 255,
        "steps": 2,
        "norms": ["l1"],
        "name": "text",
    }
    assert list(request.seeds) == [3]
    assert [target.class_index for target in request.targets] == [1, 2]
    assert request.render
    assert list(request.tensors) == ["mask"]


def test_run_prints_one_document_and_nothing_else(
    interpret: Command, image: Path, tmp_path: Path
) -> None:
    result = interpret(
        "run", "saliency", "net", image, "--json", "--output", tmp_path / "out", "--no-render"
    )
    found = document(result)
    assert result.stderr == ""
    assert found["files"] == [str(tmp_path / "out" / n) for n in ("tensors.npz", "result.json")]
    assert found["provenance"]["plugin"] == "saliency"
    assert found["metrics"] == {"distance": [0.0]}


def test_run_sends_how_to_draw(
    interpret: Command, fake: FakeServer, image: Path, tmp_path: Path
) -> None:
    drawn = ("--style", "overlay", "--style", "top_k", "--picture", "alpha=1/4")
    result = interpret("run", "saliency", "net", image, "--output", tmp_path / "out", *drawn)
    assert result.exit_code == 0
    rendering = fake.requests["RunStream"][0].request.rendering
    assert list(rendering.styles) == [PICTURE_STYLE_OVERLAY, PICTURE_STYLE_TOP_K]
    assert rendering.alpha == 0.25


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--output", "out", "--style", "overlai"], 2, "overlai"),
        (["--output", "out", "--picture", "alpha=2"], 1, "rendering.alpha: give a number from 0"),
        (["--output", "out", "--picture", "beta=2"], 1, "rendering.beta: there is no such option"),
        (["--style", "overlay"], 2, "--style and --picture need --output"),
    ],
)
def test_run_refuses_pictures_that_cannot_be_drawn(
    interpret: Command, image: Path, words: list[str], code: int, sentence: str
) -> None:
    result = interpret("run", "saliency", "net", image, *words)
    assert result.exit_code == code
    assert sentence in result.stderr


def test_run_without_inputs_and_output_writes_nothing(
    interpret: Command, fake: FakeServer, tmp_path: Path
) -> None:
    result = interpret(
        "run", "saliency", "net", "--target", "layer:/a/b.3/channel:17", "--priority=low"
    )
    assert result.exit_code == 0
    request = fake.requests["RunStream"][0].request
    assert not request.HasField("inputs")
    assert not request.render
    assert request.priority == types.PRIORITY_LOW
    assert (request.targets[0].layer, request.targets[0].channel) == ("/a/b.3", 17)
    assert list(tmp_path.iterdir()) == []


def test_run_does_not_replace_an_earlier_result_unasked(
    interpret: Command, fake: FakeServer, tmp_path: Path
) -> None:
    assert interpret("run", "saliency", "net", "--output", tmp_path).exit_code == 0
    again = interpret("run", "saliency", "net", "--output", tmp_path)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    assert len(fake.requests["RunStream"]) == 1
    replaced = interpret("run", "saliency", "net", "--output", tmp_path, "--overwrite")
    assert replaced.exit_code == 0


def test_server_error_is_one_sentence_and_its_fields(interpret: Command, fake: FakeServer) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="params.epsilon", description="must be positive")
    bad.field_violations.add(field="params.steps", description="is unknown")
    fake.fail("RunStream", Failure(grpc.StatusCode.INVALID_ARGUMENT, "2 wrong fields", (bad,)))
    result = interpret("run", "saliency", "net", "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "Error: 2 wrong fields",
        "  params.epsilon: must be positive",
        "  params.steps: is unknown",
    ]


def test_server_failure_tells_the_request_id(interpret: Command, fake: FakeServer) -> None:
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", metadata={"request_id": "r-1"})
    fake.fail("ListModels", Failure(grpc.StatusCode.INTERNAL, "something broke", (info,)))
    result = interpret("models")
    assert result.exit_code == 1
    assert "r-1" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("unload", "nothing"),
        ("plugins", "show", "nothing"),
        ("models", "show", "nothing"),
        ("predict", "nothing", "{image}"),
    ],
)
def test_unknown_names_end_with_status_1(
    interpret: Command, image: Path, words: tuple[str, ...]
) -> None:
    result = interpret(*(word.format(image=image) for word in words))
    assert result.exit_code == 1
    assert "nothing" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "net"),
        ("predict", "net", "absent.png"),
        ("predict", "net", "absent.npy"),
        ("predict", "net", "{image}", "{array}"),
        ("run", "saliency", "net", "--target", "cat"),
        ("run", "saliency", "net", "--target", "layer:a/channel:b"),
        ("run", "saliency", "net", "--param", "epsilon"),
        ("run", "saliency", "net", "--param", "epsilon=1/0"),
        ("run", "saliency", "net", "--params", "{image}"),
        ("run", "saliency", "net", "--seed", "-1"),
        ("run", "saliency", "net", "--priority", "urgent"),
        ("run", "saliency", "net", "--tensor", "mask={image}"),
        ("load", "new", "absent.pt"),
        ("load", "new", "{image}", "--server-path", "net"),
        ("load", "new", "{image}", "--shape", "a,b"),
        ("load", "new", "{image}", "--bounds", "low,high"),
        ("load", "new", "{image}", "--manifest", "{image}"),
        ("--timeout", "0", "models"),
        ("nothing",),
    ],
)
def test_wrong_usage_ends_with_status_2(
    interpret: Command, image: Path, array: Path, words: tuple[str, ...]
) -> None:
    result = interpret(*(word.format(image=image, array=array) for word in words))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_options_win_over_the_environment_wherever_they_stand(
    interpret: Command, fake: FakeServer
) -> None:
    wrong = {"INTERPRET_ADDRESS": "127.0.0.1:1", "INTERPRET_TOKEN": "secret"}
    for words in (["--address", fake.address, "models"], ["models", "--address", fake.address]):
        assert interpret(*words, env=wrong).exit_code == 0
    assert fake.metadata["authorization"] == "Bearer secret"
    absent = interpret("models", env=wrong)
    assert absent.exit_code == 1
    assert "no server answers at 127.0.0.1:1" in absent.stderr


def test_installed_command_in_a_process_of_its_own(
    fake: FakeServer, array: Path, tmp_path: Path
) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "interpret_client", "--json"]
    done = subprocess.run(
        [*command, "run", "saliency", "net", str(array), "--output", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": paths, "INTERPRET_ADDRESS": fake.address},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["files"]) == 4
    assert done.stderr == ""


def test_ctrl_c_cancels_the_call_and_ends_with_status_130(fake: FakeServer) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        [sys.executable, "-m", "interpret_client", "run", "saliency", "hanging"],
        env={**os.environ, "PYTHONPATH": paths, "INTERPRET_ADDRESS": fake.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            assert fake.running.wait(60)
            running.send_signal(signal.SIGINT)
            stdout, stderr = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 130
    assert stdout == ""
    assert "Cancelled." in stderr
    assert "Traceback" not in stderr
    assert fake.cancelled.wait(20)
