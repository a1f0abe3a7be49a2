"""Nodes in the order in which they can be computed, which not every converter writes."""

import heapq

from onnx import AttributeProto, GraphProto, NodeProto


def sort_nodes(graph: GraphProto) -> None:
    """Put the nodes of a graph, and of those within it, in order of computation, in place.

    A graph that is in order, or that has a cycle, stays as it is.
    """
    for node in graph.node:
        for inner in _inner(node):
            sort_nodes(inner)
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [
        {maker[name] for name in _used(node) if maker.get(name, index) != index}
        for index, node in enumerate(graph.node)
    ]
    if all(max(made, default=-1) < index for index, made in enumerate(needs)):
        return
    users: list[list[int]] = [[] for _ in needs]
    for index, made in enumerate(needs):
        for source in made:
            users[source].append(index)
    missing = [len(made) for made in needs]
    ready = [index for index, count in enumerate(missing) if not count]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for user in users[index]:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, user)
    if len(order) == len(needs):
        nodes = [NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
        del graph.node[:]
        graph.node.extend(nodes)


def _inner(node: NodeProto) -> list[GraphProto]:
    single = [item.g for item in node.attribute if item.type == AttributeProto.GRAPH]
    return single + [graph for item in node.attribute for graph in item.graphs]


def _used(node: NodeProto) -> set[str]:
    """The values that a node reads, also from within its branches."""
    names = set(node.input)
    for graph in _inner(node):
        names |= {item.name for item in graph.output}
        for item in graph.node:
            names |= _used(item)
    return names
