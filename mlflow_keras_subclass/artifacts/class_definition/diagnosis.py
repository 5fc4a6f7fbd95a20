"""Says what cannot be stored, where it is held, and what to change.

Must not import Keras.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_keras_subclass.artifacts.class_definition.global_values import MAX_BYTES, keras_kind, size_bytes

if TYPE_CHECKING:
    from mlflow_keras_subclass.artifacts.class_definition.spaces import Space

__all__ = ["Problem", "explained", "problem_with"]

_MAX_VISITED = 100_000


@dataclass(frozen=True, eq=False, slots=True)
class Problem:
    """A value that cannot be stored with the class definition, and why."""

    value: Any
    reason: str


def problem_with(value: Any, *, is_size_limited: bool) -> str | None:
    """Why ``value`` must not travel inside a pickle although it could, or ``None``."""
    kind = keras_kind(value)
    if kind is not None:
        return (
            f"is a live Keras {kind} ({type(value).__name__}): its weights would be frozen into the class definition. "
            f"Keep it in a variable of its own, as an attribute of the model, or pass it as an argument"
        )
    size = size_bytes(value) if is_size_limited else 0
    if size > MAX_BYTES:
        return (
            f"is a {type(value).__name__} of {size / 2**20:.1f} MB ({size} bytes), more than the 1 MB that "
            f"a class definition may hold. Pass it to __init__, or make it a weight of the model"
        )
    return None


def explained(problems: Iterable[Problem], spaces: Iterable[Space], objects: Mapping[str, Any]) -> list[str]:
    """One sentence for each problem, with the path to its value."""
    problems = list(problems)
    paths = _paths({id(problem.value) for problem in problems}, spaces, objects)
    return [
        f"{paths.get(id(problem.value), f'a value of type {type(problem.value).__qualname__}')} {problem.reason}."
        for problem in problems
    ]


def _paths(targets: set[int], spaces: Iterable[Space], objects: Mapping[str, Any]) -> dict[int, str]:
    """Breadth first, so that the shortest path is found."""
    pending = deque(_start(spaces, objects))
    paths: dict[int, str] = {}
    visited: set[int] = set()
    while pending and len(paths) < len(targets) and len(visited) < _MAX_VISITED:
        path, value = pending.popleft()
        if id(value) in visited:
            continue
        visited.add(id(value))
        if id(value) in targets:
            paths[id(value)] = path
        pending.extend((path + step, child) for step, child in _children(value))
    return paths


def _start(spaces: Iterable[Space], objects: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for space in spaces:
        for name in sorted((space.used | space.stored) & space.variables.keys()):
            yield f"{space.name}.{name}", space.variables[name]
    for key, value in objects.items():
        yield (f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else key), value


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, types.ModuleType):
        return
    if isinstance(value, Mapping) and type(value) in (dict, types.MappingProxyType):
        yield from ((f"[{key!r}]", item) for key, item in list(value.items()))
    elif type(value) in (list, tuple, set, frozenset):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, types.FunctionType):
        yield from _held_by_function(value)
    elif isinstance(value, property):
        yield from ((f".{name}", getattr(value, name)) for name in ("fget", "fset", "fdel"))
    elif isinstance(value, classmethod | staticmethod | types.MethodType):
        yield "", value.__func__
    elif isinstance(value, type) or isinstance(getattr(value, "__dict__", None), dict):
        yield from ((f".{name}", item) for name, item in list(vars(value).items()))


def _held_by_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f" (its closure variable {name!r})", cell.cell_contents
        except ValueError:
            continue
    yield from ((f" (its default {index})", value) for index, value in enumerate(function.__defaults__ or ()))
    yield from ((f" (its default {name!r})", value) for name, value in (function.__kwdefaults__ or {}).items())
    yield from ((f".{name}", value) for name, value in vars(function).items())
