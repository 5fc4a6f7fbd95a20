"""Pickles opaque values (lambdas, closures, instances) so that the user's definitions in them stay the same objects.

A class, a reachable function or a module of the user is named, not copied: it comes back as the one from the class
pickle or from the source route. Imports the pickler below it.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_keras_subclass.artifacts.class_definition.origins import USER, module_name, original_name
from mlflow_keras_subclass.artifacts.class_definition.pickler import DefinitionPickler
from mlflow_keras_subclass.artifacts.class_definition.sources import live_variables
from mlflow_keras_subclass.artifacts.class_definition.spaces import Space

__all__ = ["ObjectPickler", "Symbol", "is_reachable"]


@dataclass(frozen=True, eq=False, slots=True)
class Symbol:
    """A class or function of the user that an opaque object refers to; without a module it is made in a function."""

    value: Any
    module: str | None
    qualname: str


class ObjectPickler(DefinitionPickler):
    """Pickles objects; ``symbols`` and the variables wanted of spaces must then go into the class pickle."""

    def __init__(
        self,
        *args: Any,
        definitions: Mapping[str, Any],
        modules_with_text: Container[str] | None = None,
        **options: Any,
    ) -> None:
        """As the base; ``definitions`` are named by their keys, modules by their name if their text is stored."""
        super().__init__(*args, **options, is_size_limited=False)
        self.symbols: list[Symbol] = []
        self.modules: list[Space] = []
        self._modules_with_text = modules_with_text
        self._keys = {id(value): key for key, value in definitions.items()}

    def persistent_id(self, obj: Any) -> Any:
        """Name what the class pickle or the source route brings back."""
        key = self._keys.get(id(obj))
        if key is not None:
            return "definition", key
        kind = type(obj)
        if kind is Space and self._is_named(obj):
            return self._module_id(obj)
        if issubclass(kind, types.ModuleType) and self._is_user_module(obj):
            space = self.spaces.of(vars(obj))
            space.is_loose = space.is_loose or not space.wanted
            return self._module_id(space) if self._is_named(space) else None
        if issubclass(kind, type) and self._origin(obj) == USER:
            return self._symbol_id(obj, is_reachable(obj))
        if kind is types.FunctionType and self._origin(obj) == USER and is_reachable(obj):
            return self._symbol_id(obj, True)
        return super().persistent_id(obj)

    def _stored_with_function(self, home: Any, variables: dict[str, Any]) -> dict[str, Any]:
        """Nothing for functions of a module: its variables are in the class pickle, or come from the source."""
        if not isinstance(home, Space) or not self._is_named(home):
            return variables
        home.wanted.update(variables)
        return {}

    def _is_named(self, space: Space) -> bool:
        """Whether both routes bring the module back; that of a prompt without text is copied instead."""
        return space.is_importable and (self._modules_with_text is None or space.name in self._modules_with_text)

    def _module_id(self, space: Space) -> tuple[str, str]:
        if space not in self.modules:
            self.modules.append(space)
        return "module", space.name

    def _symbol_id(self, obj: Any, reachable: bool) -> tuple[str, int, str | None, str]:
        known = [number for number, symbol in enumerate(self.symbols) if symbol.value is obj]
        if not known:
            known = [len(self.symbols)]
            module = original_name(str(module_name(obj))) if reachable else None
            self.symbols.append(Symbol(obj, module, obj.__qualname__))
        symbol = self.symbols[known[0]]
        return "symbol", known[0], symbol.module, symbol.qualname


def is_reachable(obj: Any) -> bool:
    """Whether ``obj`` is what its module has under its qualified name."""
    variables = obj.__globals__ if isinstance(obj, types.FunctionType) else live_variables(str(module_name(obj)))
    first, *rest = obj.__qualname__.split(".")
    if variables is None or first not in variables:
        return False
    return functools.reduce(lambda value, name: getattr(value, name, None), rest, variables[first]) is obj
