"""The report of an audit in its forms: a bundle on the disk, and what is made of it."""

import os
import shutil
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from ..durable import sync_folder
from ..errors import InvalidRequest
from .files import AuditFiles
from .records import State
from .store import Store

_BUNDLE = "bundle"


class ReportForm(StrEnum):
    """In which a report is handed out."""

    HTML = "html"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    BUNDLE = "bundle"

    @classmethod
    def of(cls, name: str) -> "ReportForm":
        """By its name. Raises InvalidRequest."""
        try:
            return cls(name)
        except ValueError:
            raise InvalidRequest.field("form", f"there is {', '.join(cls)}") from None


def write_bundle(store: Store, files: AuditFiles, audit_id: str, finished: float) -> dict[str, Any]:
    """Write the report of an audit of which all is done, and flush it to the disk.

    Args:
        finished: when, in seconds since the epoch.

    Returns:
        Its JSON document.
    """
    from .report import bundle

    for left in files.folder.glob(".*"):  # of a server that ended meanwhile
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    findings = store.findings(audit_id)
    audit = replace(findings.audit, state=State.FINISHED, error="", finished=finished)
    findings = replace(findings, audit=audit)
    folder = files.folder / _BUNDLE
    document = bundle.write(findings, files, folder)
    _flush(folder)
    return document


def report_file(store: Store, files: AuditFiles, audit_id: str, form: ReportForm) -> Path:
    """A form of the report of a finished audit; what was lost is written again."""
    from .report import bundle, tables

    folder = files.folder / _BUNDLE
    if not (folder / bundle.JSON).is_file() or not (folder / bundle.HTML).is_file():
        finished = store.audit(audit_id).finished
        assert finished is not None
        write_bundle(store, files, audit_id, finished)
    if form is ReportForm.BUNDLE:
        archive = files.folder / f"audit-{audit_id}.zip"
        if not archive.exists():
            bundle.pack(folder, archive)
        return archive
    if form is ReportForm.PARQUET:
        table, new = files.folder / "samples.parquet", files.folder / ".new.parquet"
        if not table.exists():
            tables.write_samples_parquet(store.findings(audit_id), new)
            new.replace(table)
        return table
    names = {ReportForm.HTML: bundle.HTML, ReportForm.JSON: bundle.JSON}
    return folder / names.get(form, tables.SAMPLES)


def _flush(folder: Path) -> None:
    """Make a folder and all below it last."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with (Path(parent) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))
    sync_folder(folder.parent)
