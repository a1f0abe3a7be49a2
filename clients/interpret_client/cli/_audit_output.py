"""How an audit is followed and told on a terminal."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .._audit_run import AuditRun
from ..audits import Audit
from ._output import console, pairs, table

BELOW = 3  # exit status
_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


class Accuracy(NamedTuple):
    """A figure of a report: a share of all samples, with its 95% interval, or None."""

    what: str
    accuracy: float | None
    interval: tuple[float, float] | None


class Outcome(NamedTuple):
    """What a finished audit came to."""

    audit: Audit
    document: Mapping[str, Any]
    output: Path | None

    def accuracies(self) -> Iterator[Accuracy]:
        """Clean, then under every threat model, or corruption."""
        yield _accuracy("clean", self.document["clean"])
        for threat in self.document["threats"]:
            for radius in threat["radii"]:
                name = f"{_NORMS[threat['norm']]} ≤ {radius['epsilon']:.6g}"
                yield _accuracy(name, radius)
        if corruptions := self.document["corruptions"]:
            for item in corruptions["by_corruption"]:
                yield Accuracy(item["corruption"].replace("_", " "), item["mean"], None)
            yield Accuracy("all corruptions", corruptions["mean"], None)

    def robust(self) -> float:
        """The least accuracy under any threat model; under corruptions their mean; else 0."""
        threats = self.document["threats"]
        found = [radius["accuracy"] for threat in threats for radius in threat["radii"]]
        if not found and (corruptions := self.document["corruptions"]):
            found = [corruptions["mean"]]
        known = [value for value in found if value is not None]
        return min(known, default=0.0)


def _accuracy(what: str, figures: Mapping[str, Any]) -> Accuracy:
    return Accuracy(what, figures["accuracy"], tuple(figures["interval"]))


def read_outcome(run: AuditRun, output: Path | None, *, overwrite: bool) -> Outcome:
    """Fetch the report of a finished audit, and its bundle where there is a folder for it."""
    if output is None:
        return Outcome(run.audit, json.loads(run.report("json")), None)
    run.report("bundle", output, overwrite=overwrite)
    return Outcome(run.audit, json.loads((output / "report.json").read_bytes()), output)


def progress_bar(*, quiet: bool) -> Progress:
    """A bar on a terminal, with its field `found` in words; nothing where there is none."""
    screen = console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[found]}"),
        TimeRemainingColumn(),
        console=screen,
        disable=quiet or not screen.is_terminal,
        transient=True,
    )


@contextmanager
def followed(*, quiet: bool) -> Iterator[Callable[[Audit], None]]:
    """A progress bar, and what moves it."""
    with progress_bar(quiet=quiet) as progress:
        task = progress.add_task("queued", total=None, found="")

        def update(audit: Audit) -> None:
            progress.update(
                task,
                description=audit.state if audit.current is None else audit.current.stage,
                completed=steps_done(audit),
                total=audit.total,
                found=so_far(audit),
            )

        yield update


def steps_done(audit: Audit) -> float:
    """Stages on batches, with the part that is done of the one that runs."""
    step = audit.current
    part = step.done / step.total if step is not None and step.total else 0.0
    return round(audit.done + part, 2)


def so_far(audit: Audit) -> str:
    """`128 of 1000 samples, 97.7% clean, 41.4% robust`."""
    words = [f"{audit.samples} of {audit.plan.samples} samples"]
    if audit.clean_accuracy is not None:
        words.append(f"{audit.clean_accuracy:.1%} clean")
    if audit.robust_accuracy is not None and audit.spec["threats"]:
        words.append(f"{audit.robust_accuracy:.1%} robust")
    return ", ".join(words)


def print_outcome(outcome: Outcome) -> None:
    """The figures in a table, what to mind, and where the report is."""
    out = console()
    rows = [
        (
            item.what,
            "-" if item.accuracy is None else f"{item.accuracy:.1%}",
            "" if item.interval is None else "{:.1%} to {:.1%}".format(*item.interval),
        )
        for item in outcome.accuracies()
    ]
    out.print(_title(outcome))
    out.print(table(("", "accuracy", "95% interval"), rows))
    for item in outcome.document["masking"]:
        out.print(f"Warning: {item['sentence']}", style="yellow")
    if undone := outcome.document["undone"]:
        out.print(f"The budget ended the audit {undone['samples']} samples early.", style="yellow")
    for note in outcome.audit.plan.notes:
        out.print(note)
    if outcome.output is not None:
        out.print(str(outcome.output / "report.html"))
    else:
        out.print(f"interpret audit report {outcome.audit.id} fetches the report.")


def _title(outcome: Outcome) -> str:
    audit, samples = outcome.audit, outcome.document["samples"]
    return f"{audit.spec['title'] or audit.origin.model}: {samples} samples, audit {audit.id}"


def outcome_document(outcome: Outcome, fail_under: float | None) -> dict[str, Any]:
    """The same for machines."""
    return {
        "audit": outcome.audit,
        "accuracies": [item._asdict() for item in outcome.accuracies()],
        "robust_accuracy": outcome.robust(),
        "verdict": outcome.document["verdict"],
        "warnings": [item["sentence"] for item in outcome.document["masking"]],
        "fail_under": fail_under,
        "passed": fail_under is None or outcome.robust() >= fail_under,
        "output": None if outcome.output is None else str(outcome.output),
    }


def print_audit(audit: Audit) -> None:
    """Everything that is known of an audit."""
    spec, origin, plan = audit.spec, audit.origin, audit.plan
    threats = [
        f"{_NORMS[threat['norm']]} ≤ {', '.join(f'{item:.6g}' for item in threat['epsilons'])}"
        for threat in spec["threats"]
    ]
    attacks = ", ".join(item["name"] or item["plugin"] for item in spec["attacks"])
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
    console().print(
        pairs(
            [
                ("id", audit.id),
                ("title", spec["title"]),
                ("state", " - ".join(filter(None, (audit.state, audit.error)))),
                ("model", f"{origin.model} (version {origin.model_version})"),
                ("file", f"{origin.model_format}, sha256 {origin.model_sha256}"),
                ("data", _data(audit)),
                ("suite", attacks or spec["suite"]),
                ("threats", "\n".join(threats)),
                ("seed", str(spec["seed"])),
                ("done", f"{audit.done} of {audit.total} steps, {so_far(audit)}"),
                ("created", moment(audit.created)),
                ("started", moment(audit.started)),
                ("finished", moment(audit.finished)),
                ("computing", f"{audit.seconds:.1f} s on {origin.device}, {origin.precision}"),
                ("versions", versions),
                ("notes", "\n".join(plan.notes)),
            ]
        )
    )


def _data(audit: Audit) -> str:
    digest = audit.origin.data_sha256
    told = f"{audit.origin.data}, {audit.plan.samples} samples"
    return f"{told}, sha256 {digest}" if digest else told


def moment(seconds: float | None) -> str:
    """A time as clocks here show it."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
