"""Receives an uploaded model file into a private temporary folder."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from interpret_api.v1 import model_service_pb2 as pb

from ..errors import AlreadyExists, InvalidRequest
from ..models.manifest import Manifest, manifest_from_json
from . import codec


@dataclass(frozen=True)
class Upload:
    """A file that has arrived whole; it is deleted when the `receive` context ends.

    Args:
        name: what to serve it as.
        manifest: from the header.
        replace: whether a model of that name may be replaced.
        path: the file.
    """

    name: str
    manifest: Manifest
    replace: bool
    path: Path


class _Sink:
    def __init__(self, path: Path, limit: int) -> None:
        self._limit, self._digest = limit, hashlib.sha256()
        self._file = path.open("xb")
        self.size = 0

    def write(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size > self._limit:
            raise _too_large(self._limit)
        self._digest.update(chunk)
        self._file.write(chunk)

    def finish(self, header: pb.UploadHeader) -> None:
        self.close()
        if not self.size:
            raise InvalidRequest.field("chunk", "no bytes of the file were sent")
        if header.size and self.size != header.size:
            raise InvalidRequest.field(
                "header.size", f"{header.size} bytes were announced, but {self.size} arrived"
            )
        digest = self._digest.hexdigest()
        if header.sha256 and digest != header.sha256.lower():
            raise InvalidRequest.field(
                "header.sha256",
                f"the bytes that arrived have the digest {digest}; send the file again",
            )

    def close(self) -> None:
        self._file.close()


def _too_large(limit: int) -> InvalidRequest:
    return InvalidRequest.field(
        "chunk",
        f"this server takes model files of at most {limit} bytes; "
        "put a larger one into its model repository",
    )


async def _header(parts: AsyncIterator[pb.UploadModelRequest]) -> pb.UploadHeader:
    first = await anext(parts, None)
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidRequest.field("header", "the first message of an upload carries the header")
    return first.header


@asynccontextmanager
async def receive(
    stream: AsyncIterator[pb.UploadModelRequest], taken: frozenset[str], limit: int
) -> AsyncIterator[Upload]:
    """Read an upload to its end; nothing of it is left when the context ends.

    Args:
        stream: the messages of the call.
        taken: names that are in use; refused before a byte is written, unless to be replaced.
        limit: most bytes of a file.

    Raises:
        InvalidRequest: the header is wrong, or the bytes are not the ones announced.
        AlreadyExists: the name is taken.
    """
    parts = aiter(stream)
    header = await _header(parts)
    name = codec.model_name(header.name, "header.name")
    if name in taken and not header.replace:
        raise already_loaded(name)
    if header.size < 0:
        raise InvalidRequest.field("header.size", "give the size in bytes, or 0 when unknown")
    if header.size > limit:
        raise _too_large(limit)
    manifest = manifest_from_json(header.manifest_json)
    with TemporaryDirectory(prefix="interpret-server-") as folder:
        path = Path(folder) / "model"
        sink = _Sink(path, limit)
        try:
            async for part in parts:
                if part.WhichOneof("part") != "chunk":
                    raise InvalidRequest.field("chunk", "only the first message has a header")
                await asyncio.to_thread(sink.write, part.chunk)
            await asyncio.to_thread(sink.finish, header)
        finally:
            sink.close()
        yield Upload(name, manifest, header.replace, path)


def already_loaded(name: str) -> AlreadyExists:
    """The error for a name that is in use."""
    return AlreadyExists(f"a model {name!r} is loaded already; choose another name, or set replace")
