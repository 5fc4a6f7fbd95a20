"""What the modules of real models share; imports no Keras."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Build = Callable[[], tuple[Any, tuple[Any, ...]]]


@dataclass(frozen=True)
class RealModel:
    package: str
    build: Build


class Registry(dict[str, RealModel]):
    def real(self, package: str) -> Callable[[Build], Build]:
        def register(build: Build) -> Build:
            self[build.__name__] = RealModel(package, build)
            return build

        return register


def called(model, *inputs):
    model(*inputs)
    return model, inputs


def get(path):
    """The object at a dotted path, so that a model that is stored as source names nothing that it does not use."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
