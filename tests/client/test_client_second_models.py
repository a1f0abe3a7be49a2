"""Second models through the clients and the command, against a real server."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from agreement import Agreement
from click.testing import CliRunner
from torch import nn

import interpret_client
from interpret_client import Client
from interpret_client.cli import main
from interpret_server.registry import Registry
from interpret_server.testing import classifier, serve

INPUTS = np.random.default_rng(0).random((3, 4), dtype=np.float32)


def _linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    registry = Registry()
    registry.add(Agreement, "tests", "1")
    models = {name: classifier(_linear(seed), (4,)) for seed, name in enumerate(("net", "other"))}
    with serve(registry, models) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with interpret_client.connect(address, timeout=120) as client:
        yield client


def check(result: interpret_client.Result) -> None:
    x = torch.from_numpy(INPUTS)
    theirs = _linear(1)(x).detach()
    np.testing.assert_allclose(result.tensors["theirs"], theirs.numpy(), rtol=1e-5)
    agrees = (_linear(0)(x).argmax(1) == theirs.argmax(1)).float()
    assert result.metrics["agrees"].tolist() == agrees.tolist()
    (second,) = result.provenance.models
    assert (second.role, second.model) == ("judge", "other")


def test_run_and_stream_name_second_models(client: Client) -> None:
    check(client.run("agreement", "net", INPUTS, models={"judge": "other"}))
    with client.stream("agreement", "net", INPUTS, models={"judge": "other"}) as stream:
        last = list(stream)[-1]
    assert last.result is not None
    check(last.result)


async def test_the_asynchronous_client_does_too(address: str) -> None:
    async with interpret_client.aio.connect(address) as client:
        check(await client.run("agreement", "net", INPUTS, models={"judge": "other"}))


def test_roles_are_described(client: Client) -> None:
    roles = {role.name: role for role in client.plugin("agreement").models}
    assert roles["judge"].required
    assert roles["witness"].requires == {"gradient"}
    assert not roles["stranger"].same_inputs


def test_a_wrong_model_is_refused_by_its_field(client: Client) -> None:
    with pytest.raises(interpret_client.InvalidRequest) as caught:
        client.run("agreement", "net", INPUTS)
    assert caught.value.violations[0].field == "models.judge"
    for wrong in ("", 3, None):
        models: Any = {"judge": wrong}
        with pytest.raises(interpret_client.InvalidRequest, match="name of a loaded model"):
            client.run("agreement", "net", INPUTS, models=models)


def test_the_command_names_them(address: str, tmp_path: Any) -> None:
    np.save(tmp_path / "inputs.npy", INPUTS)
    command = ["run", "agreement", "net", str(tmp_path / "inputs.npy"), "--json"]
    environment = {"INTERPRET_ADDRESS": address}
    done = CliRunner().invoke(main, [*command, "--model-role", "judge=other"], env=environment)
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["provenance"]["models"][0]["model"] == "other"
    assert CliRunner().invoke(main, command, env=environment).exit_code == 1
    shown = CliRunner().invoke(main, ["plugins", "show", "agreement"], env=environment)
    assert "What the first model is compared with." in " ".join(shown.stdout.split())
