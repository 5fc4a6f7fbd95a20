"""Which layer of a subclassed model calls which on whose output: a subclass has no graph of its own, so it is traced.

The model is not run for it: its calls are watched while Keras works out the output's shape. With TensorFlow, tensors
are followed through operations that are no layers; with JAX and torch, from layer to layer only. Imports keras_api.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow_keras_subclass.keras_api import KerasApi, tracing

__all__ = ["INPUT", "CallGraph", "Graph", "Node", "watched"]

# The node that stands for what the model is given; no attribute can be called so.
INPUT = "(input)"

_FOLLOWED = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A layer by its attribute path, its class, the shapes it returned, and how often it was called."""

    path: str
    kind: str
    shapes: tuple[str, ...]
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """What one layer (``path``; the model's is ``""``) calls directly; edges are pairs of indices of ``nodes``."""

    path: str
    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class CallGraph:
    """The model's own graph first, then those of the layers that call others."""

    graphs: tuple[Graph, ...] = ()


@dataclass(slots=True)
class _Scope:
    """One running call: the layers it has called so far, and which of them made which tensor."""

    path: str
    api: KerasApi
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    edges: dict[tuple[int, int], None] = field(default_factory=dict)
    produced: dict[Any, int] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)

    def node(self, path: str, kind: str) -> int:
        if path not in self.nodes:
            self.nodes[path] = {"kind": kind, "shapes": {}, "calls": 0}
        return list(self.nodes).index(path)

    def connect(self, tensors: list[Any], target: int) -> None:
        for tensor in tensors:
            for source in self._sources(tensor):
                if source != target:
                    self.edges[source, target] = None

    def _sources(self, tensor: Any) -> Iterator[int]:
        """The nodes that ``tensor`` comes from, through operations that are no layers."""
        waiting: list[Any] = [tensor]
        seen: set[Any] = set()
        while waiting and len(seen) < _FOLLOWED:
            item = waiting.pop()
            key = tracing.tensor_key(item)
            if key in seen:
                continue
            seen.add(key)
            if key in self.produced:
                yield self.produced[key]
            elif tracing.is_symbolic_input(item):
                yield self.node(INPUT, "")
            else:
                waiting += tracing.tensor_parents(item)

    def keep(self, tensors: list[Any], node: int) -> None:
        # Kept alive: an identity may be given to another tensor otherwise.
        self.kept += tensors
        for tensor in tensors:
            self.produced[tracing.tensor_key(tensor)] = node

    def graph(self) -> Graph:
        """In the order of the calls, what was given before all."""
        paths = list(self.nodes)
        order = sorted(range(len(paths)), key=lambda number: paths[number] != INPUT)
        place = {number: index for index, number in enumerate(order)}
        nodes = tuple(
            Node(path=path, kind=item["kind"], shapes=tuple(item["shapes"]), calls=item["calls"])
            for path, item in ((paths[number], self.nodes[paths[number]]) for number in order)
        )
        return Graph(path=self.path, nodes=nodes, edges=tuple((place[a], place[b]) for a, b in self.edges))


@contextlib.contextmanager
def watched(api: KerasApi, layers: Mapping[str, Any]) -> Iterator[CallGraph]:
    """Watch the calls made inside among ``layers`` (by path); the result is complete when the block ends."""
    paths = {id(layer): path for path, layer in layers.items()}
    root, result = _Scope("", api), CallGraph()
    stack = [root]
    inner: dict[str, Graph] = {}

    def note(layer: Any, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = paths.get(id(layer))
        if path is None or path == "":
            return call(*args, **kwargs)
        scope = stack[-1]
        given = _tensors(api, (args, kwargs))
        node = scope.node(path, type(layer).__name__)
        scope.connect(given, node)
        child = _Scope(path, api)
        child.keep(given, child.node(INPUT, ""))
        stack.append(child)
        try:
            returned = call(*args, **kwargs)
        finally:
            stack.pop()
        made = _tensors(api, returned)
        scope.keep(made, node)
        facts = scope.nodes[path]
        facts["calls"] += 1
        facts["shapes"].update(dict.fromkeys(_shape(tensor) for tensor in made))
        if len(child.nodes) > 1:
            inner[path] = child.graph()
        return returned

    with tracing.observed_calls(api.keras, note):
        yield result
    if root.nodes:
        result.graphs = (root.graph(), *inner.values())


def _tensors(api: KerasApi, value: Any) -> list[Any]:
    return [item for item in api.flat(value) if hasattr(item, "shape") and hasattr(item, "dtype")]


def _shape(tensor: Any) -> str:
    try:
        return str(tuple(None if size is None else int(size) for size in tensor.shape)).replace("None", "·")
    except (TypeError, ValueError):
        return "?"
