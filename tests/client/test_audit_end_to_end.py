"""Audits from both clients and the command line, run by a real server on a small network."""

import asyncio
import hashlib
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from fake_audit_server import LONG, until
from PIL import Image

import interpret_client
from interpret_client import Audit, Client, DataSet, FailedPrecondition, InvalidRequest, aio
from interpret_client.cli import main
from interpret_server.audits.manager import Audits
from interpret_server.testing import serve

COUNT, EPSILONS = 24, [0.02, 0.1]


def samples() -> tuple[np.ndarray, np.ndarray]:
    """Of two classes: whether the mean of all values is above a half, by 0.05 at least."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, COUNT)
    rows = random.uniform(0.2, 0.8, (COUNT, 1, 3, 3))
    wanted = np.where(labels, 0.58, 0.42) + random.uniform(-0.03, 0.03, COUNT)
    rows += (wanted - rows.mean((1, 2, 3)))[:, None, None, None]
    return rows.clip(0, 1).astype(np.float32), labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited")
    linear = torch.nn.Linear(9, 2)
    with torch.no_grad():
        linear.weight[0], linear.weight[1] = -1.0, 1.0
        linear.bias[0], linear.bias[1] = 4.5, -4.5
    network = torch.nn.Sequential(torch.nn.Flatten(), linear)
    torch.jit.save(torch.jit.script(network.eval()), str(folder / "net.pt"))
    (folder / "data").mkdir()
    rows, labels = samples()
    np.savez(folder / "data" / "set.npz", images=rows, labels=labels)
    np.save(folder / "data" / "bare.npy", rows)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    file = folder / "net.pt", {"shape": [1, 3, 3], "bounds": [0, 1]}
    with serve(
        models={"net": file, "other": file},
        data_root=folder / "data",
        audits=lambda worker, data: Audits(worker, root=folder / "audits", data=data),
    ) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with interpret_client.connect(address) as client:
        yield client


def broken(radius: float) -> int:
    """Of a linear network in Linf: as many as have their mean within the radius of a half."""
    rows, _ = samples()
    return int((np.abs(rows.mean((1, 2, 3)) - 0.5) <= radius).sum())


def test_an_audit_is_watched_cancelled_resumed_reported_and_deleted(
    client: Client, address: str, folder: Path, tmp_path: Path
) -> None:
    rows, labels = samples()
    run = client.audit(
        "net",
        rows,
        labels,
        suite="quick",
        epsilon=EPSILONS,
        batch_size=6,
        queries=100,
        title="Both sides",
    )
    seen: list[Audit] = []

    async def follow() -> Audit:
        async with aio.connect(address) as other:
            found = await other.get_audit(run.id)
            seen.extend([audit async for audit in found.watch()])
            return found.audit

    def in_a_loop() -> None:
        asyncio.run(follow())

    watching = threading.Thread(target=in_a_loop)
    watching.start()
    for audit in run.watch():
        if audit.done >= 2:
            break
    cancelled = run.cancel()
    watching.join(LONG)
    assert cancelled.state == seen[-1].state == "cancelled"
    assert 2 <= cancelled.done < cancelled.total
    with pytest.raises(FailedPrecondition):
        run.report()

    assert run.resume().state in ("queued", "running")
    watching = threading.Thread(target=in_a_loop)
    watching.start()
    final = run.wait(timeout=120)
    watching.join(LONG)
    assert seen[-1] == final
    assert (final.done, final.samples, final.clean_accuracy) == (final.total, COUNT, 1.0)
    assert final.standing == COUNT - broken(EPSILONS[1])

    document = json.loads(run.report("json"))
    (threat,) = document["threats"]
    found = {item["epsilon"]: item["standing"] for item in threat["radii"]}
    assert found == {radius: COUNT - broken(radius) for radius in EPSILONS}
    assert b"Both sides" in run.report("html")
    assert len(run.report("csv").splitlines()) == COUNT + 1
    bundle = run.report("bundle", tmp_path / "bundle")
    assert json.loads((bundle / "report.json").read_bytes()) == document
    assert document["origin"]["data_sha256"] == final.origin.data_sha256
    for name, digest in document["files"].items():
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest
    run.delete()
    assert run.id not in [item.id for item in client.audits()]
    assert not (folder / "audits" / run.id).exists()


def test_the_models_copy_stays_when_the_model_goes(client: Client) -> None:
    rows, labels = samples()
    run = client.audit("other", rows[:4], labels[:4], attacks=["fgsm"], epsilon=0.1)
    client.unload_model("other")
    assert run.wait(timeout=120).state == "finished"
    assert [model.name for model in client.models()] == ["net"]


def test_a_model_that_was_uploaded_is_audited(client: Client, folder: Path) -> None:
    rows, labels = samples()
    manifest = {"shape": [1, 3, 3], "bounds": [0, 1]}
    client.load_model("sent", folder / "net.pt", manifest=manifest)
    run = client.audit("sent", rows[:4], labels[:4], attacks=["fgsm"], epsilon=0.1)
    client.unload_model("sent")
    assert run.wait(timeout=120).state == "finished"
    run.delete()


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"dataset": "bare"}, {"labels"}),
        ({"dataset": DataSet("set", slice(20, 40))}, {"inputs.dataset.rows"}),
        ({"dataset": "../net"}, {"inputs.dataset.name"}),
        ({"inputs": samples()[0] + 1, "labels": samples()[1]}, {"inputs"}),
        ({"inputs": samples()[0][:, 0], "labels": samples()[1]}, {"inputs"}),
        ({"inputs": samples()[0], "labels": samples()[1] + 1}, {"labels"}),
        ({"dataset": "set", "epsilon": 2}, {"threats[0].epsilons"}),
        ({"dataset": "set", "epsilon": 1e-4}, {"threats[0].epsilons"}),
        ({"dataset": "set", "attacks": ["saliency"]}, {"attacks[0].plugin"}),
        (
            {"dataset": "set", "attacks": [{"plugin": "pgd", "params": {"steps": 0}}]},
            {"attacks[0].params.steps"},
        ),
    ],
)
def test_what_an_audit_cannot_be_about_is_named_and_leaves_nothing(
    client: Client, folder: Path, given: dict[str, object], fields: set[str]
) -> None:
    before = client.audits()
    with pytest.raises(InvalidRequest) as caught:
        client.audit("net", **{"epsilon": 0.1, **given})
    assert {item.field for item in caught.value.violations} == fields
    assert [item.id for item in client.audits()] == [item.id for item in before]
    kept = {path.name for path in (folder / "audits").iterdir() if path.is_dir()}
    assert kept == {item.id for item in before}


def test_an_upload_that_is_given_up_leaves_nothing(address: str, folder: Path) -> None:
    rows, labels = samples()
    many = np.repeat(rows, 40_000 // COUNT, axis=0).repeat(40, axis=0)
    with interpret_client.connect(address) as other:
        other.audits()
        folders = folder / "audits"
        sending = threading.Thread(
            target=lambda: give_up(other, many, labels.repeat(len(many) // COUNT))
        )
        known = {run.id for run in other.audits()}
        sending.start()
        until(lambda: bool(list(folders.glob(".new-*"))))
    sending.join(LONG)
    until(lambda: not list(folders.glob(".*-*")))
    assert {path.name for path in folders.iterdir() if path.is_dir()} <= known
    with interpret_client.connect(address) as another:
        assert {run.id for run in another.audits()} <= known


def give_up(client: Client, rows: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises((interpret_client.Cancelled, ValueError)):
        client.audit("net", rows, labels, epsilon=0.1)


def test_an_image_that_cannot_be_decoded_is_refused_with_its_number(
    client: Client, folder: Path, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(100, 150, (3, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    known = [run.id for run in client.audits()]
    for wrong, problem in (
        (whole[:45], "the image is truncated or corrupt"),
        (b"GIF89a", "the bytes are neither a JPEG nor a PNG image"),
        (huge(whole), "the image is too large; at most 50000000 pixels"),
    ):
        with pytest.raises(InvalidRequest, match=f"^inputs: row 7: {problem}"):
            client.audit("net", [whole] * 7 + [wrong], [0] * 8, epsilon=0.1, batch_size=3)
    assert [run.id for run in client.audits()] == known
    assert not list((folder / "audits").glob(".new-*"))


def huge(png: bytes) -> bytes:
    """A picture that says it is so large that nobody should decode it."""
    head = b"IHDR" + struct.pack(">II", 60000, 60000) + png[24:29]
    return png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]


@pytest.fixture
def interpret(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str) -> Result:
        words = ["audit", *arguments]
        return CliRunner().invoke(main, words, env={"INTERPRET_ADDRESS": address})

    return invoke


def test_the_command_line_audits_a_data_set_of_the_server_and_compares(
    interpret: Callable[..., Result],
) -> None:
    words = ["run", "net", "--dataset", "set", "--rows", ":8", "--epsilon", "1/10"]
    words += ["--attack", "pgd:steps=5", "--fail-under"]
    result = interpret(*words, "0", "--output", "out")
    assert result.exit_code == 0, result.stderr
    assert "8 samples" in result.stdout
    report = json.loads(Path("out/report.json").read_bytes())
    assert report["origin"]["data"] == "set[0:8]"
    result = interpret(*words, "1", "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found["robust_accuracy"] < 1

    result = interpret("compare", "out", found["audit"]["id"], "--output", "compared.html")
    assert result.exit_code == 0, result.stderr
    assert "no significant difference" in result.stdout
    assert "<html" in Path("compared.html").read_text()
    failed = interpret("compare", "out", "out", "--json", "--fail-under", "1")
    assert failed.exit_code == 3
    assert json.loads(failed.stdout)["paired"]
    assert interpret("compare", "out", "out", "--fail-on-regression").exit_code == 0
    refused = interpret("compare", "out", ".")
    assert refused.exit_code == 1
    assert "is no report" in refused.stderr


def test_the_command_line_audits_a_folder_of_images(interpret: Callable[..., Result]) -> None:
    rows, labels = samples()
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        folder = Path("images") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (row[0] * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    words = ("--attack", "fgsm", "--epsilon", "8/255", "--json")
    result = interpret("run", "net", "images", *words)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["accuracies"][0] == {**found["accuracies"][0], "what": "clean", "accuracy": 1.0}
    assert found["audit"]["plan"]["samples"] == COUNT
    Path("images/0/spoiled.png").write_bytes(b"no image")
    spoiled = interpret("run", "net", "images", *words)
    assert spoiled.exit_code == 1
    row = sum(not label for label in labels)  # the last one of its class
    problem = "the bytes are neither a JPEG nor a PNG image"
    assert spoiled.stderr == f"Error: inputs: row {row}: {problem}\n"
