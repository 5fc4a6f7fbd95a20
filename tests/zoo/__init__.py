"""A zoo of subclassed models as people write them: each case is a small class, and how it is fed.

A case is a function that returns a model that was called, and the arguments of that call. ``refused`` is a text that
the refusal at log time must hold; without it the model must come back exactly. A ``stateful`` model answers
differently each time it is called, and the loaded one alike; a ``random`` one draws from a generator that is no part
of it, so that only its state can be compared.
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
    random: bool = False


def case(
    refused: str | None = None, *, stateful: bool = False, random: bool = False
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def register(build: Callable[[], Any]) -> Callable[[], Any]:
        CASES[build.__name__] = Case(build, refused, stateful or random, random)
        return build

    return register
