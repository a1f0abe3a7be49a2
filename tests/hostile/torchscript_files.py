"""TorchScript archives whose records do harm before any of their code runs."""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

from .bait import Bait
from .kinds import HostileFile
from .torchscript_archive import HONEST, honest_records, source, write_records, write_source

_ROOT = next(iter(honest_records())).partition("/")[0]
_BRACKETS, _STATEMENTS = 60_000, 400_000


def _nested_brackets() -> str:
    return f"return torch.linear(x, {'(' * _BRACKETS}self.w{')' * _BRACKETS})"


def _nested_branches() -> str:
    lines = [f"{'  ' * depth}if torch.gt(self.n, -{depth + 1}):" for depth in range(900)]
    return "\n".join([*lines, f"{'  ' * 900}self.n = 1", HONEST])


def _nested_types() -> str:
    return f"y = annotate({'List[' * 20_000}int{']' * 20_000}, [])\n{HONEST}"


def _many_statements() -> str:
    return "y = x\n" + "y = torch.relu(y)\n" * _STATEMENTS + HONEST


def _long_sum() -> str:
    return f"self.n = {' + '.join(['1'] * 40_000)}\n{HONEST}"


CODE: dict[str, Any] = {
    "nested-brackets": _nested_brackets,
    "nested-branches": _nested_branches,
    "nested-types": _nested_types,
    "many-statements": _many_statements,
    "long-sum": _long_sum,
    "calls-itself": lambda: "return (self).forward(x, )",
    "binary-code": lambda: "\x00\x01\x02",
    "no-code": lambda: "",
    "unfinished-text": lambda: 'return "',
    "huge-number": lambda: f"self.n = {'9' * 100_000}\n{HONEST}",
    "python-escape": lambda: '__import__("os").mkdir("{made}")\n' + HONEST,
    "names-another-module": lambda: "return __torch__.os.system.forward(x)",
}


def _zip_bomb(contents: dict[str, bytes]) -> bytes:
    contents[f"{_ROOT}/data/0"] += bytes(1 << 28)
    return _zipped(contents, zipfile.ZIP_DEFLATED)


def _compressed(contents: dict[str, bytes]) -> bytes:
    return _zipped(contents, zipfile.ZIP_DEFLATED)


def _announces_much(contents: dict[str, bytes]) -> bytes:
    """The central directory says that the weights have 2^32 - 2 bytes."""
    data = bytearray(_zipped(contents))
    at = data.rfind(b"PK\x01\x02", 0, data.rfind(f"{_ROOT}/data/0".encode()))
    data[at + 20 : at + 28] = struct.pack("<II", 2**32 - 2, 2**32 - 2)
    return bytes(data)


def _leaves_its_folder(contents: dict[str, bytes]) -> bytes:
    contents["../../escaped.py"] = contents["/tmp/escaped.py"] = b"x"
    contents[f"{_ROOT}/code/../../../escaped.py"] = b"x"
    return _zipped(contents)


def _many_records(contents: dict[str, bytes]) -> bytes:
    contents |= {f"{_ROOT}/data/{index}": b"" for index in range(1, 120_000)}
    return _zipped(contents)


def _overlapping(contents: dict[str, bytes]) -> bytes:
    """Every entry of the directory names the bytes of the first."""
    data = bytearray(_zipped(contents))
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 42 : at + 46] = bytes(4)
        at = data.find(b"PK\x01\x02", at + 4)
    return bytes(data)


def _pickle(payload: bytes) -> Any:
    def change(contents: dict[str, bytes]) -> bytes:
        contents[f"{_ROOT}/data.pkl"] = b"\x80\x02" + payload + b"."
        return _zipped(contents)

    return change


def _edited_pickle(old: bytes, new: bytes) -> Any:
    def change(contents: dict[str, bytes]) -> bytes:
        name = f"{_ROOT}/data.pkl"
        assert old in contents[name]
        contents[name] = contents[name].replace(old, new)
        return _zipped(contents)

    return change


_SIZES = b"K\x00(K\x03K\x04t(K\x04K\x01t"  # offset 0, sizes (3, 4), strides (4, 1)

RECORDS: dict[str, Any] = {
    "zip-bomb": _zip_bomb,
    "compressed": _compressed,
    "announces-much": _announces_much,
    "leaves-its-folder": _leaves_its_folder,
    "many-records": _many_records,
    "overlapping-records": _overlapping,
    "pickle-runs-a-command": _pickle(b"cos\nsystem\nX\x0c\x00\x00\x00touch made12\x85R"),
    "pickle-nested": _pickle(b"(" * 200_000 + b"t" * 200_000),
    "pickle-nested-lists": _pickle(b"]" * 200_000 + b"a" * 199_999),
    "pickle-empties-its-stack": _pickle(b"t" * 100 + b"a" * 100 + b"R" * 100 + b"b"),
    "pickle-memo-bomb": _pickle(b"]q\x00" + b"h\x00h\x00h\x00h\x00h\x00tq\x00" * 60),
    "pickle-unknown-storage": _edited_pickle(b"FloatStorage", b"EvilsStorage"),
    "pickle-absent-record": _edited_pickle(b"X\x01\x00\x00\x000q\x05", b"X\x01\x00\x00\x009q\x05"),
    "pickle-record-elsewhere": _edited_pickle(
        b"X\x01\x00\x00\x000q\x05", b"X\x12\x00\x00\x00../../../../secretq\x05"
    ),
    "weights-beyond-their-memory": _edited_pickle(
        _SIZES, b"K\x00(K\x03J\x00\x00\x00\x10t(J\x00\x00\x00\x10K\x01t"
    ),
    "weights-before-their-memory": _edited_pickle(
        _SIZES, b"J\x00\xff\xff\xff(K\x03K\x04t(K\x04K\x01t"
    ),
    "weights-of-negative-size": _edited_pickle(
        _SIZES, b"K\x00(J\xfd\xff\xff\xffJ\xfc\xff\xff\xfft(K\x04K\x01t"
    ),
    "weights-of-huge-strides": _edited_pickle(
        _SIZES, b"K\x00(K\x03K\x04t(\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x7fK\x01t"
    ),
    "weights-of-another-length": _edited_pickle(b"K\x10tQ", b"J\x00\x00\x00\x7ftQ"),
    "weights-of-another-rank": _edited_pickle(_SIZES, b"K\x00(K\x03K\x04t(K\x04t"),
}


def _zipped(contents: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return buffer.getvalue()


def _of_code(name: str, body: Any) -> HostileFile:
    def make(path: Path, bait: Bait) -> None:
        write_source(path, source(body().replace("{made}", str(bait.made))))

    return HostileFile(f"torchscript-{name}", "pt", make, runs_code=True)


def _of_records(name: str, change: Any) -> HostileFile:
    def make(path: Path, bait: Bait) -> None:
        path.write_bytes(change(honest_records()))

    return HostileFile(f"torchscript-{name}", "pt", make, runs_code=True)


def _quantity(path: Path, bait: Bait) -> None:
    """A hundred thousand classes, each in a module of its own."""
    contents = honest_records()
    extra = "".join(f"class A{k}(Module):\n  training : bool\n" for k in range(100_000))
    name = f"{_ROOT}/code/__torch__.py"
    write_records(path, contents | {name: extra.encode() + source()})


def files() -> list[HostileFile]:
    """All of them."""
    return [
        *(_of_code(name, body) for name, body in CODE.items()),
        *(_of_records(name, change) for name, change in RECORDS.items()),
        HostileFile("torchscript-many-classes", "pt", _quantity, runs_code=True),
    ]
