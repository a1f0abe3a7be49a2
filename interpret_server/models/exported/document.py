"""A program's JSON document, built anew from the fields that are understood.

torch hands parts of the document to `sympify`, to the Python that it generates for graphs and
guards, to `importlib` and to attribute look-ups. So no text of a file goes there as it is: every
string is of a known field, and is a name, a path, a number's expression, a listed function, or text
that is only ever an operator's argument. Unknown strings are left out; what cannot be is refused.
"""

import dataclasses
import enum
import functools
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from torch._export.serde import schema
from torch._export.serde.union import _Union

from ...errors import InvalidModel, ModelRejected
from .expressions import expression, limited
from .structure import treespec
from .targets import target

_DEPTH, _VALUES, _EXPRESSIONS, _TEXT = 64, 20_000_000, 500, 10_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,500}", re.ASCII)
PATH = re.compile(r"[A-Za-z0-9_.:/@+ -]{1,1000}", re.ASCII)
_RECORD = re.compile(r"[A-Za-z0-9_]{1,100}", re.ASCII)
_KEYWORDS = frozenset(("None", "True", "False"))
_STACK = "nn_module_stack"
_NUMBERS = ("Infinity", "-Infinity", "NaN")
_STRIDED = 7
_CPU = {"type": "cpu", "index": None}

Check = Callable[[str], str]


def _checked(pattern: re.Pattern[str], what: str) -> Check:
    def check(text: str) -> str:
        if text in _KEYWORDS or not pattern.fullmatch(text):
            raise ModelRejected(f"the file has the {what} {text[:40]!r}, which is not served")
        return text

    return check


def _text(text: str) -> str:
    if len(text) > _TEXT:
        raise ModelRejected("the file passes a very long text to an operator")
    return text


_name = _checked(_NAME, "name")
path = _checked(PATH, "path")
record = _checked(_RECORD, "record")

# By class and field of torch's schema. Lists are checked item by item, dictionaries key by key.
_STRINGS: dict[tuple[str, str], Check] = {
    ("SymExpr", "expr_str"): expression,
    ("SymIntArgument", "as_name"): _name,
    ("SymFloatArgument", "as_name"): _name,
    ("SymBoolArgument", "as_name"): _name,
    ("TensorArgument", "name"): _name,
    ("GraphArgument", "name"): _name,
    ("Argument", "as_string"): _text,
    ("Argument", "as_strings"): _text,
    ("Argument", "as_operator"): target,
    ("Argument", "as_string_to_argument"): _name,
    ("NamedArgument", "name"): lambda text: text and _name(text),
    ("Node", "target"): target,
    ("Node", "name"): _name,
    ("Graph", "tensor_values"): _name,
    ("Graph", "sym_int_values"): _name,
    ("Graph", "sym_bool_values"): _name,
    ("Graph", "sym_float_values"): _name,
    ("ConstantValue", "as_string"): _text,
    ("InputToConstantInputSpec", "name"): _name,
    ("InputToParameterSpec", "parameter_name"): path,
    ("InputToBufferSpec", "buffer_name"): path,
    ("InputToTensorConstantSpec", "tensor_constant_name"): path,
    ("BufferMutationSpec", "buffer_name"): path,
    ("ParameterMutationSpec", "parameter_name"): path,
    ("UserInputMutationSpec", "user_input_name"): _name,
    ("ModuleCallSignature", "forward_arg_names"): _name,
    ("ModuleCallEntry", "fqn"): lambda text: text and path(text),
    ("NamedTupleDef", "field_names"): _name,
    ("ExportedProgram", "range_constraints"): limited,
    ("ExportedProgram", "opset_version"): _name,
    ("ExportedProgram", "verifiers"): _name,
    ("PayloadMeta", "path_name"): record,
    ("PayloadConfig", "config"): path,
}
_REFUSED = {
    "CustomObjArgument": "a custom object",
    "InputToCustomObjSpec": "a custom object",
    "TokenArgument": "an effect token",
    "LossOutputSpec": "a loss, as training programs do",
    "GradientToParameterSpec": "gradients, as training programs do",
    "GradientToUserInputSpec": "gradients, as training programs do",
}
_PLAIN_VALUES: dict[str, Any] = {
    "tensor_values": {
        "dtype": 7,
        "sizes": [],
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "strides": [],
        "storage_offset": {"as_int": 0},
        "layout": _STRIDED,
    },
    "sym_int_values": {"as_int": 2},
    "sym_float_values": {"as_float": 2.0},
    "sym_bool_values": {"as_bool": True},
}
_corrupt = InvalidModel("the program in the file is corrupt")


class Document:
    """Builds instances of torch's schema from parsed JSON.

    Args:
        named_tuples: fields of the named tuples that inputs and outputs use, by their class.
    """

    def __init__(self, named_tuples: Mapping[str, list[str]]) -> None:
        self._named_tuples = named_tuples
        self._values = self._expressions = self._regions = 0

    def build(self, kind: Any, data: Any, depth: int = 0) -> Any:
        """An instance of a class of the schema, or of a generic type of such classes.

        Raises:
            InvalidModel: the data are not of that type.
            ModelRejected: they hold what is not served.
        """
        self._values += 1
        if depth > _DEPTH or self._values > _VALUES:
            raise ModelRejected("the program in the file is too large or too deeply nested")
        arguments = typing.get_args(kind)
        origin = typing.get_origin(kind)
        if origin in (typing.Union, types.UnionType):
            return None if data is None else self.build(arguments[0], data, depth)
        if origin is list and isinstance(data, list):
            return [self.build(arguments[0], item, depth + 1) for item in data]
        if origin is dict and isinstance(data, dict):
            return {key: self.build(arguments[1], item, depth + 1) for key, item in data.items()}
        if isinstance(kind, type) and origin is None:
            if dataclasses.is_dataclass(kind):
                return self._instance(kind, data, depth + 1)
            return self._plain(kind, data)
        raise _corrupt

    def _plain(self, kind: type, data: Any) -> Any:
        if issubclass(kind, enum.IntEnum) and type(data) is int:
            try:
                return int(kind(data))
            except ValueError:
                raise ModelRejected("the file uses a type of a newer PyTorch") from None
        if kind is float and (type(data) in (int, float) or data in _NUMBERS):
            return float(data)
        if kind is int and type(data) is int and abs(data) < 1 << 63:
            return data
        if kind is bool and type(data) is bool:
            return data
        raise _corrupt

    def _instance(self, kind: Any, data: Any, depth: int) -> Any:
        name = kind.__name__
        if name in _REFUSED:
            raise ModelRejected(f"the program uses {_REFUSED[name]}, which is not served")
        if not isinstance(data, dict):
            raise _corrupt
        if name == "Graph":
            data = self._without_values(data)
        hints = _hints(kind)
        if issubclass(kind, _Union):
            if len(data) != 1:
                raise _corrupt
            (field, value), *_ = data.items()
            if field not in hints:
                raise ModelRejected("the file was written by a newer PyTorch")
            built = self._field(name, field, hints[field], value, depth)
            return kind.create(**{field: built})
        if name == "Device":  # wherever it was exported, it is served where the server says
            return kind(**_CPU)
        self._regions += name == "GraphArgument"
        built = {}
        for item in dataclasses.fields(kind):
            if item.name in data and not _is_left_out(name, item.name):
                value = data[item.name]
                built[item.name] = self._field(name, item.name, hints[item.name], value, depth)
        self._regions -= name == "GraphArgument"
        if name == "Node":
            built["metadata"] = _metadata(data.get("metadata"))
        if built.get("layout", _STRIDED) != _STRIDED:
            raise ModelRejected("the program uses sparse tensors, which are not served")
        try:
            return kind(**built)
        except TypeError:
            raise _corrupt from None

    def _without_values(self, data: dict[str, Any]) -> dict[str, Any]:
        """A graph whose inputs alone tell their shapes: nothing else is needed to run it.

        So no other symbolic size of a file is ever evaluated.
        """
        inputs = data.get("inputs")
        kept = set()
        for item in inputs if isinstance(inputs, list) and not self._regions else ():
            tensor = item.get("as_tensor") if isinstance(item, dict) else None
            kept.add(str(tensor.get("name")) if isinstance(tensor, dict) else "")
        plain = dict(data)
        for field, value in _PLAIN_VALUES.items():
            if isinstance(data.get(field), dict):
                plain[field] = {
                    name: meta if name in kept else value for name, meta in data[field].items()
                }
        return plain

    def _field(self, owner: str, field: str, kind: Any, data: Any, depth: int) -> Any:
        if (owner, field) in (
            ("ModuleCallSignature", "in_spec"),
            ("ModuleCallSignature", "out_spec"),
        ):
            if not isinstance(data, str):
                raise _corrupt
            return treespec(data, self._named_tuples)
        check = _STRINGS.get((owner, field))
        if check is None:
            return self.build(kind, data, depth)
        if data is None:
            return self.build(kind, data, depth)
        if check is expression:
            self._expressions += 1
            if self._expressions > _EXPRESSIONS:
                raise ModelRejected("the program in the file has too many symbolic sizes")
        if isinstance(data, str):
            return check(data)
        if isinstance(data, list) and all(isinstance(item, str) for item in data):
            return [check(item) for item in data]
        if isinstance(data, dict):
            for key in data:
                check(key)
            return self.build(kind, data, depth)
        raise _corrupt


def _is_left_out(owner: str, field: str) -> bool:
    """Strings that the program does not need: guards, stack traces, versions, nested signatures."""
    return (owner, field) in {
        ("Node", "metadata"),
        ("GraphModule", "metadata"),
        ("GraphModule", "treespec_namedtuple_fields"),
        ("Graph", "custom_obj_values"),
        ("ExportedProgram", "guards_code"),
        ("ExportedProgram", "torch_version"),
    }


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, globalns=vars(schema))


def _metadata(data: Any) -> dict[str, str]:
    """Which modules a node came from: data alone, and dropped where it is unusual."""
    stack = data.get(_STACK) if isinstance(data, dict) else None
    if not isinstance(stack, str) or len(stack) > _TEXT:
        return {}
    if any(_parts(item) != 3 for item in stack.split(";")):
        return {}
    return {_STACK: stack}


def _parts(text: str) -> int:
    """In how many parts torch splits an entry of the stack: at commas outside of brackets."""
    count, level = 1, 0
    for character in text:
        if character in "[(":
            level += 1
        elif character in ")]":
            level -= 1
        elif character == "," and level == 0:
            count += 1
    return count
