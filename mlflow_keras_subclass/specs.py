"""Input and output specs: nested structures of shape and dtype, as they were seen when the model was called.

Imports errors only; arrays of any backend are read by duck typing (``shape`` and ``dtype``), so no Keras is imported.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlflow_keras_subclass.errors import FormatError, PredictError

__all__ = [
    "ArraySpec",
    "Constant",
    "InputSpec",
    "Record",
    "Structure",
    "observe",
    "observe_call",
    "structure_from_json",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """Shape (``None`` where it varies; the first dimension is the batch) and dtype name of one array.

    ``observed`` is one concrete shape that the model accepted, the batch included; ``None`` if none was seen.
    """

    shape: tuple[int | None, ...]
    dtype: str
    observed: tuple[int, ...] | None = None

    def example_shape(self, open_size: int) -> tuple[int, ...]:
        """The shape that was seen; if none was, this one with ``open_size`` where it varies."""
        return self.observed or tuple(open_size if size is None else size for size in self.shape)


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that is not an array (``None``, bool, number, string) in a call's arguments."""

    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A named tuple: its class name, field names and one structure for each field."""

    name: str
    fields: tuple[str, ...]
    items: tuple[Structure, ...]


Structure = ArraySpec | Constant | Record | list[Any] | tuple[Any, ...] | dict[Any, Any]


def observe(value: Any, floatx: str) -> Structure:
    """The structure of ``value``: arrays become specs with an open batch dimension; floats are noted as ``floatx``."""
    if isinstance(value, Mapping):
        return {key: observe(item, floatx) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        items = tuple(observe(item, floatx) for item in value)
        return Record(name=type(value).__name__, fields=tuple(value._fields), items=items)
    if isinstance(value, list | tuple):
        return type(value)([observe(item, floatx) for item in value])
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array_spec(value, floatx)
    return Constant(value if isinstance(value, bool | int | float | str) else None)


def _array_spec(value: Any, floatx: str) -> ArraySpec:
    shape = tuple(getattr(value.shape, "as_list", lambda: value.shape)() if value.shape is not None else ())
    shape = tuple(None if size is None else int(size) for size in shape)
    dtype = _dtype_name(value.dtype)
    return ArraySpec(
        shape=(None, *shape[1:]) if shape else (),
        dtype=floatx if "float" in dtype else dtype,
        observed=None if None in shape[1:] else tuple(2 if size is None else size for size in shape),
    )


def _dtype_name(dtype: Any) -> str:
    name = str(getattr(dtype, "name", None) or dtype).removeprefix("torch.")
    return "string" if name in ("object",) or name.startswith(("str", "bytes", "<U", "|S")) else name


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """How the model was called: positional and keyword arguments, each a nested structure of arrays.

    ``parameters`` are the names of the positional parameters of ``call``; they name the arrays that no key names.
    """

    args: tuple[Structure, ...]
    kwargs: Mapping[str, Structure]
    parameters: tuple[str, ...]

    def leaves(self) -> dict[str | None, ArraySpec]:
        """Every array by its name, in call order; a model of exactly one bare array has the one name ``None``.

        Names are the keys of a dict input, the parameter names of several arguments, and for nesting both joined
        by ``_``: ``call(self, user, item)`` gives ``user`` and ``item``, ``{"a": {"b": x}}`` gives ``a_b``.
        """
        found: dict[str | None, ArraySpec] = {}
        self._map(lambda name, spec: found.setdefault(name, spec))
        return found

    def bind(self, arrays: Mapping[str | None, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments of the call, with ``arrays`` by name in their places.

        Raises:
            PredictError: An array is missing or one is given that the model does not take.
        """
        names = self.leaves().keys()
        missing, unknown = names - arrays.keys(), arrays.keys() - names
        if missing or unknown:
            raise PredictError(
                f"The model takes the inputs {_listed(names)}; missing: {_listed(missing)}; "
                f"unknown: {_listed(unknown)}."
            )
        return self._map(lambda name, _: arrays[name])

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str | None, Any]:
        """The arrays of an actual call by name: the inverse of ``bind``.

        Raises:
            PredictError: The call does not have this structure.
        """
        found: dict[str | None, Any] = {}
        leaves: list[tuple[str | None, ArraySpec]] = []
        self._map(lambda name, spec: leaves.append((name, spec)))
        values: list[Any] = []
        if len(args) != len(self.args):
            raise PredictError(f"The model takes {len(self.args)} positional inputs, got {len(args)}.")
        for number, (structure, value) in enumerate(zip(self.args, args, strict=True)):
            _collect(structure, value, self._parameter(number), values)
        for key, structure in self.kwargs.items():
            _collect(structure, kwargs.get(key), key, values)
        found.update(zip((name for name, _ in leaves), values, strict=True))
        return found

    def generalized(self, other: InputSpec) -> InputSpec:
        """This spec with every dimension open in which ``other`` differs; this one if the structures differ.

        Of two calls of which one has all arrays of the other and more, such as the labels of training, the one with
        fewer is the spec: it is enough.
        """
        mine, theirs = self.leaves(), other.leaves()
        if theirs.keys() < mine.keys():
            return other._opened(mine)
        return self._opened(theirs) if mine.keys() <= theirs.keys() else self

    def _opened(self, seen: Mapping[str | None, ArraySpec]) -> InputSpec:
        mine = self.leaves()
        if any(len(spec.shape) != len(seen[name].shape) for name, spec in mine.items()):
            return self
        leaves = iter([_generalize(spec, seen[name]) for name, spec in mine.items()])
        args = tuple(_with_leaves(item, leaves) for item in self.args)
        kwargs = {key: _with_leaves(item, leaves) for key, item in self.kwargs.items()}
        return InputSpec(args=args, kwargs=kwargs, parameters=self.parameters)

    def map(self, leaf: Callable[[ArraySpec], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with ``leaf(spec)`` in the place of every array."""
        return self._map(lambda _, spec: leaf(spec))

    def to_json(self) -> dict[str, Any]:
        """The form stored in ``config.json``."""
        return {
            "args": [structure_to_json(item) for item in self.args],
            "kwargs": {key: structure_to_json(item) for key, item in self.kwargs.items()},
            "parameters": list(self.parameters),
        }

    @classmethod
    def from_json(cls, value: Any) -> InputSpec:
        """The inverse of ``to_json``; raises ``FormatError``."""
        try:
            return cls(
                args=tuple(structure_from_json(item) for item in value["args"]),
                kwargs={str(key): structure_from_json(item) for key, item in value["kwargs"].items()},
                parameters=tuple(str(name) for name in value["parameters"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(
                f"input_spec: expected args, kwargs and parameters, got {value!r:.200}: {error}."
            ) from None

    def _parameter(self, number: int) -> str:
        return self.parameters[number] if number < len(self.parameters) else f"input{number}"

    def _map(self, leaf: Callable[[str | None, ArraySpec], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        single = len(self.args) + len(self.kwargs) == 1
        taken: set[str | None] = set()

        def named(path: tuple[str, ...], spec: ArraySpec) -> Any:
            name = _unique(_leaf_name(path, single), taken)
            taken.add(name)
            return leaf(name, spec)

        args = tuple(_walk(item, (self._parameter(number),), named) for number, item in enumerate(self.args))
        return args, {key: _walk(item, (key,), named) for key, item in self.kwargs.items()}


def observe_call(args: Sequence[Any], kwargs: Mapping[str, Any], parameters: Sequence[str], floatx: str) -> InputSpec:
    """The spec of one call of a model, without ``training`` and without arguments that are ``None``."""
    kept = list(args)
    while kept and (kept[-1] is None or (len(kept) <= len(parameters) and parameters[len(kept) - 1] == "training")):
        kept.pop()
    named = {key: item for key, item in kwargs.items() if key != "training" and item is not None}
    return InputSpec(
        args=tuple(observe(item, floatx) for item in kept),
        kwargs={key: observe(item, floatx) for key, item in named.items()},
        parameters=tuple(parameters),
    )


def _leaf_name(path: tuple[str, ...], single: bool) -> str | None:
    if not single:
        return "_".join(path)
    if len(path) == 1:
        return None
    return "_".join(path if path[1].isdecimal() else path[1:])


def _unique(name: str | None, taken: set[str | None]) -> str | None:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    return candidate


def _walk(structure: Structure, path: tuple[str, ...], leaf: Callable[[tuple[str, ...], ArraySpec], Any]) -> Any:
    if isinstance(structure, ArraySpec):
        return leaf(path, structure)
    if isinstance(structure, Constant):
        return structure.value
    if isinstance(structure, Record):
        items = [_walk(i, (*path, f), leaf) for f, i in zip(structure.fields, structure.items, strict=True)]
        return namedtuple(structure.name, structure.fields)(*items)
    if isinstance(structure, dict):
        return {key: _walk(item, (*path, str(key)), leaf) for key, item in structure.items()}
    return type(structure)([_walk(item, (*path, str(i)), leaf) for i, item in enumerate(structure)])


def _with_leaves(structure: Structure, leaves: Iterator[ArraySpec]) -> Structure:
    """The same structure with other arrays; constants stay what they are."""
    if isinstance(structure, ArraySpec):
        return next(leaves)
    if isinstance(structure, Constant):
        return structure
    if isinstance(structure, Record):
        return replace(structure, items=tuple(_with_leaves(item, leaves) for item in structure.items))
    if isinstance(structure, dict):
        return {key: _with_leaves(item, leaves) for key, item in structure.items()}
    return type(structure)([_with_leaves(item, leaves) for item in structure])


def _collect(structure: Structure, value: Any, where: str, values: list[Any]) -> None:
    if isinstance(structure, ArraySpec):
        values.append(value)
        return
    if isinstance(structure, Constant):
        return
    if isinstance(structure, dict):
        if not isinstance(value, Mapping) or value.keys() != structure.keys():
            got = _listed(value.keys()) if isinstance(value, Mapping) else type(value).__name__
            raise PredictError(f"{where}: expected a dict with the keys {_listed(structure.keys())}, got {got}.")
        for key, item in structure.items():
            _collect(item, value[key], f"{where}[{key!r}]", values)
        return
    items = structure.items if isinstance(structure, Record) else structure
    if not isinstance(value, list | tuple) or len(value) != len(items):
        raise PredictError(f"{where}: expected {len(items)} items in a list or tuple, got {type(value).__name__}.")
    for number, (item, part) in enumerate(zip(items, value, strict=True)):
        _collect(item, part, f"{where}[{number}]", values)


def _generalize(spec: ArraySpec, other: ArraySpec) -> ArraySpec:
    shape = tuple(a if a == b else None for a, b in zip(spec.shape, other.shape, strict=True))
    return ArraySpec(shape=shape, dtype=spec.dtype, observed=other.observed or spec.observed)


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in sorted(names, key=str)) or "none"


def structure_to_json(structure: Structure) -> dict[str, Any]:
    """A structure as JSON: the container's kind is its only key, an array has ``shape`` and ``dtype``."""
    if isinstance(structure, ArraySpec):
        value: dict[str, Any] = {"shape": list(structure.shape), "dtype": structure.dtype}
        if structure.observed is not None:
            value["observed"] = list(structure.observed)
        return value
    if isinstance(structure, Constant):
        return {"constant": structure.value}
    if isinstance(structure, Record):
        items = [structure_to_json(item) for item in structure.items]
        return {"namedtuple": {"name": structure.name, "fields": list(structure.fields), "items": items}}
    if isinstance(structure, dict):
        return {"dict": [[key, structure_to_json(item)] for key, item in structure.items()]}
    kind = "list" if isinstance(structure, list) else "tuple"
    return {kind: [structure_to_json(item) for item in structure]}


def structure_from_json(value: Any) -> Structure:
    """The inverse of ``structure_to_json``; raises ``FormatError``."""
    match value:
        case {"shape": list(shape), "dtype": str(dtype)}:
            observed = value.get("observed")
            return ArraySpec(
                shape=tuple(_dimension(size) for size in shape),
                dtype=dtype,
                observed=None if observed is None else tuple(int(size) for size in observed),
            )
        case {"constant": constant}:
            return Constant(constant)
        case {"namedtuple": {"name": str(name), "fields": list(names), "items": list(items)}}:
            return Record(name=name, fields=tuple(names), items=tuple(structure_from_json(item) for item in items))
        case {"dict": list(pairs)}:
            return {key: structure_from_json(item) for key, item in pairs}
        case {"list": list(items)}:
            return [structure_from_json(item) for item in items]
        case {"tuple": list(items)}:
            return tuple(structure_from_json(item) for item in items)
    raise FormatError(f"expected a structure of shapes and dtypes, got {value!r:.200}.")


def _dimension(size: Any) -> int | None:
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise FormatError(f"expected a dimension (a whole number or null), got {size!r}.")
    return size
