"""Which modules of the user a set of definitions needs, read from the syntax of every scope of every module.

Function-level imports count, parents of packages count, and nothing is imported to find out. Imports the sibling
modules that find names and texts.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlflow_keras_subclass.artifacts.class_definition.origins import (
    INSTALLED,
    NATIVE,
    STDLIB,
    USER,
    origin_of,
    original_name,
    parents,
    private_prefix,
)
from mlflow_keras_subclass.artifacts.class_definition.records import SourceModule
from mlflow_keras_subclass.artifacts.class_definition.sources import (
    ShippedSources,
    UserSource,
    find_source,
    live_variables,
    parsed,
)
from mlflow_keras_subclass.manifest import SOURCE_DIR

__all__ = ["Closure", "Root", "collect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A module to start from: its globals if it is live, the files its code came from, the variables in use.

    ``shipped`` is set where the module is that of a loaded model.
    """

    name: str
    variables: Mapping[str, Any] | None = None
    filenames: frozenset[str] = frozenset()
    wanted: frozenset[str] = frozenset()
    shipped: ShippedSources | None = None


@dataclass(slots=True)
class Closure:
    """The modules found. ``missing`` are modules of the user that have no text."""

    sources: dict[str, UserSource] = field(default_factory=dict)
    third_party: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    native: set[str] = field(default_factory=set)
    notes: set[str] = field(default_factory=set)

    def file_map(self) -> dict[str, tuple[str, int]]:
        """File name in live compiled code to module name and the number of lines to add."""
        return {
            file: (name, offset)
            for name, source in self.sources.items()
            for file, offset in source.line_offsets.items()
        }


def collect(roots: Iterable[Root]) -> Closure:
    """All modules that ``roots`` need, themselves included, as far as imports can be read from text."""
    closure = Closure()
    pending: deque[tuple[Root, ShippedSources | None]] = deque((root, root.shipped) for root in roots)
    visited: set[str] = set()
    while pending:
        root, shipped = pending.popleft()
        if original_name(root.name) in visited:
            continue
        visited.add(original_name(root.name))
        source = _source(root, shipped)
        if source is None:
            if root.variables is not None and "__path__" not in root.variables:
                closure.missing.add(original_name(root.name))
            continue
        _add(closure, source)
        prefix = private_prefix(root.name)
        for name in _needs(closure, source):
            pending.append((_root_of(name, prefix), source.shipped))
    return closure


def _add(closure: Closure, source: UserSource) -> None:
    closure.sources[source.module.name] = source
    real = source.module.path.removeprefix(f"{SOURCE_DIR}/").removesuffix(".py").replace("/", ".")
    if source.module.name == "__main__" and real != "__main__":
        module = SourceModule(name=real, path=source.module.path, is_package=False)
        closure.sources.setdefault(real, replace(source, module=module, line_offsets={}))


def _root_of(name: str, prefix: str) -> Root:
    live = live_variables(prefix + name) if prefix else None
    if live is not None:
        return Root(name=prefix + name, variables=live)
    return Root(name=name, variables=live_variables(name))


def _source(root: Root, shipped: ShippedSources | None) -> UserSource | None:
    if shipped is not None and original_name(root.name) in shipped.modules:
        name = original_name(root.name)
        return find_source(name, {"__file__": shipped.file_of(name), "__loader__": shipped} | _path(shipped, name))
    return find_source(root.name, root.variables, filenames=root.filenames, wanted=root.wanted)


def _path(shipped: ShippedSources, name: str) -> dict[str, Any]:
    return {"__path__": []} if shipped.modules[name][1] else {}


def _needs(closure: Closure, source: UserSource) -> list[str]:
    """The user's modules that ``source`` needs; others and what cannot be read from text are noted on the way."""
    module = source.module
    real = module.path.removeprefix(f"{SOURCE_DIR}/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    package = real if module.is_package else real.rpartition(".")[0]
    imported, notes = _read(source.data, module.name, package)
    closure.notes |= notes
    needed = [*parents(real)]
    for candidate in imported:
        origin = origin_of(candidate)
        if source.shipped is not None:
            # A live module of the user with that name is another one.
            is_stored = candidate in source.shipped.modules
            origin = USER if is_stored else INSTALLED if origin == INSTALLED else STDLIB
        if origin == USER:
            needed += [candidate, *parents(candidate)]
        elif origin == INSTALLED:
            closure.third_party.add(candidate.partition(".")[0])
        elif origin == NATIVE:
            closure.native.add(candidate)
    return needed


# A model is logged again and again with the same source, which may be hundreds of modules.
@functools.lru_cache(maxsize=8192)
def _read(data: bytes, name: str, package: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """The absolute names that the text imports, and what cannot be read from it."""
    tree = parsed(data)
    if tree is None:
        return (), frozenset({f"{name}: the source does not parse, so its imports are not known."})
    return tuple(dict.fromkeys(_imported(tree, package))), frozenset(_warnings(tree, name))


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Absolute names that any scope imports; of ``from a import b`` both ``a`` and ``a.b``, which may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__") and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value.strip("."):
                yield from filter(None, [_absolute(first.value, package)])


def _absolute(name: str, package: str) -> str | None:
    if not name.startswith("."):
        return name
    try:
        return importlib.util.resolve_name(name, package)
    except ImportError:
        return None


def _called(node: ast.Call) -> str | None:
    function = node.func
    if isinstance(function, ast.Name):
        return function.id
    return function.attr if isinstance(function, ast.Attribute) else None


def _warnings(tree: ast.Module, name: str) -> set[str]:
    notes = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_dynamic(node):
            notes.add(
                f"{name}:{node.lineno} calls {_called(node)}() with a value that is known only at run time; modules "
                f"that it imports must be named in extra_modules=."
            )
        elif isinstance(node, ast.Name) and node.id == "__file__":
            notes.add(f"{name}:{node.lineno} uses __file__; data files beside the source are not stored.")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("importlib.resources", "pkgutil.get_data"):
            notes.add(f"{name}:{node.lineno} uses {ast.unparse(node)}; data files in packages are not stored.")
    return notes


def _is_dynamic(node: ast.Call) -> bool:
    name = _called(node)
    if name == "import_module":
        return not (node.args and isinstance(node.args[0], ast.Constant))
    is_builtin = isinstance(node.func, ast.Name) and name in ("exec", "eval", "__import__")
    return is_builtin and not (node.args and isinstance(node.args[0], ast.Constant) and name == "__import__")
