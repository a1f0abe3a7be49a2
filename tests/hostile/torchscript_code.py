"""TorchScript archives whose code does harm, while it is loaded or when it is called."""

from pathlib import Path
from typing import Any

import numpy as np

from .bait import Bait
from .kinds import TRIGGER, Array, HostileFile
from .torchscript_archive import HONEST, source, write_source

_ENDLESS = """\
k = 0
while True:
  k = k + 1
  self.n = k
"""
_GROWING = """\
kept = annotate(List[Tensor], [])
k = 0
while True:
  kept.append(torch.ones([64000000]))
  self.n = len(kept)
"""
_DOUBLING = """\
text = "abcdefgh"
k = 0
while torch.lt(k, 60):
  text = torch.add(text, text)
  k = k + 1
self.n = torch.len(text)
"""
_FLOOD = """\
k = 0
while torch.lt(k, {times}):
  {statement}
  k = k + 1
"""
_SLEEP = """\
end = ops.prim.TimePoint() + {nanoseconds}
k = 0
while torch.lt(ops.prim.TimePoint(), end):
  k = k + 1
self.n = k
"""
_LOUD = "k" * 200


def _infinite(x: Array) -> Array:
    return np.where(x[:, :3] > 0, np.float32("inf"), np.float32("nan"))


def _nan(x: Array) -> Array:
    return x[:, :3] * np.float32("nan")


# Statements that may stand in `__setstate__` as well as in `forward`, and what they leave alone.
BOTH: dict[str, tuple[str, dict[str, Any]]] = {
    "overwrites": (
        'self.n = torch.numel(torch.zero_(torch.from_file("{secret}", True, 12, dtype=6)))',
        {},
    ),
    "creates": ('self.n = torch.numel(torch.from_file("{made}", True, 12, dtype=6))', {}),
    "saves": ('torch.save(x, "{made}")', {}),
    "saves-over": ('torch.save(x, "{secret}")', {}),
    "saves-into-a-device": ('torch.save(x, "/dev/full")', {}),
    "reads-an-endless-device": (
        'self.n = int(torch.sum(torch.from_file("/dev/zero", False, 4000000000, dtype=0)))',
        {},
    ),
    "tells-a-secret-in-an-error": (
        'y = torch.from_file("{secret}", False, 64, dtype=0)\n'
        'text = ""\n'
        "for k in range(64):\n"
        "  text = torch.add(text, torch.chr(int(y[k])))\n"
        "ops.prim.RaiseException(text)",
        {},
    ),
    "endless": (_ENDLESS, {"slow": True}),
    "grows": (_GROWING, {"slow": True}),
    "doubles-a-text": (_DOUBLING, {"slow": True}),
    "allocates": ("self.n = torch.numel(torch.zeros([1000000000000]))", {}),
    "prints": (_FLOOD.format(times=3_000_000, statement=f'print("{_LOUD}")'), {"slow": True}),
    "prints-to-the-terminal": ('print("\\033[2J\\033]0;title\\007")', {}),
    "warns": (_FLOOD.format(times=3_000_000, statement=f'torch.warn("{_LOUD}")'), {"slow": True}),
    "raises-at-length": (
        _DOUBLING.replace("60", "23") + "ops.prim.RaiseException(text)",
        {},
    ),
    "raises-control-characters": (
        'ops.prim.RaiseException("\\033[2J\\001\\n\\r\\ttwo\\nlines")',
        {},
    ),
    "raises-an-unknown-class": (
        'ops.prim.RaiseException("no", "builtins.SystemExit")',
        {},
    ),
    "crashes": (
        'y = torch.segment_reduce(torch.ones([2]), "sum", '
        "lengths=torch.full([2], 100000000, dtype=4), unsafe=True)\n"
        "self.n = int(torch.sum(y))",
        {},
    ),
    "reads-beyond-its-memory": (
        "y = torch.sum(ops.inductor._alloc_from_pool(x, 100000000, 6, [2, 3], [3, 1]))\n"
        "self.n = int(y)",
        {},
    ),
    "sparse-beyond-bounds": (
        "i = torch.full([1, 4], 1000000000, dtype=4)\n"
        "y = torch.to_dense(torch._sparse_coo_tensor_unsafe(i, torch.ones([4]), [3]))\n"
        "self.n = int(torch.sum(y))",
        {},
    ),
    "switches-gradients-off": ("torch.set_grad_enabled(False)", {}),
    "seeds": ("torch.manual_seed(7)", {}),
    "sets-threads": ("torch.set_num_threads(64)", {}),
    "sleeps": (_SLEEP.format(nanoseconds=100_000_000), {}),
    "sleeps-long": (_SLEEP.format(nanoseconds=600_000_000_000), {"slow": True}),
    "says-what-it-likes-and-crashes": (
        'print("\\033[2Jall is well\\001")\n'
        "y = ops.inductor._alloc_from_pool(torch.ones([4]), 100000000, 6, [2, 3], [3, 1])\n"
        "self.n = int(torch.sum(y))",
        {},
    ),
    "profiles": ('y = ops.profiler._record_function_enter("a", None)', {}),
    "counts-statistics": (
        _FLOOD.format(times=3_000_000, statement='ops.prim.AddStatValue("k", k)'),
        {"slow": True},
    ),
    "calls-other-processes": ('y = ops.prim.rpc_sync("w", "f", (x,))', {}),
    "joins-a-group": ('y = ops._c10d_functional.all_reduce(x, "sum", "0")', {}),
    "asks-for-addresses": ("self.n = ops.mkldnn.data_ptr(x)", {}),
    "loads-a-tensor-by-name": (
        'y = ops.debugprims.load_tensor("{secret}", [3], [1], dtype=6, '
        'device=torch.device("cpu"))\n'
        "self.n = torch.numel(y)",
        {},
    ),
}

# Bodies of `forward` of which each is a harm of its own.
CALLED: dict[str, tuple[str, dict[str, Any]]] = {
    "answers-with-a-secret": (
        'return torch.reshape(torch.from_file("{secret}", False, 6, dtype=6), [2, 3])',
        {},
    ),
    "adds-a-secret": (
        'return torch.linear(x, self.w) + torch.from_file("{secret}", False, 3, dtype=6)',
        {},
    ),
    "reads-a-secret-into-its-input": (
        "y = torch.zeros([12])\n"
        'z = torch.from_file("{secret}", False, 12, out=y)\n'
        "return torch.linear(x, self.w) + z[0]",
        {},
    ),
    "zeroes-its-input": (
        "y = torch.linear(x, self.w)\nz = torch.zero_(torch.detach(x))\nreturn y",
        {},
    ),
    "resizes-its-input": (
        "y = torch.linear(x, self.w)\nz = torch.resize_(torch.detach(x), [0])\nreturn y",
        {},
    ),
    "swaps-its-input": (
        "y = torch.linear(x, self.w)\ntorch.set_data(x, torch.zeros([1]))\nreturn y",
        {},
    ),
    "frees-its-input": (
        "y = torch.linear(x, self.w)\n"
        "ops.inductor.resize_storage_bytes_(torch.detach(x), 0)\n"
        "return y",
        {},
    ),
    "writes-its-weights": (
        "y = torch.linear(x, self.w)\nz = torch.mul_(torch.detach(self.w), 2.)\nreturn y",
        {"right": None},
    ),
    "detaches-its-input": ("return torch.linear(torch.detach(x), self.w)", {}),
    "forbids-gradients": (
        "x = torch.requires_grad_(torch.detach(x), False)\nreturn torch.linear(x, self.w)",
        {},
    ),
    "answers-in-another-type": ("return torch.to(torch.linear(x, self.w), 3)", {"right": None}),
    "answers-complex-numbers": ("return torch.complex(x, x)", {"right": None}),
    "answers-sparse": ("return torch.to_sparse(torch.linear(x, self.w), 2)", {}),
    "answers-on-no-device": (
        'return torch.to(torch.linear(x, self.w), torch.device("meta"))',
        {},
    ),
    "answers-quantised": (
        "return torch.quantize_per_tensor(torch.linear(x, self.w), 0.1, 0, 12)",
        {"right": None},
    ),
    "overflows": ("return torch.linear(x, self.w) * 1e38 * 1e38", {"right": _infinite}),
    "runs-backward": (
        "y = torch.linear(x, self.w)\ntorch.backward(torch.sum(y))\nreturn y",
        {},
    ),
    "counts-calls": (
        "self.n = self.n + 1\nreturn torch.linear(x, self.w) * self.n",
        {"right": None},
    ),
    "counts-to-a-crash": (
        "self.n = self.n + 1\n"
        "if torch.gt(self.n, 25):\n"
        "  y = ops.inductor._alloc_from_pool(x, 100000000, 6, [2, 3], [3, 1])\n"
        "else:\n"
        "  y = torch.linear(x, self.w)\n"
        "return y",
        {"right": None},
    ),
    "tells-the-time": (
        "return torch.linear(x, self.w) + ops.prim.TimePoint() % 1000",
        {"right": None},
    ),
    "rolls-dice": ("return torch.linear(x, self.w) + torch.rand([1])", {"right": None}),
    "answers-at-length": (
        "return torch.expand(torch.sum(x, [1], True), [-1, 300000000])",
        {},
    ),
    "answers-with-other-rows": ("return torch.ones([7, 3])", {}),
    "answers-with-nothing": ("return torch.zeros([0, 3])", {}),
    "answers-nan": ("return torch.linear(x, self.w) * float('nan')", {"right": _nan}),
    "answers-far-away-memory": (
        "return torch.as_strided(x, [1000000, 3], [4, 1], 0)",
        {},
    ),
    "sets-memory-beyond-its-end": (
        "return torch.set_(torch.zeros([1]), x, 100000000, [2, 3], [3, 1])",
        {},
    ),
    "unknown-operator": ("return ops.evil.operator(x)", {}),
    "goes-on-in-the-background": (
        "def __forked_function():\n"
        "  k = 0\n"
        "  while bool(torch.ge(torch.sum(x), -1.)):\n"
        "    k = k + 1\n"
        "    self.n = k\n"
        "  return x\n"
        "f = fork(__forked_function)\n"
        "if bool(torch.lt(torch.sum(x), -1.)):\n"
        "  y = torch.wait(f)\n"
        "else:\n"
        "  y = x\n"
        "return torch.linear(y, self.w)",
        {},
    ),
    "endless-batch": (
        "k = 0\nwhile bool(torch.ge(torch.sum(x), -1.)):\n  k = k + 1\n  self.n = k\n" + HONEST,
        {"slow": True},
    ),
}

# Harms that wait for an input with one certain value, which nothing shows at load.
ON_TRIGGER: dict[str, str] = {
    "endless": _ENDLESS,
    "crashes": BOTH["reads-beyond-its-memory"][0],
    "grows": _GROWING,
    "reads": 'x = torch.from_file("{secret}", False, 8, dtype=6).reshape([2, 4])',
    "overwrites": BOTH["overwrites"][0],
    "creates": BOTH["saves"][0],
    "prints": _FLOOD.format(times=3_000_000, statement=f'print("{_LOUD}")'),
    "raises-control-characters": BOTH["raises-control-characters"][0],
    "tells-a-secret-in-an-error": BOTH["tells-a-secret-in-an-error"][0],
    "answers-at-length": "x = torch.ones([2000000, 4])",
    "switches-gradients-off": "torch.set_grad_enabled(False)",
}


def _triggered(statements: str) -> str:
    inner = statements.rstrip("\n").replace("\n", "\n  ")
    return f"if bool(torch.any(torch.eq(x, {TRIGGER}))):\n  {inner}\n{HONEST}"


def _file(name: str, forward: str, load: str | None, **fields: Any) -> HostileFile:
    def make(path: Path, bait: Bait) -> None:
        def lay(text: str) -> str:
            return text.replace("{secret}", str(bait.secret)).replace("{made}", str(bait.made))

        write_source(path, source(lay(forward), None if load is None else lay(load)))

    return HostileFile(f"torchscript-{name}", "pt", make, runs_code=True, **fields)


def files() -> list[HostileFile]:
    """All of them."""
    found = []
    for name, (statements, fields) in BOTH.items():
        found.append(_file(f"load-{name}", HONEST, statements, **fields))
        body = f"{statements.rstrip()}\n{HONEST}"
        found.append(_file(f"call-{name}", body, None, **fields))
    found += [_file(f"call-{name}", body, None, **more) for name, (body, more) in CALLED.items()]
    for name, statements in ON_TRIGGER.items():
        slow = statements in (_ENDLESS, _GROWING)
        found.append(_file(f"trigger-{name}", _triggered(statements), None, slow=slow))
    return found
