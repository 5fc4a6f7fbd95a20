"""A zoo of subclassed models as people write them: each case is a small class, and how it is fed.

A case is a function that returns a model that was called, and the arguments of that call. ``refused`` is a text that
the refusal at log time must hold; without it the model must come back exactly. A ``stateful`` model answers
differently each time it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Case:
    build: Callable[[], tuple[Any, tuple[Any, ...]]]
    refused: str | None = None
    stateful: bool = False


def case(refused: str | None = None, *, stateful: bool = False) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def register(build: Callable[[], Any]) -> Callable[[], Any]:
        CASES[build.__name__] = Case(build, refused, stateful)
        return build

    return register
