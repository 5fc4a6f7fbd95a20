"""The object tree of a model: every layer, variable, optimizer, vocabulary and plain attribute by attribute path.

Keras tracks layers and variables that are attributes, or in lists and dicts that are; state in a plain object, a
dataclass, a closure or a ``tf.Module`` it never sees, and loses when it saves. The tree is walked by attribute, so
it finds those too, and names each by a path that a rebuilt instance of the same class has as well:
``encoder.blocks[0].dense.kernel``. Imports keras_api and weak_notes.

What the code of a model reads from global variables (``set_globals``) belongs to its tree too, as
``global['train.optimizer']``: a keyword of Python is no attribute's name.

Where one object can be reached by several paths, the shortest wins, then the first in alphabetical order, so that
the name depends neither on the order of assignment nor on that of a dict.
"""

from __future__ import annotations

import ast
import collections
import functools
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow_keras_subclass.keras_api import KerasApi
from mlflow_keras_subclass.weak_notes import WeakNotes

__all__ = ["GLOBALS", "Attribute", "ModelTree", "is_global", "is_unreachable", "set_globals", "walk"]

GLOBALS = "global"
_OWN_VARIABLES = "variables["
_GLOBALS: WeakNotes[dict[str, Any]] = WeakNotes()

# Written by TensorFlow's and Keras' attribute tracking whenever it sees fit.
_TRACKING_PREFIXES = ("_self_", "_obj_reference", "_tf_", "__")
# The owner of a value and the value's attribute name or its key, written as a literal.
_LAST_STEP = re.compile(
    r"(?P<owner>|.*?(?=\.[A-Za-z_]\w*$)|.*(?=\[))(?:\.?(?P<name>[A-Za-z_]\w*)|\[(?P<key>-?\d+|'[^']*')\])"
)
_FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A value without state, and where it is: ``owner.key`` or ``owner[key]``."""

    owner: Any
    key: Any
    value: Any
    is_item: bool

    def replace(self, value: Any) -> None:
        """Put another value in its place; ``TypeError`` if the owner cannot be changed."""
        if self.is_item and isinstance(self.owner, list) and self.key == len(self.owner):
            self.owner.append(value)
        elif self.is_item:
            self.owner[self.key] = value
        else:
            setattr(self.owner, self.key, value)


@dataclass(slots=True, kw_only=True)
class ModelTree:
    """What ``walk`` found, each by its path; the model itself has the path ``""``.

    ``kinds`` tells what owns a variable: ``layer``, ``seed`` (a seed generator), ``metric``, or ``untracked`` (an
    object that Keras does not track). ``unordered`` are paths of sets that hold several things with state.
    """

    layers: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    optimizers: dict[str, Any] = field(default_factory=dict)
    vocabularies: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Attribute] = field(default_factory=dict)
    owners: dict[str, Any] = field(default_factory=dict)
    unordered: list[str] = field(default_factory=list)

    def variable_paths(self) -> dict[int, str]:
        """The path of each variable by its identity."""
        return {id(variable): path for path, variable in self.variables.items()}

    def layer_paths(self) -> dict[int, str]:
        """The path of each layer by its identity."""
        return {id(layer): path for path, layer in self.layers.items()}

    def has_place(self, path: str) -> bool:
        """Whether there is a value with this path, or what would hold it."""
        return path in self.attributes or self.place(path) is not None

    def place(self, path: str) -> Attribute | None:
        """Where a value with this path belongs, whether or not there is one; ``None`` if its owner is not there."""
        match = _LAST_STEP.fullmatch(path)
        if match is None:
            return None
        owner = self.owners.get(match["owner"])
        if owner is None and match["owner"] in self.attributes:
            owner = self.attributes[match["owner"]].value
        if owner is None:
            return None
        key = match["name"] or ast.literal_eval(match["key"])
        return Attribute(owner=owner, key=key, value=None, is_item=match["name"] is None)


def set_globals(model: Any, values: Mapping[str, Any]) -> None:
    """Note what the code of ``model`` reads from global variables, by name; ``walk`` goes there too."""
    # Without the model itself, which the note would keep alive for ever.
    _GLOBALS.put(model, {name: value for name, value in values.items() if value is not model})


def is_global(path: str) -> bool:
    """Whether a path leads through a global variable."""
    return path.startswith(f"{GLOBALS}[")


def walk(api: KerasApi, model: Any, is_user_defined: Callable[[Any], bool]) -> ModelTree:
    """The tree of ``model`` as it is now; nothing is called, built or changed."""
    return _Walk(api, is_user_defined).run(model)


class _Walk:
    def __init__(self, api: KerasApi, is_user_defined: Callable[[Any], bool]) -> None:
        self._api = api
        self._is_user_defined = is_user_defined
        self._tree = ModelTree()
        self._seen: dict[int, Any] = {}
        self._queue: collections.deque[tuple[str, Any, str]] = collections.deque()
        self._wrapped: dict[int, Any] = {}

    def run(self, model: Any) -> ModelTree:
        self._add("", model, "layer")
        self._drain()
        if outside := _GLOBALS.get(model):
            self._visit(GLOBALS, outside, "untracked")
            self._drain()
        # Layers that no attribute leads to: those of Sequential and Functional models, or added by a closure.
        while self._add_tracked():
            self._drain()
        return self._tree

    def _drain(self) -> None:
        while self._queue:
            path, value, kind = self._queue.popleft()
            self._visit(path, value, kind)

    def _add(self, path: str, value: Any, kind: str) -> None:
        """Queue ``value`` unless it is known; variables and optimizers have nothing below them."""
        value = self._wrapped.get(id(value), value)
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if self._api.is_variable(value):
            path = self._readable(path)
            self._tree.variables[path] = value
            self._tree.kinds[path] = kind
        elif self._api.is_optimizer(value):
            self._tree.optimizers[path] = value
        else:
            self._queue.append((path, value, kind))

    def _readable(self, path: str) -> str:
        # Dense keeps its kernel in `_kernel`, and everybody calls it `kernel`.
        head, dot, name = path.rpartition(".")
        plain = f"{head}{dot}{name.removeprefix('_')}"
        return path if plain in self._tree.variables or not name.removeprefix("_").isidentifier() else plain

    def _visit(self, path: str, value: Any, kind: str) -> None:
        self._tree.owners[path] = value
        if self._api.is_layer(value):
            self._tree.layers[path] = value
            self._wrapped.update(self._api.wrapped_variables(value))
            if self._api.holds_vocabulary(value):
                self._tree.vocabularies[path] = value
            self._visit_attributes(path, value, "layer")
            if self._api.is_optimizer(getattr(value, "optimizer", None)):
                self._add(_join(path, "optimizer"), value.optimizer, "layer")
        elif self._api.is_metric(value):
            self._visit_attributes(path, value, "metric")
        elif self._api.is_seed_generator(value):
            self._add(_join(path, "state"), value.state, "seed")
        else:
            self._visit_other(path, value, "metric" if kind == "metric" else "untracked")

    def _visit_attributes(self, path: str, owner: Any, kind: str) -> None:
        hidden = self._api.hidden_attributes(owner)
        attributes = self._api.attributes(owner)
        for name in sorted(attributes):
            if name not in hidden and not name.startswith(_TRACKING_PREFIXES):
                self._visit_child(_join(path, name), attributes[name], kind, owner, name, is_item=False)
        for name, buffer in self._api.buffers(owner).items():
            self._tree.variables[_join(path, name)] = buffer
            self._tree.kinds[_join(path, name)] = kind
        if self._api.is_metric(owner):
            for variable in owner.variables:
                self._add(_join(path, _identifier(variable.name)), variable, "metric")

    def _visit_other(self, path: str, value: Any, kind: str) -> None:
        if isinstance(value, _FUNCTIONS):
            for name, item in _enclosed(value):
                if self._is_stateful(item):
                    self._add(f"{path}({name})", item, kind)
        elif isinstance(value, set | frozenset):
            stateful = [item for item in value if self._is_stateful(item)]
            if len(stateful) > 1:
                self._tree.unordered.append(path)
            for item in stateful[:1]:
                self._add(f"{path}{{}}", item, kind)
        elif (items := _items(value)) is not None:
            for key, item in items:
                self._visit_child(f"{path}[{key!r}]", item, kind, value, key, is_item=True)
        else:
            self._visit_attributes(path, value, kind)

    def _visit_child(self, path: str, value: Any, kind: str, owner: Any, key: Any, *, is_item: bool) -> None:
        if self._is_stateful(value):
            self._add(path, value, kind)
        else:
            self._tree.attributes[path] = Attribute(owner=owner, key=key, value=value, is_item=is_item)

    def _add_tracked(self) -> bool:
        """Add what Keras tracks and no attribute leads to; whether there was any."""
        before = len(self._seen)
        for path, layer in list(self._tree.layers.items()):
            sublayers = [item for item in self._api.sublayers(layer) if type(item).__name__ != "InputLayer"]
            for number, sublayer in enumerate(sublayers):
                self._add(_join(path, f"layers[{number}]"), sublayer, "layer")
            for number, generator in enumerate(self._api.seed_generators(layer)):
                self._add(_join(path, f"seed_generators[{number}]"), generator, "seed")
            for number, variable in enumerate(self._api.own_variables(layer)):
                self._add(_join(path, f"{_OWN_VARIABLES}{number}]"), variable, "layer")
        return len(self._seen) > before

    def _is_stateful(self, value: Any) -> bool:
        """Whether state can be reached through ``value``: through containers, user objects and closures only."""
        return self._search(value, set())

    def _search(self, value: Any, active: set[int]) -> bool:
        api = self._api
        if api.is_layer(value) or api.is_variable(value) or api.is_optimizer(value) or api.is_metric(value):
            return True
        if self._api.is_seed_generator(value) or self._api.buffers(value):
            return True
        if id(value) in active or isinstance(value, type | types.ModuleType | str | bytes | int | float):
            return False
        active.add(id(value))
        return any(self._search(item, active) for item in self._below(value))

    def _below(self, value: Any) -> Iterator[Any]:
        if isinstance(value, set | frozenset):
            yield from value
        elif (items := _items(value)) is not None:
            yield from (item for _, item in items)
        elif isinstance(value, _FUNCTIONS):
            if not self._api.is_own(value):
                yield from (item for _, item in _enclosed(value))
        elif hasattr(value, "__dict__") and self._is_open(type(value)):
            yield from self._api.attributes(value).values()

    def _is_open(self, kind: type) -> bool:
        """Whether instances are looked into: of the user's classes, and modules of the backend."""
        return self._is_user_defined(kind) or self._api.is_open(kind)


def is_unreachable(layer_path: str, path: str) -> bool:
    """Whether ``path`` is of a variable that only the layer's own list leads to."""
    return path.startswith(_join(layer_path, _OWN_VARIABLES))


def _items(value: Any) -> list[tuple[Any, Any]] | None:
    """Keys and items of a container, or ``None``; named tuples are walked by position."""
    if isinstance(value, Mapping):
        return sorted(value.items(), key=lambda pair: repr(pair[0]))
    if isinstance(value, list | tuple | collections.deque):
        return list(enumerate(value))
    return None


def _enclosed(value: Any) -> list[tuple[str, Any]]:
    """What a function, bound method or partial carries along, by name."""
    if isinstance(value, functools.partial):
        named = [(str(number), item) for number, item in enumerate(value.args)]
        return [("func", value.func), *named, *value.keywords.items()]
    if isinstance(value, types.MethodType):
        return [("self", value.__self__)]
    found = []
    for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
        try:
            found.append((name, cell.cell_contents))
        except ValueError:
            continue
    return found


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _identifier(name: str) -> str:
    return name.replace("/", "_").replace(".", "_")
