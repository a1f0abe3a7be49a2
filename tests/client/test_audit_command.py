"""`interpret audit`: what it sends, prints, writes and returns."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_audit_server import LONG, FakeAudits, serve_audits, until

import interpret_client
from interpret_client.cli import main
from interpret_client.cli._audit_output import so_far, steps_done
from interpret_server.audits.ingest import StoredSet
from interpret_server.audits.records import Current, State
from interpret_server.errors import InvalidRequest as ServerRefusal

Command = Callable[..., Result]

ROWS = np.random.default_rng(0).random((5, 1, 2, 2))
LABELS = np.array([0, 1, 2, 0, 1])
DOCUMENT = {
    "samples": 5,
    "clean": {"accuracy": 0.8, "interval": [0.284, 0.995]},
    "threats": [
        {
            "norm": "linf",
            "radii": [
                {"epsilon": 8 / 255, "accuracy": 0.6, "interval": [0.147, 0.947]},
                {"epsilon": 0.1, "accuracy": 0.4, "interval": [0.053, 0.853]},
            ],
        }
    ],
    "corruptions": None,
    "masking": [{"sentence": "The gradients of 2 samples are zero."}],
    "undone": None,
    "verdict": "Of 5 samples …",
}
CORRUPTED = {
    "threats": [],
    "corruptions": {
        "by_corruption": [{"corruption": "gaussian_noise", "mean": 0.7}],
        "mean": 0.65,
    },
    "undone": {"samples": 2, "batches": 1},
}


@pytest.fixture
def audits(tmp_path: Path) -> FakeAudits:
    """Each finishes as soon as somebody watches it, with the report of `DOCUMENT`."""
    audits = FakeAudits()
    write_report(audits, tmp_path, DOCUMENT)
    audits.watched = audits.finish
    return audits


def write_report(audits: FakeAudits, folder: Path, document: dict[str, Any]) -> None:
    served = folder / "served"
    served.mkdir(exist_ok=True)
    text = json.dumps(document)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("audit-a1/report.json", text)
        archive.writestr("audit-a1/report.html", "<p>")
        archive.writestr("audit-a1/inputs/000000.npy", "rows")
    files = {"json": text.encode(), "html": b"<p>", "csv": b"row\n", "bundle": data.getvalue()}
    for form, content in files.items():
        audits.files[form] = served / form
        audits.files[form].write_bytes(content)


@pytest.fixture
def address(audits: FakeAudits) -> Iterator[str]:
    with serve_audits(audits) as address:
        yield address


@pytest.fixture
def interpret(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: Any) -> Result:
        words = ["audit", *map(str, arguments)]
        return CliRunner().invoke(main, words, env={"INTERPRET_ADDRESS": address})

    return invoke


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "digits.npz", images=ROWS, labels=LABELS, more=LABELS)
    return tmp_path / "digits.npz"


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_an_audit_from_first_to_last(
    interpret: Command, audits: FakeAudits, data: Path, tmp_path: Path
) -> None:
    result = interpret(
        "run", "net", data, "--suite", "quick", "--epsilon", "8/255", "--epsilon", "0.1",
        "--seed", "3", "--title", "Of Friday", "--output", "out", "--fail-under", "0.4",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "Of Friday: 5 samples, audit a1" in result.stdout
    assert re.search(r"clean +80\.0% +28\.4% to 99\.5%", result.stdout)
    assert re.search(r"Linf ≤ 0\.0313725 +60\.0% +14\.7% to 94\.7%", result.stdout)
    assert re.search(r"Linf ≤ 0\.1 +40\.0%", result.stdout)
    assert "Warning: The gradients of 2 samples are zero." in result.stdout
    assert "fab is left out." in result.stdout
    assert str(Path("out/report.html")) in result.stdout
    files = {path.relative_to("out").as_posix() for path in Path("out").rglob("*.*")}
    assert files == {"report.json", "report.html", "inputs/000000.npy"}
    spec = audits.get("a1").spec
    assert (spec.suite, spec.seed, spec.title) == ("quick", 3, "Of Friday")
    assert [(item.norm, item.epsilons) for item in spec.threats] == [("linf", (8 / 255, 0.1))]
    (chunk,) = audits.data["a1"]
    assert chunk.inputs.dtype == "float32"  # the model's
    assert bytes(chunk.inputs.data) == ROWS.astype(np.float32).tobytes()
    assert chunk.labels == tuple(LABELS.tolist())


def test_an_audit_below_the_threshold_ends_with_status_3(
    interpret: Command, data: Path, audits: FakeAudits, tmp_path: Path
) -> None:
    words = ("run", "net", data, "--epsilon", "0.1", "--fail-under")
    result = interpret(*words, "0.41")
    assert result.exit_code == 3
    assert "40.00% is below 41.00%" in result.stderr
    assert "interpret audit report a1 fetches the report" in result.stdout
    failed = interpret(*words, "0.41", "--json")
    assert failed.exit_code == 3
    assert not json.loads(failed.stdout)["passed"]
    write_report(audits, tmp_path, {**DOCUMENT, "threats": []})  # nothing is known
    assert interpret(*words, "0.01").exit_code == 3
    assert interpret(*words, "0").exit_code == 0


def test_one_document_and_nothing_else(interpret: Command, data: Path) -> None:
    result = interpret("run", "net", data, "--epsilon", "0.1", "--json", "--output", "out")
    found = document(result)
    assert result.stderr == ""
    assert found["audit"]["state"] == "finished"
    assert found["accuracies"][2] == {
        "what": "Linf ≤ 0.1",
        "accuracy": 0.4,
        "interval": [0.053, 0.853],
    }
    assert (found["robust_accuracy"], found["passed"], found["output"]) == (0.4, True, "out")
    assert found["warnings"] == ["The gradients of 2 samples are zero."]


def test_corruptions_have_no_epsilon(
    interpret: Command, audits: FakeAudits, data: Path, tmp_path: Path
) -> None:
    write_report(audits, tmp_path, {**DOCUMENT, **CORRUPTED})
    words = ("run", "net", data, "--suite", "corruption", "--fail-under")
    result = interpret(*words, "0.65")
    assert result.exit_code == 0
    assert re.search(r"gaussian noise +70\.0%", result.stdout)
    assert re.search(r"all corruptions +65\.0%", result.stdout)
    assert "ended the audit 2 samples early" in result.stdout
    assert interpret(*words, "0.66").exit_code == 3


def test_several_threat_models_attacks_and_a_budget(
    interpret: Command, audits: FakeAudits, data: Path
) -> None:
    result = interpret(
        "run", "net", data, "--threat", "linf=0.1,8/255", "--threat", "l2=1", "--attack", "fgsm",
        "--attack", 'pgd:steps=500,loss="dlr",step=1/4', "--no-minimal", "--batch-size", "2",
        "--seconds", "60", "--queries", "500", "--confirm-small-epsilon", "--detach",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "Audit a1 is queued." in result.stdout
    assert "interpret audit watch a1" in result.stdout
    spec = audits.get("a1").spec
    assert [(item.norm, item.epsilons) for item in spec.threats] == [
        ("linf", (8 / 255, 0.1)),
        ("l2", (1.0,)),
    ]
    assert [(item.plugin, item.params) for item in spec.attacks] == [
        ("fgsm", {}),
        ("pgd", {"steps": 500, "loss": "dlr", "step": 0.25}),
    ]
    assert (spec.minimal, spec.batch_size, spec.confirm_small_epsilon) == (False, 2, True)
    assert (spec.budget.seconds, spec.budget.queries) == (60.0, 500)
    assert document(interpret("run", "net", data, "--epsilon", "1", "--detach", "--json"))["id"]


def test_data_sets_of_the_server(interpret: Command, audits: FakeAudits) -> None:
    words = ("run", "net", "--epsilon", "0.1", "--detach", "--dataset", "mnist/test")
    assert interpret(*words).exit_code == 0
    assert interpret(*words, "--rows", "10:30").exit_code == 0
    assert audits.data == {
        "a1": StoredSet("mnist/test"),
        "a2": StoredSet("mnist/test", 10, 20),
    }


def test_arrays_and_where_their_classes_stand(
    interpret: Command, audits: FakeAudits, tmp_path: Path
) -> None:
    np.save("rows.npy", ROWS.astype(np.float32))
    np.save("classes.npy", LABELS)
    np.savez("all.npz", classes=LABELS)
    Path("classes.txt").write_text("0\ndog\n\nowl\n0\n 1 \n")
    words = ("run", "net", "rows.npy", "--epsilon", "0.1", "--detach", "--labels")
    for name in ("classes.npy", "all.npz:classes", "classes.txt"):
        assert interpret(*words, name).exit_code == 0
    some = interpret(*words, "classes.npy", "--rows", "1:3")
    assert some.exit_code == 0, some.stderr
    labels = [chunk.labels for (chunk,) in audits.data.values()]
    assert labels == [(0, 1, 2, 0, 1)] * 3 + [(1, 2)]
    (chunk,) = audits.data["a4"]
    assert bytes(chunk.inputs.data) == ROWS[1:3].astype(np.float32).tobytes()


def test_bytes_are_scaled_and_get_the_models_axes(
    interpret: Command, audits: FakeAudits, tmp_path: Path
) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(64, 2, 2)
    np.savez("bytes.npz", x=pixels, y=np.arange(64) % 3)
    words = ("run", "net", "bytes.npz", "--epsilon", "0.1", "--detach")
    assert interpret(*words, "--scale", "1/255").exit_code == 0
    assert interpret(*words).exit_code == 0  # as they are: the server judges
    (scaled,), (plain,) = audits.data.values()
    assert scaled.inputs.dtype == "float32"
    assert scaled.inputs.shape == plain.inputs.shape == (64, 1, 2, 2)
    assert bytes(scaled.inputs.data) == (pixels / np.float32(255)).tobytes()
    assert plain.inputs.dtype == "uint8"


def test_folders_of_images(interpret: Command, audits: FakeAudits, tmp_path: Path) -> None:
    for folder, names in {
        "flat": ["b.png", "a.JPG", ".hidden.png", "notes.txt"],
        "named/owl": ["1.png"],
        "named/cat": ["2.png", "1.png"],
        "numbered/10": ["1.png"],
        "numbered/2": ["1.png"],
        "other/zebra": ["1.png"],
        "other/ant": ["1.png"],
        "other/.git": ["1.png"],
    }.items():
        Path(folder).mkdir(parents=True)
        for name in names:
            (Path(folder) / name).write_bytes(f"{folder}/{name}".encode())
    Path("two.txt").write_text("1\n2\n")
    words = ("--epsilon", "0.1", "--detach")
    for folder in ("named", "numbered", "other"):
        assert interpret("run", "net", folder, *words).exit_code == 0
    assert interpret("run", "net", "flat", "--labels", "two.txt", *words).exit_code == 0
    assert interpret("run", "net", "named", "--rows", "0,2", *words).exit_code == 0
    found = [
        ([image.decode() for image in chunk.inputs], chunk.labels)
        for (chunk,) in audits.data.values()
    ]
    assert found == [
        (["named/cat/1.png", "named/cat/2.png", "named/owl/1.png"], (0, 0, 2)),
        (["numbered/10/1.png", "numbered/2/1.png"], (10, 2)),
        (["other/ant/1.png", "other/zebra/1.png"], (0, 1)),
        (["flat/a.JPG", "flat/b.png"], (1, 2)),
        (["named/cat/1.png", "named/owl/1.png"], (0, 2)),
    ]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--epsilon", "0.1"], 2, "give DATA or --dataset"),
        (["DATA", "--dataset", "a", "--epsilon", "0.1"], 2, "give DATA or --dataset"),
        (["DATA"], 2, "give at least one --epsilon"),
        (["DATA", "--epsilon", "small"], 2, "'small': write 0.3 or 8/255"),
        (["DATA", "--epsilon", "1/0"], 2, "divides by zero"),
        (["DATA", "--epsilon", "0.1", "--threat", "l2=1"], 2, "not both"),
        (["DATA", "--threat", "l2"], 2, "write KEY=VALUE"),
        (["DATA", "--threat", "l2=1", "--threat", "l2=2"], 2, "name each norm once"),
        (["DATA", "--threat", "l7=1"], 1, "'l7' is none of linf, l2, l1"),
        (["DATA", "--epsilon", "-1"], 1, "threats[0].epsilons[0]"),
        (["DATA", "--epsilon", "0.1", "--detach", "--output", "out"], 2, "need --wait"),
        (["DATA", "--epsilon", "0.1", "--fail-under", "40"], 2, "--fail-under"),
        (["DATA", "--epsilon", "0.1", "--rows", "7:9"], 2, "there are 5 samples"),
        (["DATA", "--epsilon", "0.1", "--rows", "7"], 2, "there are 5 samples"),
        (["DATA", "--epsilon", "0.1", "--output", "."], 2, "is not empty"),
        (["rows.npy", "--epsilon", "0.1"], 2, "rows.npy tells no classes"),
        (["rows.npy", "--labels", "three.txt", "--epsilon", "0.1"], 2, "3 classes for 5 samples"),
        (["rows.npy", "--labels", "words.txt", "--epsilon", "0.1"], 2, "'ape' is no class"),
        (["two.npz", "--epsilon", "0.1"], 2, "call the array of the samples inputs, images or x"),
        (["bad.npz", "--epsilon", "0.1"], 2, "bad.npz holds no arrays"),
        (["fine.npz", "--epsilon", "0.1"], 2, "not one whole number for each sample"),
        (["words.txt", "--epsilon", "0.1"], 2, "neither a .npz or .npy file nor"),
        (["empty", "--epsilon", "0.1"], 2, "empty holds no images"),
        (["--dataset", "a", "--labels", "words.txt", "--epsilon", "0.1"], 2, "are for DATA"),
        (["DATA", "--scale", "much", "--epsilon", "0.1"], 2, "'much': write 0.3 or 8/255"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    interpret: Command,
    audits: FakeAudits,
    data: Path,
    words: list[str],
    code: int,
    sentence: str,
) -> None:
    np.save("rows.npy", ROWS)
    np.savez("two.npz", a=ROWS, b=ROWS)
    np.savez("fine.npz", x=ROWS, y=ROWS)
    Path("bad.npz").write_bytes(b"no archive")
    Path("three.txt").write_text("0\n1\n2\n")
    Path("words.txt").write_text("cat\nape\n")
    Path("empty").mkdir()
    given = [str(data) if word == "DATA" else word for word in words]
    result = interpret("run", "net", *given)
    assert result.exit_code == code
    assert sentence in re.sub(r"\s*\n *│? *", " ", result.stderr)
    assert "Traceback" not in result.stderr
    assert not audits.list()


def test_an_unknown_model_is_refused(interpret: Command, data: Path) -> None:
    result = interpret("run", "other", data, "--epsilon", "0.1")
    assert result.exit_code == 1
    assert "'other'" in result.stderr


def test_audits_are_listed_shown_and_steered(
    interpret: Command, audits: FakeAudits, data: Path
) -> None:
    assert "There is no audit" in interpret("list").stdout
    for norm in ("linf", "l2"):
        interpret("run", "net", data, "--norm", norm, "--epsilon", "0.1", "--detach")
    counts = {"samples": 4, "correct": 3, "standing": 1}
    audits.change("a1", state=State.FAILED, error="the disk is full", done=3, **counts)
    listed = interpret("list").stdout
    assert re.search(r"a2 +queued +net +l2 +0/6 +0 of 5 samples ", listed)
    assert re.search(r"a1 +failed +net +linf +3/6 +4 of 5 samples, 75\.0% clean, 25\.0%", listed)
    assert [item["id"] for item in document(interpret("list", "--json"))] == ["a2", "a1"]
    shown = interpret("show", "a1").stdout
    assert "failed - the disk is full" in shown
    assert "interpret-server 0, pgd 1" in shown
    assert re.search(rf"digits, \d+ samples, sha256\s+{'cd' * 32}", shown)
    assert document(interpret("show", "a1", "--json"))["correct"] == 3
    assert interpret("resume", "a1").stdout == "Audit a1 is queued.\n"
    assert document(interpret("cancel", "a1", "--json"))["state"] == "cancelled"
    assert interpret("delete", "a1").stdout == "Audit a1 is deleted.\n"
    assert document(interpret("delete", "a2", "--json")) == {"deleted": "a2"}
    gone = interpret("show", "a1")
    assert (gone.exit_code, gone.stderr) == (1, "Error: there is no audit 'a1'\n")


def test_watching_ends_as_running_does(interpret: Command, data: Path, audits: FakeAudits) -> None:
    interpret("run", "net", data, "--epsilon", "0.1", "--detach")
    result = interpret("watch", "a1", "--output", "out", "--fail-under", "0.5")
    assert result.exit_code == 3
    assert Path("out/report.html").read_text() == "<p>"
    audits.change("a1", state=State.FAILED, error="the disk is full.")
    failed = interpret("watch", "a1")
    assert failed.exit_code == 1
    assert failed.stderr == "Error: the audit a1 failed: the disk is full.\n"


def test_reports_are_fetched(interpret: Command, data: Path, audits: FakeAudits) -> None:
    interpret("run", "net", data, "--epsilon", "0.1")
    assert interpret("report", "a1").stdout == "audit-a1\n"
    assert Path("audit-a1/report.html").read_text() == "<p>"
    again = interpret("report", "a1")
    assert again.exit_code == 1
    assert "holds a report" in again.stderr
    assert interpret("report", "a1", "--overwrite").exit_code == 0
    assert interpret("report", "a1", "--form", "html").stdout == "audit-a1.html\n"
    interpret("report", "a1", "--form", "html", "--output", "audit-a1")
    assert Path("audit-a1/audit-a1.html").read_text() == "<p>"
    interpret("report", "a1", "--form", "csv", "--output", "new/rows.csv")
    assert Path("new/rows.csv").read_text() == "row\n"
    found = interpret("report", "a1", "--form", "bundle", "--output", "kept.zip", "--json")
    assert document(found) == {"output": "kept.zip"}
    assert zipfile.is_zipfile("kept.zip")


@pytest.mark.parametrize("cancel", [False, True])
def test_ctrl_c_leaves_the_audit_running_unless_told_otherwise(
    address: str, audits: FakeAudits, data: Path, cancel: bool
) -> None:
    audits.watched = None
    paths = os.pathsep.join(path for path in sys.path if path)
    words = ["audit", "run", "net", str(data), "--epsilon", "0.1"]
    with subprocess.Popen(
        [sys.executable, "-m", "interpret_client", *words, *["--cancel-on-interrupt"] * cancel],
        env={**os.environ, "PYTHONPATH": paths, "INTERPRET_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            until(lambda: audits.watchers == 1)
            running.send_signal(signal.SIGINT)
            stdout, stderr = running.communicate(timeout=LONG)
        finally:
            running.kill()
    assert (running.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    if cancel:
        assert "Audit a1 is cancelled." in stderr
        assert audits.get("a1").state is State.CANCELLED
    else:
        assert "Audit a1 goes on. interpret audit watch a1 follows it" in stderr
        assert audits.get("a1").state is State.QUEUED


def test_progress_counts_the_steps_of_the_attack_that_runs(
    interpret: Command, data: Path, audits: FakeAudits, address: str
) -> None:
    interpret("run", "net", data, "--epsilon", "0.1", "--detach")
    step = Current(0, "linf:0.1:pgd", 30, 40)
    audits.change("a1", state=State.RUNNING, done=2, current=step, samples=2, correct=1, standing=1)
    with interpret_client.connect(address) as client:
        audit = client.get_audit("a1").audit
    assert (steps_done(audit), audit.total) == (2.75, 6)
    assert so_far(audit) == "2 of 5 samples, 50.0% clean, 50.0% robust"


@dataclass
class Replayed:
    """What a replay comes to."""

    samples: int = 5
    examples: int = 3
    confirmed: int = 3
    repeated: int = 1
    complaints: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.complaints


def test_a_replay_tells_every_claim_that_does_not_hold(
    interpret: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    found = Replayed()

    async def replay(folder: Path, **options: Any) -> Replayed:
        asked.append((sorted(os.listdir(folder)), options))
        options.pop("report")(1, 2)
        if options["seed"] == 7:
            raise ServerRefusal("model: other.pt is another file than the report's")
        return found

    monkeypatch.setattr("interpret_server.audits.replay.replay", replay)
    interpret("run", "net", data, "--epsilon", "0.1", "--output", "out")
    result = interpret("replay", "out", "--rerun", "0.1", "--model", data)
    assert result.exit_code == 0, result.stderr
    assert "3 of 3 adversarial examples confirmed, 5 samples checked" in result.stdout
    assert "Every claim holds." in result.stdout
    files = ["inputs", "report.html", "report.json"]
    assert asked.pop() == (files, {"model": data, "rerun": 0.1, "seed": 0})
    assert document(interpret("replay", "a1", "--json"))["holds"]  # fetched from the server
    assert asked.pop() == (files, {"model": None, "rerun": 0.0, "seed": 0})
    found.notes = ("report.html: its plots could not be compared",)
    result = interpret("replay", "out")
    assert result.exit_code == 0
    assert "its plots could not be compared\nEvery claim holds." in result.stdout
    found.complaints = ("sample 2, linf:0.1:pgd: the file answers class 1",)
    result = interpret("replay", "out")
    assert result.exit_code == 1
    assert "sample 2, linf:0.1:pgd: the file answers class 1" in result.stdout
    assert "The report does not hold." in result.stdout
    refused = interpret("replay", "out", "--seed", "7")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "Error: model: other.pt is another file" in refused.stderr
    assert interpret("replay", "no/folder").exit_code == 2
    assert "no audit 'none'" in interpret("replay", "none").stderr
