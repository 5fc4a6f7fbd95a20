"""A zoo of subclassed models as people write them: each case is a small class, and how it is fed.

A case is a function that returns a model that was called, and the arguments of that call. ``refused`` is a text that
the refusal at log time must hold; without it the model must come back exactly. A ``stateful`` model answers
differently each time it is called, and the loaded one alike; a ``random`` one draws from a generator that is no part
of it, so that only its state can be compared. A module that names ``BACKENDS`` has cases for these only: what a class
can do with one backend's own functions, or what Keras itself offers with one only.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KERAS_3 = ("tensorflow", "jax", "torch")
CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Case:
    build: Callable[[], tuple[Any, tuple[Any, ...]]]
    refused: str | None = None
    stateful: bool = False
    random: bool = False


def case(
    refused: str | None = None, *, stateful: bool = False, random: bool = False
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def register(build: Callable[[], Any]) -> Callable[[], Any]:
        CASES[build.__name__] = Case(build, refused, stateful or random, random)
        return build

    return register


def modules(backend: str) -> Iterator[tuple[str, ast.Module]]:
    """Name and source of each module with cases for ``backend``; nothing is imported."""
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        source = ast.parse(path.read_text(encoding="utf-8"))
        stated = [node.value for node in source.body if isinstance(node, ast.Assign) and _name(node) == "BACKENDS"]
        if backend in (ast.literal_eval(stated[0]) if stated else KERAS_3):
            yield path.stem, source


def names_of_cases(backend: str) -> list[tuple[str, bool]]:
    """The cases for ``backend`` and whether they are to be refused; nothing is imported."""
    found = []
    for _, source in modules(backend):
        for node in source.body:
            for decorator in getattr(node, "decorator_list", ()):
                if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "case":
                    refused = bool(decorator.args) or any(word.arg == "refused" for word in decorator.keywords)
                    found.append((node.name, refused))
    return found


def _name(node: ast.Assign) -> str:
    return getattr(node.targets[0], "id", "")
