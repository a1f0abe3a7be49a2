"""Generates the protobuf modules beside their .proto files: `python -m interpret_api.generate`."""

import sys
from importlib.resources import files
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent


def generate(target: Path) -> int:
    """Write the modules of every .proto file below `target`; returns protoc's exit status."""
    from grpc_tools import protoc

    protos = sorted(str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.proto"))
    arguments = [
        "protoc",
        f"--proto_path={SOURCES}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--python_out={target}",
        f"--pyi_out={target}",
        f"--grpc_python_out={target}",
        *protos,
    ]
    status: int = protoc.main(arguments)
    return status


if __name__ == "__main__":
    sys.exit(generate(SOURCES))
