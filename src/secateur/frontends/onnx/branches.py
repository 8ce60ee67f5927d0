"""Branches of If: those that always run, in line with the rest, and the constants within them.

A file that holds two networks, one for each sampling rate, say, chooses between them by an If.
Where the choice depends on constants and on shapes only, the branch that is run is a part of the
network like any other. Two branches may hold values of the same name; `Names` tells these apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from secateur.frontends.onnx.file import bodies, constants, reads, reads_within
from secateur.frontends.onnx.nodes import is_node

Decisions = Mapping[str, bool]  # by the name of an If's first output

_TAKEN = {"then_branch": True, "else_branch": False}
_SIZES = ("Shape", "Size")


@dataclass(frozen=True)
class Scope:
    """A graph whose names are its own: the whole, or a branch of an If.

    Attributes:
        graph: it, within the model.
        path: what names begin with that others have too.
        choices: the If that lead to it, by the path of their scope and their first output.
    """

    graph: GraphProto
    path: str
    choices: Mapping[tuple[str, str], bool]


class Names:
    """The names of values in a model and its branches, each for one value."""

    def __init__(self, model: ModelProto) -> None:
        self.scopes = [*_scopes(model.graph)]
        counts = Counter(name for scope in self.scopes for name in _defined(scope.graph))
        self._several = {name for name, count in counts.items() if count > 1}

    def unique(self, path: str, name: str) -> str:
        """The name of a value that is defined in the scope of a path."""
        return path + name if path and name in self._several else name

    def constants(self) -> dict[str, TensorProto]:
        """All constants of the graph and its branches, within the model."""
        return {
            self.unique(scope.path, name): held
            for scope in self.scopes
            for name, held in constants(scope.graph).items()
        }

    def inner(self) -> set[str]:
        """Constants in branches."""
        scopes = [scope for scope in self.scopes if scope.path]
        return {self.unique(of.path, name) for of in scopes for name in constants(of.graph)}

    def decisions(self, names: set[str]) -> Decisions:
        """What is decided where constants of these names are in use."""
        found: dict[str, bool] = {}
        for scope in self.scopes:
            own = {self.unique(scope.path, name) for name in constants(scope.graph)}
            if not own.isdisjoint(names):
                found |= {self.unique(*key): taken for key, taken in scope.choices.items()}
        return found


@dataclass(frozen=True)
class InLine:
    """A model without those If whose branch is known.

    Attributes:
        model: with unique names.
        left_out: how many branches are not run.
        read_elsewhere: values around these that they read.
    """

    model: ModelProto
    left_out: int = 0
    read_elsewhere: frozenset[str] = frozenset()


def in_line(model: ModelProto, decide: Callable[[ModelProto], Decisions]) -> InLine:
    """A model with the branches that are run in the places of their If; not changed itself.

    Args:
        model: its functions expanded.
        decide: which branch is run, for as many of the outermost If as are known; asked again for
            those within them.
    """
    if not any(is_node(node, "If") for node in model.graph.node):
        return InLine(model)
    twin = ModelProto()
    twin.CopyFrom(model)
    _rename(twin.graph, {}, "", Names(twin).unique)
    count, elsewhere = 0, set[str]()
    while decisions := decide(twin):
        for node in twin.graph.node:
            if node.output[0] in decisions:
                count += 1
                elsewhere.update(reads_within(_branch(node, taken=not decisions[node.output[0]])))
        _replace(twin.graph, decisions)
    return InLine(twin, count, frozenset(elsewhere))


def as_decided(
    decisions: Decisions, *, otherwise: bool | None
) -> Callable[[ModelProto], Decisions]:
    """For `in_line`: If as was decided before, others all alike; None = as they are."""

    def decide(model: ModelProto) -> Decisions:
        names = [node.output[0] for node in model.graph.node if is_node(node, "If")]
        found = {name: decisions.get(name, otherwise) for name in names}
        return {name: taken for name, taken in found.items() if taken is not None}

    return decide


def conditions(model: ModelProto) -> dict[str, str]:
    """Conditions of the outermost If that depend on constants and shapes only.

    Returns:
        The condition's name, by that of the first output.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    held = {of.name for of in model.graph.initializer}
    inputs = {value.name for value in model.graph.input} - held
    chosen = [node for node in model.graph.node if is_node(node, "If")]
    known = [node for node in chosen if _is_known(node.input[0], makers, inputs)]
    return {node.output[0]: node.input[0] for node in known}


def _is_known(name: str, makers: Mapping[str, NodeProto], inputs: set[str]) -> bool:
    """Whether a value depends on no input but for its shape."""
    waiting, seen = [name], set[str]()
    while waiting:
        name = waiting.pop()
        node = makers.get(name)
        if name in inputs or (node is not None and node.op_type.startswith("Random")):
            return False
        if node is not None and name not in seen and node.op_type not in _SIZES:
            seen.add(name)
            waiting += reads(node)
    return True


def _branches(node: NodeProto) -> list[tuple[str, GraphProto]]:
    """Both branches of an If, by their attributes' names; of any other node none."""
    if not is_node(node, "If"):
        return []
    return [(of.name, of.g) for of in node.attribute if of.name in _TAKEN]


def _branch(node: NodeProto, *, taken: bool) -> GraphProto:
    return next(body for name, body in _branches(node) if _TAKEN[name] is taken)


def _scopes(graph: GraphProto) -> Iterator[Scope]:
    """A graph and all branches within it, outer ones first."""
    waiting = [Scope(graph, "", {})]
    while waiting:
        scope = waiting.pop(0)
        yield scope
        for node in scope.graph.node:
            for name, body in _branches(node):
                path = f"{scope.path}{node.output[0]}/{name}/"
                choices = {**scope.choices, (scope.path, node.output[0]): _TAKEN[name]}
                waiting.append(Scope(body, path, choices))


def _defined(graph: GraphProto) -> set[str]:
    held = {of.name for of in (*graph.initializer, *graph.input)}
    return held | {name for node in graph.node for name in node.output if name}


def _rename(
    graph: GraphProto,
    outer: Mapping[str, str],
    path: str,
    unique: Callable[[str, str], str],
) -> None:
    """Gives all values of a graph and its branches unique names.

    Args:
        graph: changed in place.
        outer: new names of values around it.
        path: of the graph's scope.
        unique: a value's new name, by the path of its scope and its name.
    """
    names = {**outer, **{name: unique(path, name) for name in _defined(graph)}}
    for held in graph.initializer:
        held.name = names[held.name]
    for value in graph.output:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        key = node.output[0]
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
        branches = _branches(node)
        for name, body in branches:
            _rename(body, names, f"{path}{key}/{name}/", unique)
        for body in [] if branches else bodies(node):
            _rename(body, names, "", lambda _, name: name)


def _replace(graph: GraphProto, decisions: Decisions) -> None:
    """Puts the branches that are run in the places of their If."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.output[0] not in decisions:
            nodes.append(_copy(node))
            continue
        body = _branch(node, taken=decisions[node.output[0]])
        for held in body.initializer:
            graph.initializer.add().CopyFrom(held)
        nodes += map(_copy, body.node)
        for inner, name in zip(body.output, node.output, strict=True):
            nodes += [onnx.helper.make_node("Identity", [inner.name], [name])] if name else []
    del graph.node[:]
    graph.node.extend(nodes)


def _copy(node: NodeProto) -> NodeProto:
    twin = NodeProto()
    twin.CopyFrom(node)
    return twin
