"""Runs a group of calls: in chunks that fit the memory, and alone where one call spoils it."""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import InterpretError, Overloaded
from ..plugin import Batch, Role, Rows, result_tensors, role_of
from ..registry import AnyPlugin
from .blame import blame
from .failure import internal_error, logger
from .group import Group, Settlement
from .job import EngineJob, spans
from .member import Member, Outcome, why_nobody_waits
from .primitives import Decode, Original
from .request import Request, join, take
from .transfers import Upload, download

_NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "bad_alloc",
    "alloc_failed",  # of cuBLAS and cuDNN
)


def execute(group: Group) -> Iterator[Settlement]:
    """Run a group's calls as one batch and yield every call's outcome.

    Where the batch fails and holds several calls, each is run again by itself, so that one
    caller's row harms no other.
    """
    live = []
    for member in group.members:
        if member.waiting():
            live.append(member)
        else:
            yield member, why_nobody_waits([member])
    if not live:
        return
    outcomes = _attempt(group, live, alone=len(live) == 1)
    if outcomes is not None:
        yield from outcomes
        return
    for member in live:
        group.offer()
        yield from _attempt(group, [member], alone=True) or ()


def _attempt(group: Group, members: list[Member], *, alone: bool) -> list[Settlement] | None:
    request = members[0].request
    what = f"plugin {request.plugin.name} on model {request.served.info.name}"
    if not any(member.waiting() for member in members):
        return [(member, why_nobody_waits([member])) for member in members]
    try:
        return _run(group, members)
    except InterpretError as error:
        if alone or not any(member.waiting() for member in members):
            return [(member, error) for member in members]
    except Exception as error:
        if alone:
            if _out_of_memory(error):
                refusal: InterpretError = _no_memory(request, request.rows)
            else:
                refusal = blame(request) or internal_error(error, what)
            return [(member, refusal) for member in members]
        logger.warning(
            "%s failed for %d calls at once; each is run alone", what, len(members), exc_info=True
        )
    return None


def _run(group: Group, members: list[Member]) -> list[Settlement]:
    request = members[0].request
    sizes, kind = request.sizes, request.plugin.rows
    whole = kind is not Rows.INDEPENDENT
    job = EngineJob(members, group.offer, group.held)
    classifier = request.served.classifier
    batch = join([member.request.batch for member in members])
    as_sent = isinstance(request.plugin, Original | Decode)
    upload = Upload(partial(take, batch, classifier=classifier, as_sent=as_sent), classifier.device)
    unknown = torch.tensor([m.request.predict for m in members for _ in range(m.request.rows)])
    predicted = torch.full((len(batch),), -1)
    parts: list[dict[str, Tensor]] = []
    chunks: list[range] = []
    start = 0
    while start < len(batch):
        left = len(batch) - start
        rows = range(start, start + (left if whole else min(left, request.max_rows)))
        job.begin_chunk(rows, -(-left // len(rows)), request.max_rows)
        following = range(rows.stop, min(rows.stop + len(rows), len(batch)))
        part = _within_memory(request, upload, rows, following, unknown, predicted, job)
        if part is None:
            most = job.max_rows if kind is Rows.COLLECTION else len(rows)
            most = max(most, job.max_rows) if job.filled else most
            if most == 1 or (kind is Rows.GROUP and most == len(rows)):
                raise _no_memory(request, len(rows))
            sizes.ran_out(request.kind, most)
            continue
        parts.append(part)
        chunks.append(rows)
        start = rows.stop
        longest = job.end_chunk()
        if not whole:
            sizes.ran(request.kind, len(rows), longest)
    tensors = {
        name: parts[0][name] if len(parts) == 1 else torch.cat([part[name] for part in parts])
        for name in parts[0]
    }
    return [
        (member, _outcome(group, member, rows, job, tensors, predicted, chunks))
        for member, rows in spans(members)
    ]


def _within_memory(
    request: Request,
    upload: Upload,
    rows: range,
    following: range,
    unknown: Tensor,
    predicted: Tensor,
    job: EngineJob,
) -> dict[str, Tensor] | None:
    """The result of some rows, or None where they do not fit into the memory.

    Args:
        following: the rows that come next, where these fit.
    """
    classifier, part = request.served.classifier, slice(rows.start, rows.stop)
    try:
        result = _compute(request, upload.rows(rows), unknown[part], predicted[part], job)
        return download(result, partial(upload.begin, following))
    except Exception as error:
        if not _out_of_memory(error):
            raise
    classifier.free()
    if classifier.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)


def _no_memory(request: Request, rows: int) -> Overloaded:
    return Overloaded(
        f"inputs: {request.plugin.name} ran out of memory on {rows} rows; "
        "send fewer or smaller rows, or try again later"
    )


def _compute(
    request: Request, batch: Batch, unknown: Tensor, predicted: Tensor, job: EngineJob
) -> Mapping[str, Tensor]:
    classifier = request.served.classifier
    if unknown.any():
        with torch.no_grad():
            parts = torch.split(batch.inputs[unknown], request.max_rows)
            found = [classifier(part).argmax(1).cpu() for part in parts]
        predicted[unknown] = torch.cat(found)
        index = torch.where(unknown, predicted, batch.targets.index[:, 0].cpu())
        targets = dataclasses.replace(batch.targets, index=index.reshape(-1, 1))
        batch = dataclasses.replace(batch, targets=targets.to(classifier.device))
    result = request.plugin.run(classifier, batch, request.params, job)
    return _tensors(request.plugin, result, len(batch))


def _tensors(plugin: AnyPlugin, result: Any, rows: int) -> Mapping[str, Tensor]:
    if isinstance(result, Mapping):
        tensors: Mapping[str, Tensor] = result
    elif isinstance(result, plugin.result_type):
        tensors = result_tensors(result)
    else:
        raise TypeError(
            f"{plugin.name} returned {type(result).__name__}, not {plugin.result_type.__name__}"
        )
    for name, value in tensors.items():
        if _of_rows(plugin, name) and (not value.dim() or len(value) != rows):
            raise ValueError(
                f"{plugin.name} returned {name} of shape {list(value.shape)} for {rows} rows"
            )
    return tensors


def _of_rows(plugin: AnyPlugin, name: str) -> bool:
    known = isinstance(plugin.result_type, type)  # else a mapping with names of its own
    return not known or role_of(plugin.result_type, name) is not Role.GROUP


def _outcome(
    group: Group,
    member: Member,
    rows: range,
    job: EngineJob,
    tensors: Mapping[str, Tensor],
    predicted: Tensor,
    chunks: list[range],
) -> Outcome:
    part, plugin = slice(rows.start, rows.stop), member.request.plugin
    held = group.held()
    return Outcome(
        tensors={
            name: value[part] if _of_rows(plugin, name) else value
            for name, value in tensors.items()
        },
        predicted=tuple(predicted[part].tolist()) if member.request.predict else (),
        warnings=job.warnings(rows),
        queue_seconds=max(0.0, time.monotonic() - member.submitted - held),
        run_seconds=held,
        batch_rows=max(
            len(chunk) for chunk in chunks if chunk.start < rows.stop and rows.start < chunk.stop
        ),
    )
