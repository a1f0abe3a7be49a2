"""`interpret-server` as users start it: a process of its own."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import torch
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc

from interpret_api.v1 import interpret_service_pb2 as runs
from interpret_api.v1 import model_service_pb2 as models
from interpret_api.v1 import types_pb2 as types
from interpret_api.v1.interpret_service_pb2_grpc import InterpretServiceStub
from interpret_api.v1.model_service_pb2_grpc import ModelServiceStub
from interpret_server import __version__
from interpret_server.cli import main
from interpret_server.engine import sandbox

COMMAND = [sys.executable, "-m", "interpret_server"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
WAIT = 60  # seconds that no step should take

PLUGIN = '''
import time
from dataclasses import dataclass
from interpret_server.plugin import *

class Steps(Params):
    steps: int = 1
    pause: float = 0.0

@dataclass(frozen=True)
class Same:
    images: object = output("The inputs.")

class Pause(Plugin[Steps, Same]):
    """Waits between its steps."""
    name = "pause"
    kind = Kind.SYNTHESIS
    target_kinds = frozenset()

    def run(self, model, batch, params, job):
        for _ in job.track(params.steps):
            time.sleep(params.pause)
        return Same(batch.inputs)
'''


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a sound model `net` and a corrupt one."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("net", "corrupt"):
        (folder / name / "1").mkdir(parents=True)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(folder / "net/1/model.pt"))
    (folder / "net" / "model.toml").write_text("shape = [2]\nbounds = [0, 1]\n")
    (folder / "corrupt/1/model.pt").write_bytes(b"no model")
    return folder


@pytest.fixture(scope="module")
def plugin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "pause.py").write_text(PLUGIN)
    return folder


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """The process, its address, and the file that its log goes to."""
    ready, log = folder / "address", folder / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--address=127.0.0.1:0", f"--ready-file={ready}", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=ENVIRONMENT,
        )
    try:
        give_up = time.monotonic() + WAIT
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up
            time.sleep(0.02)
        yield process, ready.read_text(), log
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def request(**fields: object) -> runs.RunRequest:
    tensor = types.Tensor(dtype=types.DATA_TYPE_FLOAT32, shape=[1, 2], data=bytes(8))
    inputs = types.Inputs(tensor=tensor)
    return runs.RunRequest(**{"model": "net", "plugin": "pause", "inputs": inputs, **fields})


@pytest.mark.parametrize("trust", [(), ("--trust-models",)], ids=["workers", "trusted"])
def test_a_server_starts_serves_its_repository_and_drains_on_sigterm(
    repository: Path, plugin_dir: Path, tmp_path: Path, trust: tuple[str, ...]
) -> None:
    folders = [f"--model-repository={repository}", f"--plugin-dir={plugin_dir}"]
    options = [*folders, "--device=cpu", *trust]
    with serving(tmp_path, *options) as (process, address, log):
        assert process.stdout is not None
        assert process.stdout.readline() == f"serving at {address}\n"
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            listed = ModelServiceStub(channel).ListModels(models.ListModelsRequest()).models
            assert [model.name for model in listed] == ["net"]
            assert "model corrupt is not served: " in log.read_text()
            assert "Traceback" not in log.read_text()

            stream = InterpretServiceStub(channel).RunStream(
                runs.RunStreamRequest(request=request(params_json='{"steps": 20, "pause": 0.05}'))
            )
            assert next(stream).HasField("progress")
            process.send_signal(signal.SIGTERM)
            *_, last = stream
            assert last.HasField("result")
        assert process.wait(WAIT) == 0
        assert not (tmp_path / "address").exists()


def test_sighup_loads_what_changed_and_tries_again_what_failed(tmp_path: Path) -> None:
    models_folder = tmp_path / "models"
    (models_folder / "net/1").mkdir(parents=True)
    file = models_folder / "net/1/model.pt"
    file.write_bytes(b"no model")
    (models_folder / "net/model.toml").write_text("shape = [2]\nbounds = [0, 1]\n")
    options = [f"--model-repository={models_folder}", "--device=cpu"]
    with (
        serving(tmp_path, *options) as (process, address, log),
        grpc.insecure_channel(address) as channel,
    ):
        assert "model net is not served: " in log.read_text()
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(file))
        process.send_signal(signal.SIGHUP)
        give_up = time.monotonic() + WAIT
        stub = ModelServiceStub(channel)
        while not (listed := stub.ListModels(models.ListModelsRequest()).models):
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.02)
        assert [model.name for model in listed] == ["net"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0


def test_a_server_that_requires_its_models_does_not_start_without_one(
    repository: Path, tmp_path: Path
) -> None:
    run = subprocess.run(
        [
            *COMMAND,
            "serve",
            "--address=127.0.0.1:0",
            "--device=cpu",
            "--require-models",
            f"--model-repository={repository}",
            f"--ready-file={tmp_path / 'ready'}",
        ],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=WAIT,
    )
    assert run.returncode == 1
    assert "Error: require_models: model corrupt is not served: " in run.stderr
    assert "Traceback" not in run.stderr
    assert "serving at" not in run.stdout
    assert not (tmp_path / "ready").exists()


def test_a_call_that_outlasts_the_grace_is_ended(
    repository: Path, plugin_dir: Path, tmp_path: Path
) -> None:
    config = tmp_path / "server.toml"
    config.write_text(
        f'model_repository = "{repository}"\nplugin_dirs = ["{plugin_dir}"]\n'
        'device = "cpu"\ngrace = 0.2\n'
    )
    with (
        serving(tmp_path, f"--config={config}") as (process, address, _),
        grpc.insecure_channel(address) as channel,
    ):
        stream = InterpretServiceStub(channel).RunStream(
            runs.RunStreamRequest(request=request(params_json='{"steps": 100000, "pause": 0.05}'))
        )
        assert next(stream).HasField("progress")
        process.send_signal(signal.SIGINT)
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert process.wait(WAIT) == 0


def test_a_plugin_that_does_not_load_stops_the_start_up(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    run = subprocess.run(
        [*COMMAND, "serve", "--address=127.0.0.1:0", f"--plugin-dir={tmp_path}"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=WAIT,
    )
    assert (run.returncode, run.stdout) == (1, "")
    (line,) = run.stderr.splitlines()
    assert line.startswith("Error: broken.py: the file does not load: ModuleNotFoundError")


def serve_here(*arguments: str) -> str:
    """The one line that a `serve` which fails prints."""
    result = CliRunner().invoke(main, ["serve", *arguments])
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    return result.output


def test_a_bad_setting_stops_the_start_up(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text("max_que = 3\n")
    assert "max_que is not a setting" in serve_here(f"--config={config}")
    assert "device: 'tpu'" in serve_here("--device=tpu")
    assert "device: there is no cuda:99" in serve_here("--device=cuda:99")
    assert "max_queue: " in serve_here("--max-queue=0")
    assert "model_repository: " in serve_here("--model-repository=/nowhere/at/all")
    assert "cannot be read" in serve_here(f"--config={tmp_path / 'nowhere'}")


def test_an_incomplete_sandbox_is_told_and_refused_where_it_is_required(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(sandbox, "missing", lambda: ("Landlock is missing.",))
    assert "require_sandbox: Landlock is missing." in serve_here("--require-sandbox")
    assert "trust_models: there is no sandbox" in serve_here("--require-sandbox", "--trust-models")
    with caplog.at_level(logging.WARNING):
        serve_here(f"--plugin-dir={tmp_path / 'nowhere'}")
    assert "the sandbox is incomplete: Landlock is missing." in caplog.text


def test_a_missing_plugin_folder_stops_the_start_up(tmp_path: Path) -> None:
    assert "does not exist" in serve_here(f"--plugin-dir={tmp_path / 'nowhere'}")


def test_an_address_in_use_stops_the_start_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = serve_here(f"--address={address}")
    assert line.startswith(f"Error: cannot listen on {address}: ")


def test_a_ready_file_in_no_folder_stops_the_start_up(tmp_path: Path) -> None:
    line = serve_here(f"--ready-file={tmp_path / 'nowhere' / 'address'}")
    assert "ready-file: " in line


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(main, ["--version"])
    assert result.output == f"interpret-server, version {__version__}\n"


def test_every_flag_is_explained() -> None:
    result = CliRunner().invoke(main, ["serve", "--help"])
    flags = "config address model-repository repository-poll require-models device plugin-dir"
    for flag in (*flags.split(), "max-queue"):
        assert f"--{flag} " in result.output
    assert CliRunner().invoke(main, ["--help"]).output.count("  demo") == 1
