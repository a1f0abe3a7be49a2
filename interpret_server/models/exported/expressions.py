"""Symbolic sizes in a file: read by a grammar of our own before sympy, which evaluates text, may.

Written by torch up to 2.7 as `2*s0 + 1`, later as `Add(Mul(Integer(2), Symbol('s0', ...)), ...)`.
"""

import ast
import re

from ...errors import InvalidModel, ModelRejected


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


_SYMBOL = re.compile(r"(s|u|zf|zuf|ps)[0-9]{1,5}", re.ASCII)
_LENGTH, _NODES, _LARGEST, _EXPONENTS = 1000, 80, 1 << 63, range(-4, 9)
_FUNCTIONS = words(
    "Add Mul Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv ModularIndexing FloorToInt "
    "CeilToInt TruncToInt TruncToFloat RoundToInt ToFloat IntTrueDiv FloatTrueDiv Identity "
    "Where Abs floor ceiling And Or Not Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan "
    "LessThan StrictGreaterThan GreaterThan Integer Rational"
)
_POWERS = frozenset(("Pow", "PowByNatural"))
_SHIFTS = frozenset(("LShift", "RShift"))
_NAMES = frozenset(("true", "false", "True", "False", "oo", "int_oo"))
_ASSUMPTIONS = words(
    "positive negative nonnegative nonpositive nonzero zero integer real finite even odd"
)
_BINARY = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_LOGICAL = (ast.BitAnd, ast.BitOr)
_UNARY = (ast.USub, ast.UAdd, ast.Invert)
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def symbol(name: str) -> str:
    """The name of a symbolic size, such as `s0`.

    Raises:
        ModelRejected: it is another name.
    """
    if not _SYMBOL.fullmatch(name):
        raise ModelRejected(f"the file names a size {name[:40]!r}, which is not served")
    return name


def limited(text: str) -> str:
    """The name of a size that a file sets limits to: a symbol, or an expression of some.

    Raises:
        InvalidModel, ModelRejected: as `expression`.
    """
    if not _SYMBOL.fullmatch(text):
        expression(text)
        if text.startswith(("u", "zuf")):  # torch takes what follows for a number
            return symbol(text)
    return text


def expression(text: str) -> str:
    """A symbolic size, written anew from its own parts.

    Raises:
        InvalidModel: it is no expression.
        ModelRejected: it holds more than numbers, sizes and known functions of them.
    """
    if len(text) > _LENGTH:
        raise ModelRejected(f"a size in the file is an expression of {len(text)} characters")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise InvalidModel("a size in the file is no expression") from None
    if sum(1 for _ in ast.walk(tree)) > _NODES:
        raise ModelRejected("a size in the file is an expression of too many parts")
    _check(tree, power=True)
    return ast.unparse(tree)


def _check(tree: ast.expr, *, power: bool) -> None:
    match tree:
        case ast.Constant(value=bool() | float()):
            return
        case ast.Constant(value=int(number)) if abs(number) < _LARGEST:
            return
        case ast.Name(id=name) if name in _NAMES or _SYMBOL.fullmatch(name):
            return
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))]):
            if _SYMBOL.fullmatch(name) and all(_is_assumption(item) for item in tree.keywords):
                return
        case ast.Call(func=ast.Name(id=name), args=[base, exponent], keywords=[]) if (
            name in _POWERS
        ):
            _check_power(base, exponent, power=power)
            return
        case ast.BinOp(left=base, op=ast.Pow(), right=exponent):
            _check_power(base, exponent, power=power)
            return
        case ast.Call(func=ast.Name(id=name), args=[base, shift], keywords=[]) if name in _SHIFTS:
            if power and _integer(shift) in range(64):
                _check(base, power=False)
                return
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
            for part in tree.args:
                _check(part, power=power)
            return
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _BINARY + _LOGICAL):
            _check(left, power=power)
            _check(right, power=power)
            return
        case ast.UnaryOp(op=op, operand=operand) if isinstance(op, _UNARY):
            _check(operand, power=power)
            return
        case ast.Compare(left=left, ops=[op], comparators=[right]) if isinstance(op, _COMPARISONS):
            _check(left, power=power)
            _check(right, power=power)
            return
    raise ModelRejected(
        f"a size in the file is the expression {ast.unparse(tree)[:60]!r}, which is not served"
    )


def _check_power(base: ast.expr, exponent: ast.expr, *, power: bool) -> None:
    """Powers of powers are refused: their digits grow without bound."""
    if not power or _integer(exponent) not in _EXPONENTS:
        raise ModelRejected("a size in the file is a power that is not served")
    _check(base, power=False)


def _integer(tree: ast.expr) -> int | None:
    match tree:
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))):
            return -number
        case ast.Call(func=ast.Name(id="Integer"), args=[inner], keywords=[]):
            return _integer(inner)
    return None


def _is_assumption(item: ast.keyword) -> bool:
    return (
        item.arg in _ASSUMPTIONS
        and isinstance(item.value, ast.Constant)
        and isinstance(item.value.value, bool)
    )
