"""A report as a folder that can be replayed, and the same as one file for download.

    report.html    the page
    report.json    every figure, and the SHA-256 of the files below
    samples.csv    a line for each sample
    outcomes.csv   a line for each sample and stage that it went through
    inputs/        the samples as plugins saw them, by batch
    examples/      adversarial examples that the original file confirmed, by batch and stage
    model/         the model

Arrays and the model are linked where the file system allows, not copied, and nothing is held in
memory as a whole.
"""

import contextlib
import hashlib
import json
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InvalidRequest
from ..files import AuditFiles
from ..records import Findings
from . import document as documents
from . import html, pictures, tables
from .evidence import Evidence

JSON, HTML = "report.json", "report.html"
_PIECE = 1 << 20
_BEGINNING = (1980, 1, 1, 0, 0, 0)  # the earliest date that an archive can hold
_TEXTS = frozenset({".html", ".json", ".csv"})


@dataclass(frozen=True)
class Report:
    """A bundle that was read.

    Args:
        folder: of the bundle.
        document: its JSON.
        findings: what the document was made of.
    """

    folder: Path
    document: Mapping[str, Any]
    findings: Findings


def write(findings: Findings, files: AuditFiles, folder: Path) -> dict[str, Any]:
    """Write a bundle; it takes the place of what is there once it is whole.

    Args:
        findings: of a finished audit.
        files: of the audit.
        folder: of the bundle; its parent is there.

    Returns:
        The JSON document.
    """
    with _whole_folder(folder) as new:
        tables.write_samples(findings, new / tables.SAMPLES)
        tables.write_outcomes(findings, new / tables.OUTCOMES)
        for name, path in _artefacts(findings, files):
            link(path, new / name)
        document = documents.build(findings, digests(new))
        document[documents.RUN]["page"] = html.drawn_with()
        (new / JSON).write_bytes(documents.encode(document))
        (new / HTML).write_text(page(document, new), encoding="utf-8")
    return document


def page(document: Mapping[str, Any], folder: Path) -> str:
    """The page of a bundle, from its document and arrays."""
    return html.render(document, pictures.draw(document, folder))


def read(folder: Path) -> Report:
    """Read a bundle's document and tables, and check nothing else.

    Raises:
        InvalidRequest: it is not whole, or not a bundle.
    """
    try:
        document = json.loads((folder / JSON).read_bytes())
        samples = tuple(tables.read_samples(folder / tables.SAMPLES))
        outcomes = tuple(tables.read_outcomes(folder / tables.OUTCOMES))
        findings = documents.restore(document, samples, outcomes)
    except OSError as error:
        missing = Path(error.filename or folder).name
        raise InvalidRequest(f"{folder.name} is no report: {missing} cannot be read") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = str(error) if type(error) is ValueError else "it is not as it was written"
        raise InvalidRequest(f"{folder.name}/{JSON}: {told}") from None
    known = {stage.key for stage in findings.audit.plan.stages}
    strange = next((item.stage for item in outcomes if item.stage not in known), None)
    if strange is not None:
        raise InvalidRequest(f"{tables.OUTCOMES}: the plan has no stage {strange[:80]!r}")
    return Report(folder, document, findings)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a bundle but the report itself, by its path."""
    return {name: sha256_of(folder / name) for name in names(folder) if name not in (JSON, HTML)}


def names(folder: Path) -> list[str]:
    """The paths of a bundle's files in it, sorted."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def pack(folder: Path, archive: Path) -> None:
    """A bundle as a `.zip` that holds one folder of its name; equal bundles give equal bytes."""
    new = archive.with_name(f".{archive.name}.{uuid.uuid4().hex}")
    try:
        with zipfile.ZipFile(new, "w") as target:
            for name in names(folder):
                path = folder / name
                entry = zipfile.ZipInfo(f"{archive.stem}/{name}", _BEGINNING)
                entry.create_system = 3
                entry.external_attr = 0o644 << 16
                entry.file_size = path.stat().st_size
                if path.suffix in _TEXTS:
                    entry.compress_type = zipfile.ZIP_DEFLATED
                with path.open("rb") as source, target.open(entry, "w") as inner:
                    shutil.copyfileobj(source, inner, _PIECE)
        new.replace(archive)
    finally:
        new.unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Link a file, or copy it where its file system allows no link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _artefacts(findings: Findings, files: AuditFiles) -> Iterator[tuple[str, Path]]:
    """The model, the samples and the examples of what was found, by their paths in the bundle."""
    evidence = Evidence(findings)
    wanted = {evidence.input_place(row).file for row in evidence.samples}
    wanted |= {place.file for place in evidence.example_places.values()}
    for name in sorted(wanted):
        yield name, files.folder / name
    for path in sorted(files.model.rglob("*")):
        if path.is_file():
            yield path.relative_to(files.folder).as_posix(), path


@contextlib.contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, that is renamed to its place if nothing goes wrong."""
    new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    new.mkdir()
    try:
        yield new
        with contextlib.suppress(FileNotFoundError):
            folder.rename(old)
        new.rename(folder)
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
