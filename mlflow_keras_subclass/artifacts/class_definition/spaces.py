"""The variables of the user's modules, and which of them shipped code reads.

A ``Space`` is one dictionary of globals: of a module, or of code that was executed without one. Imports the module that
tells whose code something is.
"""

from __future__ import annotations

import dis
import functools
import importlib.util
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow_keras_subclass.artifacts.class_definition.global_values import GlobalValues
from mlflow_keras_subclass.artifacts.class_definition.imports import Redirect
from mlflow_keras_subclass.artifacts.class_definition.origins import USER, origin_of, original_name
from mlflow_keras_subclass.artifacts.class_definition.sources import ShippedSources

__all__ = ["CodeNames", "Space", "Spaces", "code_names", "imported_modules", "live_module"]

_GLOBAL_OPERATIONS = frozenset(
    {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
)


@dataclass(frozen=True, slots=True)
class CodeNames:
    """What code, with all code nested in it, may read: globals, any name at all, and imports (level, name, items)."""

    variables: frozenset[str]
    any_names: frozenset[str]
    imports: frozenset[tuple[int, str, tuple[str, ...]]]


@dataclass(eq=False, slots=True)
class Space:
    """One dictionary of globals of the user.

    Attributes:
        name: The original name of the module.
        variables: The live dictionary.
        is_importable: Whether an import of ``name`` finds it; false for globals that are not a module's.
        used: Variables that shipped functions read.
        wanted: Names that shipped code may read as attributes of the module object.
        stored: Names that were put into a pickle as attributes of the module object.
        is_loose: The module object was reached without a function that names its attributes.
        filenames: File names carried by the code that runs in it.
    """

    name: str
    variables: dict[str, Any]
    is_importable: bool
    used: set[str] = field(default_factory=set)
    wanted: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    is_loose: bool = False
    filenames: set[str] = field(default_factory=set)

    @property
    def is_package(self) -> bool:
        """Whether the module is a package."""
        return "__path__" in self.variables

    @property
    def live_name(self) -> str:
        """The name of the module in this process, which differs for modules of a loaded model."""
        return str(self.variables.get("__name__", ""))


class Spaces:
    """All spaces that were met, by the identity of their dictionary, and the values in them that travel apart."""

    def __init__(self) -> None:
        """Start with none."""
        self.global_values = GlobalValues()
        self._spaces: dict[int, Space] = {}

    def __iter__(self) -> Iterator[Space]:
        return iter(list(self._spaces.values()))

    def of(self, variables: dict[str, Any]) -> Space:
        """The space of a dictionary of globals."""
        known = self._spaces.get(id(variables))
        if known is None:
            name = str(variables.get("__name__") or "code")
            live = sys.modules.get(name)
            is_module = isinstance(live, types.ModuleType) and vars(live) is variables
            is_module = is_module or isinstance(variables.get("__loader__"), ShippedSources)
            known = Space(name=original_name(name), variables=variables, is_importable=is_module)
            self._spaces[id(variables)] = known
        return known

    def fresh(self) -> Spaces:
        """The same spaces with the same wishes, none of them stored yet."""
        for space in self:
            space.stored = set()
        return self


# Asked in each of the passes over a class definition.
@functools.lru_cache(maxsize=16384)
def code_names(code: types.CodeType) -> CodeNames:
    """The names in ``code`` and in all code nested in it."""
    variables: set[str] = set()
    any_names: set[str] = set()
    imports: set[tuple[int, str, tuple[str, ...]]] = set()
    pending = [code]
    while pending:
        current = pending.pop()
        any_names.update(current.co_names)
        any_names.update(item for item in current.co_consts if isinstance(item, str) and item.isidentifier())
        pending += [item for item in current.co_consts if isinstance(item, types.CodeType)]
        before: list[Any] = [0, None]
        for instruction in dis.get_instructions(current):
            if instruction.opname in _GLOBAL_OPERATIONS:
                variables.add(instruction.argval)
            elif instruction.opname == "IMPORT_NAME":
                imports.add((int(before[-2] or 0), instruction.argval, tuple(before[-1] or ())))
            before = [*before[-1:], instruction.argval]
        if current.co_names and "import_module" in current.co_names:
            imports.update(_named_modules(current.co_consts))
    return CodeNames(frozenset(variables), frozenset(any_names), frozenset(imports))


def _named_modules(constants: tuple[Any, ...]) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Constants that may be the argument of ``import_module``."""
    for constant in constants:
        name = constant.lstrip(".") if isinstance(constant, str) else ""
        if name and all(part.isidentifier() for part in name.split(".")):
            yield len(constant) - len(name), name, ()


def imported_modules(
    imports: frozenset[tuple[int, str, tuple[str, ...]]], variables: Mapping[str, Any]
) -> tuple[list[types.ModuleType], list[str]]:
    """Live modules of the user that code with these globals imports, and the names of those not imported so far."""
    found, absent = [], []
    for level, name, items in sorted(imports):
        absolute = _absolute(level, name, variables)
        if absolute is None or not _may_be_users(absolute, variables):
            continue
        parts = absolute.split(".")
        names = [".".join(parts[: count + 1]) for count in range(len(parts))]
        live = {each: live_module(each, variables) for each in names}
        absent += [each for each in names if live[each] is None][:1]
        live |= {f"{absolute}.{item}": live_module(f"{absolute}.{item}", variables) for item in items}
        found += [module for module in live.values() if module is not None]
    return found, absent


def _absolute(level: int, name: str, variables: Mapping[str, Any]) -> str | None:
    if not level:
        return name
    package = original_name(str(variables.get("__package__") or ""))
    try:
        return importlib.util.resolve_name("." * level + name, package)
    except ImportError:
        return None


def _may_be_users(name: str, variables: Mapping[str, Any]) -> bool:
    loader = variables.get("__loader__")
    if isinstance(loader, ShippedSources) and name.partition(".")[0] in {m.partition(".")[0] for m in loader.modules}:
        return True
    return origin_of(name) == USER


def live_module(name: str, variables: Mapping[str, Any]) -> types.ModuleType | None:
    """The module that ``name`` means to code with these globals, if it is imported.

    To code of an artifact it means a module of the artifact, which is loaded for that if it was not.
    """
    redirect = getattr(_importer(variables), "__self__", None)
    if isinstance(redirect, Redirect):
        return redirect.module(name)
    return sys.modules.get(name)


def _importer(variables: Mapping[str, Any]) -> Any:
    builtins = variables.get("__builtins__")
    return builtins.get("__import__") if isinstance(builtins, dict) else None
