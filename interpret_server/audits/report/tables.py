"""Samples and outcomes as tables: CSV that is read back exactly, and Parquet.

CSV as RFC 4180 has it, in UTF-8. Floats are written so that they are read back to the bit; NaN and
a decision that there is none of are empty. A text that a spreadsheet would take for a formula
gets an apostrophe in front, which reading takes off.
"""

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ...errors import FailedPrecondition, InvalidRequest
from ..plan import Plan
from ..records import Audit, Findings, Outcome, Sample
from ..standing import closest, norms_of, within

SAMPLES, OUTCOMES = "samples.csv", "outcomes.csv"

_Value = str | int | float | bool | None
_Cells = Mapping[str, Callable[[str], Any]]
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
_GROUP = 1 << 16  # lines of a Parquet row group


def _whole(text: str) -> int:
    return int(text) if text else -1


def _real(text: str) -> float:
    return float(text) if text else math.nan


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text]


def _text(text: str) -> str:
    return text.removeprefix("'")


_SAMPLE: _Cells = {
    "row": int,
    "label": int,
    "decision": _whole,
    "correct": _truth,
    "confidence": _real,
    "digest": _text,
}
_OUTCOME: _Cells = {
    "row": int,
    "stage": _text,
    "claimed": _truth,
    "confirmed": _truth,
    "queries": int,
    "digest": _text,
    "decision": _whole,
    "confidence": _real,
    "margin": _real,
    "l0": _real,
    "l1": _real,
    "l2": _real,
    "linf": _real,
}


def sample_columns(audit: Audit) -> dict[str, type]:
    """The columns of samples and their types: the sample's own, then what threats came to.

    For each norm and radius `<norm>_<radius>_stands`, and `<norm>_<radius>_broken_by` with the
    stage of the closest example within it; for each norm `<norm>_smallest`, the smallest distance
    of a confirmed example; for each corruption `<stage>_stands`, empty where it was not tried.
    """
    columns: dict[str, type] = {
        "row": int,
        "label": int,
        "decision": int,
        "correct": bool,
        "confidence": float,
        "digest": str,
    }
    for threat in audit.spec.threats:
        for radius in threat.epsilons:
            columns[f"{threat.norm}_{radius!r}_stands"] = bool
            columns[f"{threat.norm}_{radius!r}_broken_by"] = str
        columns[f"{threat.norm}_smallest"] = float
    return columns | {f"{key}_stands": bool for key in _corruptions(audit.plan)}


def outcome_columns() -> dict[str, type]:
    """The columns of outcomes and their types."""
    return {name: Outcome.__annotations__[name] for name in _OUTCOME}


def write_samples(findings: Findings, path: Path) -> None:
    """One line for each sample, in order of rows."""
    _write(path, list(sample_columns(findings.audit)), sample_lines(findings))


def write_outcomes(findings: Findings, path: Path) -> None:
    """One line for each outcome, in order of units and rows."""
    _write(path, list(_OUTCOME), outcome_lines(findings))


def read_samples(path: Path) -> Iterator[Sample]:
    """The samples of a table; what else its lines tell follows from the outcomes.

    Raises:
        InvalidRequest: a line is not as it was written.
    """
    for number, cells in _read(path, _SAMPLE):
        correct = cells.pop("correct")
        sample = Sample(**cells)
        if sample.correct is not correct:
            raise _wrong(path, number, f"`correct` of sample {sample.row} contradicts its decision")
        yield sample


def read_outcomes(path: Path) -> Iterator[Outcome]:
    """The outcomes of a table.

    Raises:
        InvalidRequest: a line is not as it was written.
    """
    for _, cells in _read(path, _OUTCOME):
        yield Outcome(**cells)


def write_samples_parquet(findings: Findings, path: Path) -> None:
    """The same as `write_samples`, with types.

    Raises:
        FailedPrecondition: pyarrow is not installed.
    """
    _write_parquet(path, sample_columns(findings.audit), sample_lines(findings))


def write_outcomes_parquet(findings: Findings, path: Path) -> None:
    """The same as `write_outcomes`, with types.

    Raises:
        FailedPrecondition: pyarrow is not installed.
    """
    _write_parquet(path, outcome_columns(), outcome_lines(findings))


def sample_lines(findings: Findings) -> Iterator[tuple[_Value, ...]]:
    """The values of `sample_columns`, sample by sample."""
    plan = findings.audit.plan
    threats = {threat.norm: threat.epsilons for threat in findings.audit.spec.threats}
    nearest = {norm: closest(findings.outcomes, norms_of(plan), norm) for norm in threats}
    corrupted = _corrupted(findings)
    keys = list(_corruptions(plan))
    for sample in findings.samples:
        line: list[_Value] = [
            sample.row,
            sample.label,
            sample.decision if sample.decision >= 0 else None,
            sample.correct,
            _known(sample.confidence),
            sample.digest,
        ]
        for norm, radii in threats.items():
            best = nearest[norm].get(sample.row)
            distance = math.nan if best is None else best.distance(norm)
            for radius in radii:
                broken = best is not None and within(distance, radius)
                line += [sample.correct and not broken, best.stage if best and broken else None]
            line.append(_known(distance))
        yield (*line, *(corrupted.get((sample.row, key)) for key in keys))


def outcome_lines(findings: Findings) -> Iterator[tuple[_Value, ...]]:
    """The values of `outcome_columns`, outcome by outcome."""
    for item in findings.outcomes:
        yield (
            item.row,
            item.stage,
            item.claimed,
            item.confirmed,
            item.queries,
            item.digest or None,
            item.decision if item.decision >= 0 else None,
            *(_known(getattr(item, name)) for name in ("confidence", "margin")),
            *(_known(item.distance(norm)) for norm in ("l0", "l1", "l2", "linf")),
        )


def _corruptions(plan: Plan) -> Iterator[str]:
    return (stage.key for stage in plan.stages if stage.kind == "corruption")


def _corrupted(findings: Findings) -> dict[tuple[int, str], bool]:
    keys = set(_corruptions(findings.audit.plan))
    return {
        (item.row, item.stage): not item.confirmed
        for item in findings.outcomes
        if item.stage in keys
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _cell(value: _Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return float.__repr__(value) if isinstance(value, float) else str(value)


def _write(path: Path, header: Sequence[str], lines: Iterator[tuple[_Value, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow([_cell(name) for name in header])
        writer.writerows([_cell(value) for value in line] for line in lines)


def _read(path: Path, columns: _Cells) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8", newline="") as file:
        lines = _lines(path, file)
        _, header = next(lines, (0, []))
        if header[: len(columns)] != list(columns):
            raise _wrong(path, 1, f"it must begin with the columns {', '.join(columns)}")
        for number, line in lines:
            if len(line) != len(header):
                raise _wrong(path, number, f"it has {len(line)} cells of {len(header)}")
            yield number, _parsed(path, number, columns, line)


def _lines(path: Path, file: IO[str]) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file, strict=True)
    try:
        for line in reader:
            yield reader.line_num, line
    except (csv.Error, UnicodeDecodeError):
        raise _wrong(path, reader.line_num + 1, "it is no CSV in UTF-8") from None


def _parsed(path: Path, number: int, columns: _Cells, line: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for (name, parse), cell in zip(columns.items(), line, strict=False):
        try:
            values[name] = parse(cell)
        except (ValueError, KeyError):
            raise _wrong(path, number, f"{name} cannot be {cell[:40]!r}") from None
    return values


def _wrong(path: Path, number: int, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{path.name}, line {number}: {problem}")


def _write_parquet(
    path: Path, columns: Mapping[str, type], lines: Iterator[tuple[_Value, ...]]
) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise FailedPrecondition(
            "Parquet needs pyarrow on the server: install interpret-server[parquet]"
        ) from None
    kinds = {int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema(
        [(name, kinds.get(kind, pyarrow.string())) for name, kind in columns.items()]
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for group in _groups(lines):
            arrays = [
                pyarrow.array([line[place] for line in group], schema.types[place])
                for place in range(len(columns))
            ]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def _groups(lines: Iterator[tuple[_Value, ...]]) -> Iterator[list[tuple[_Value, ...]]]:
    group: list[tuple[_Value, ...]] = []
    for line in lines:
        group.append(line)
        if len(group) == _GROUP:
            yield group
            group = []
    if group:
        yield group
