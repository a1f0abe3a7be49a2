"""The inference form of a file that was exported in training mode."""

from onnx import GraphProto, ModelProto, NodeProto

from .file import all_nodes


def in_training(model: ModelProto) -> list[NodeProto]:
    """The nodes that compute as in training: batch statistics, random dropout."""
    versions = {item.domain: item.version for item in model.opset_import}
    version = versions.get("", versions.get("ai.onnx", 0))
    return [node for node in all_nodes(model) if _trains(node, version)]


def to_inference(model: ModelProto) -> tuple[str, ...]:
    """Put every node into its inference form, in place; the names of those that were not.

    A node whose further outputs are used keeps its form.
    """
    used = _used(model)
    changed = []
    for node in in_training(model):
        if any(name in used for name in node.output[1:]):
            continue
        del node.output[1:]
        if node.op_type == "Dropout":
            del node.input[1:]
        kept = [item for item in node.attribute if item.name not in ("training_mode", "is_test")]
        del node.attribute[:]
        node.attribute.extend(kept)
        changed.append(node.name or node.output[0])
    return tuple(changed)


def _trains(node: NodeProto, version: int) -> bool:
    attributes = {item.name: item for item in node.attribute}
    if node.op_type == "BatchNormalization":
        if version >= 14:
            return "training_mode" in attributes and attributes["training_mode"].i == 1
        return version >= 7 and len(node.output) > 1
    return (
        node.op_type == "Dropout" and version >= 12 and len(node.input) > 2 and node.input[2] != ""
    )


def _used(model: ModelProto) -> set[str]:
    names = {name for node in all_nodes(model) for name in node.input}
    graphs: list[GraphProto] = [model.graph]
    for node in all_nodes(model):
        graphs += [item.g for item in node.attribute if item.HasField("g")]
    return names | {item.name for graph in graphs for item in graph.output}
