"""How a program's inputs and outputs nest. A file may name any Python class for it; here dict,
list and tuple stand for all.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import InvalidModel, ModelRejected

_DEPTH, _CHILDREN = 32, 10_000
_SEQUENCES = {"builtins.tuple": "builtins.tuple", "builtins.list": "builtins.list"}
_DICTIONARIES = frozenset(("builtins.dict", "collections.OrderedDict"))


def treespec(text: str, named_tuples: Mapping[str, Sequence[str]]) -> str:
    """A nesting, in the JSON form that torch writes, of dictionaries, lists and tuples alone.

    A dictionary of any other kind, a dataclass and a named tuple become dictionaries.

    Args:
        text: `[1, {"type": ..., "context": ..., "children_spec": [...]}]`.
        named_tuples: fields by the name of their class.

    Raises:
        InvalidModel: it is none.
        ModelRejected: it nests in a way that cannot be told from the file alone.
    """
    try:
        protocol, tree = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise InvalidModel("the nesting of the program's inputs or outputs is corrupt") from None
    if protocol != 1:
        raise ModelRejected("the file was written by a newer PyTorch")
    return json.dumps([1, _tree(tree, named_tuples, 0)])


def _tree(tree: Any, named_tuples: Mapping[str, Sequence[str]], depth: int) -> dict[str, Any]:
    if not isinstance(tree, dict) or not isinstance(tree.get("children_spec"), list):
        raise InvalidModel("the nesting of the program's inputs or outputs is corrupt")
    if depth > _DEPTH or len(tree["children_spec"]) > _CHILDREN:
        raise ModelRejected("the program's inputs or outputs nest too deeply")
    kind, context = tree.get("type"), tree.get("context")
    children = [_tree(child, named_tuples, depth + 1) for child in tree["children_spec"]]
    if kind is None and not children:
        return {"type": None, "context": None, "children_spec": []}
    if kind in _SEQUENCES:
        return {"type": _SEQUENCES[kind], "context": "null", "children_spec": children}
    if kind == "collections.namedtuple":
        fields: Any = named_tuples.get(str(_parsed(context)), named_tuples.get(str(context)))
        if fields is None:
            return {"type": "builtins.tuple", "context": "null", "children_spec": children}
    else:
        fields = _keys(_parsed(context), len(children))
    if (
        fields is None
        or len(fields) != len(children)
        or not all(isinstance(field, str) for field in fields)
    ):
        raise ModelRejected(
            f"the program's inputs or outputs nest in a {str(kind)[:60]}, which is not served"
        )
    kind = kind if kind in _DICTIONARIES else "builtins.dict"
    return {"type": kind, "context": json.dumps(list(fields)), "children_spec": children}


def _parsed(context: Any) -> Any:
    try:
        return json.loads(context) if isinstance(context, str) else context
    except (ValueError, RecursionError):
        return None


def _keys(context: Any, count: int) -> Any:
    """The keys of a dictionary's context, of a defaultdict's or of a dataclass's."""
    if isinstance(context, dict):
        context = context.get("dict_context")
    if isinstance(context, list) and len(context) == 2 and isinstance(context[0], list):
        context = context[0]
    return context if isinstance(context, list) and len(context) == count else None
