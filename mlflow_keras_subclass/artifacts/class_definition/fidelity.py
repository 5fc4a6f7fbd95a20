"""Does the stored text still say what the live code does? Compares without executing anything.

A file edited since it was imported, a method replaced at run time and a constant changed at run time make the source
route run something else than the model that was logged. Imports nothing that knows Keras.
"""

from __future__ import annotations
import __future__

import ast
import functools
import inspect
import types
from collections.abc import Iterable, Mapping
from typing import Any

from mlflow_keras_subclass.artifacts.class_definition.origins import original_name
from mlflow_keras_subclass.artifacts.class_definition.slicing import bound_names, needed_statements, sliced
from mlflow_keras_subclass.artifacts.class_definition.sources import UserSource, parsed, source_lines
from mlflow_keras_subclass.artifacts.class_definition.spaces import Space

__all__ = ["changed_classes", "changed_values", "main_lines", "stale_functions", "unbound_names"]

_Compiled = dict[tuple[str, int], list[Any]]


def stale_functions(functions: Iterable[types.FunctionType], sources: Mapping[str, UserSource]) -> dict[str, str]:
    """Modules whose text differs from the code that runs, with the name of one function that differs."""
    files = {file: (name, o) for name, source in sources.items() for file, o in source.line_offsets.items()}
    stale: dict[str, str] = {}
    for function in functions:
        code = function.__code__
        if code.co_filename not in files:
            continue
        name, offset = files[code.co_filename]
        source = sources[name]
        compiled = _compiled(source.data, by_statement=source.file is None)
        expected = compiled.get((code.co_name, code.co_firstlineno + offset), [])
        # Dataclasses and named tuples make functions from strings, under the file name "<string>".
        if _print(code, offset) not in expected and not code.co_filename.startswith("<string"):
            stale.setdefault(name, function.__qualname__)
    return stale


def changed_classes(classes: Iterable[type], sources: Mapping[str, UserSource]) -> dict[str, str]:
    """Modules with a class one of whose undecorated methods is not the one in the text, with the method's name."""
    changed: dict[str, str] = {}
    for cls in classes:
        name = original_name(cls.__module__)
        methods = _methods(sources[name].data) if name in sources else {}
        for method in methods.get(cls.__qualname__, ()):
            live = inspect.unwrap(vars(cls).get(method, _absent))
            code = getattr(live, "__code__", None)
            if code is None or code.co_name != method:
                changed.setdefault(name, f"{cls.__qualname__}.{method}")
    return changed


def changed_values(spaces: Iterable[Space], sources: Mapping[str, UserSource]) -> dict[str, str]:
    """Modules with a constant in use that is not what the text assigns, with its name."""
    changed: dict[str, str] = {}
    for space in spaces:
        source = sources.get(space.name)
        if source is None:
            continue
        for name, value in _literals(source.data).items():
            if name in space.used | space.stored and not _same(space.variables.get(name, _absent), value):
                changed.setdefault(space.name, name)
    return changed


def unbound_names(space: Space, source: UserSource, lines: Iterable[tuple[int, int]]) -> list[str]:
    """Variables of ``__main__`` in use that the statements at ``lines`` do not bind."""
    tree = parsed(source.data)
    kept = ast.parse(sliced("".join(source_lines(source.data) or []), lines)) if tree else None
    if kept is None:
        return []
    bound = bound_names(kept)
    return [] if "*" in bound else sorted((space.used & space.variables.keys()) - bound)


def main_lines(source: UserSource, wanted: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """The lines of ``__main__`` that the source route runs."""
    tree = parsed(source.data)
    return tuple(needed_statements(tree, wanted)) if tree is not None else ()


def _absent() -> None:
    """Stands for a method that is not there."""


# A model is logged again and again with the same source, which may be hundreds of modules: what is read from a text is
# kept, and the tree itself, which is fifty times as large, is not.
_kept = functools.lru_cache(maxsize=8192)


@_kept
def _compiled(data: bytes, *, by_statement: bool) -> _Compiled:
    found: _Compiled = {}
    tree = parsed(data)
    if tree is None:
        return found
    units: list[Any] = [data]
    if by_statement:
        # IPython compiles statement by statement, and CPython 3.12 compiles calls of what the unit imports differently.
        units += [ast.Module([statement], []) for statement in tree.body]
    try:
        pending = [compile(unit, "source", "exec", _future_flags(tree), dont_inherit=True) for unit in units]
    except (SyntaxError, ValueError):
        return found
    while pending:
        code = pending.pop()
        found.setdefault((code.co_name, code.co_firstlineno), []).append(_print(code, 0))
        pending += [item for item in code.co_consts if isinstance(item, types.CodeType)]
    return found


def _future_flags(tree: ast.Module) -> int:
    names = [
        alias.name
        for statement in tree.body
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
        for alias in statement.names
    ]
    return functools.reduce(int.__or__, (getattr(__future__, name).compiler_flag for name in names), 0)


def _print(code: types.CodeType, offset: int) -> tuple[Any, ...]:
    """What makes two pieces of code the same, file names left out."""
    constants = tuple(
        _print(item, offset) if isinstance(item, types.CodeType) else (type(item).__name__, _text(item))
        for item in code.co_consts
    )
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return code.co_name, code.co_firstlineno + offset, code.co_code, constants, names


def _text(constant: Any) -> str:
    return repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)


@_kept
def _methods(data: bytes) -> dict[str, list[str]]:
    """The names of the undecorated methods of each class that is not made in a function; the last class of a name."""
    found: dict[str, list[str]] = {}
    pending: list[tuple[str, ast.AST]] = [("", parsed(data) or ast.Module([], []))]
    while pending:
        prefix, owner = pending.pop()
        body = getattr(owner, "body", [])
        for cls in {item.name: item for item in body if isinstance(item, ast.ClassDef)}.values():
            found[prefix + cls.name] = _undecorated(cls)
            pending.append((f"{prefix}{cls.name}.", cls))
    return found


def _undecorated(cls: ast.ClassDef) -> list[str]:
    last = {item.name: item for item in cls.body if isinstance(item, ast.FunctionDef)}
    names = [name for name, method in last.items() if not method.decorator_list]
    # In the class, a private name has the class' name in front.
    return [name for name in names if not name.startswith("__") or name.endswith("__")]


@_kept
def _literals(data: bytes) -> dict[str, Any]:
    """Variables that the module assigns once, at top level, from a literal, and does not change there."""
    tree = parsed(data)
    values: dict[str, Any] = {}
    times: dict[str, int] = {}
    declared = [node for node in ast.walk(tree or ast.Module([], [])) if isinstance(node, ast.Global)]
    lazy = {name for node in declared for name in node.names}
    for statement in tree.body if tree is not None else []:
        target, value = _assignment(statement)
        if target in lazy and isinstance(value, ast.Constant) and value.value is None:
            continue  # Filled by a function on first use.
        touched = bound_names(ast.Module([statement], []))
        if target is None and not isinstance(statement, ast.FunctionDef | ast.ClassDef):
            touched |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        for name in touched:
            times[name] = times.get(name, 0) + 1
        if target is not None and value is not None:
            try:
                values[target] = ast.literal_eval(value)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                continue
    return {name: value for name, value in values.items() if times[name] == 1}


def _same(live: Any, literal: Any) -> bool:
    return type(live) is type(literal) and (repr(live) == repr(literal) or bool(live == literal))


def _assignment(statement: ast.stmt) -> tuple[str | None, ast.expr | None]:
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return statement.target.id, statement.value
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id, statement.value
    return None, None
