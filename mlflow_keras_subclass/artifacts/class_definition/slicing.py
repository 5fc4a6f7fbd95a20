"""Which top-level statements of a script the definitions need, so that loading them does not run the training.

Works on the syntax tree alone. Imports nothing of ours.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Iterable, Iterator

__all__ = ["Lines", "bound_names", "needed_statements", "sliced"]

Lines = list[tuple[int, int]]

_MUTATORS = frozenset({"append", "extend", "add", "update", "insert", "setdefault", "register"})
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def needed_statements(tree: ast.Module, targets: Iterable[str]) -> Lines:
    """First and last lines of the top-level statements that bind ``targets``, transitively, in order."""
    statements = [statement for statement in tree.body if not _is_main_guard(statement)]
    bound = {id(statement): _bound(statement) for statement in statements}
    last = {statement.name: id(statement) for statement in statements if isinstance(statement, _DEFINITIONS)}
    needed, kept = set(targets), set[int]()
    while True:
        new = [s for s in statements if id(s) not in kept and _is_needed(s, needed, bound[id(s)], last)]
        if not new:
            break
        for statement in new:
            kept.add(id(statement))
            needed |= _used(statement)
    chosen = [s for s in statements if id(s) in kept or _is_future_import(s)]
    return [_lines(statement) for statement in chosen]


def bound_names(tree: ast.Module) -> set[str]:
    """The names that the top level of ``tree`` binds; ``*`` among them for a star import."""
    return set().union(*(_bound(statement) for statement in tree.body))


def sliced(text: str, keep: Iterable[tuple[int, int]]) -> str:
    """``text`` with every line outside ``keep`` blank, so that line numbers stay right."""
    lines = io.StringIO(text).readlines()  # Unlike splitlines(), breaks lines only where Python does.
    kept = {number for first, last in keep for number in range(first, last + 1)}
    return "".join(line if number in kept else "\n" for number, line in enumerate(lines, start=1))


def _is_needed(statement: ast.stmt, needed: set[str], bound: set[str], last: dict[str, int]) -> bool:
    if isinstance(statement, _DEFINITIONS):
        # An earlier version of a class that was edited in a notebook is not run again.
        current = statement.name in needed and last[statement.name] == id(statement)
        return current or any(
            _registers(decorator) and _root(decorator) in needed for decorator in statement.decorator_list
        )
    if bound & needed or "*" in bound:
        return True
    if isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return any(_root(target) in needed for target in targets if isinstance(target, ast.Attribute | ast.Subscript))
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        function = statement.value.func
        return isinstance(function, ast.Attribute) and function.attr in _MUTATORS and _root(function) in needed
    return False


def _registers(decorator: ast.expr) -> bool:
    """``@f.register`` and ``@f.register(type)``: the definition below changes ``f``."""
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(function, ast.Attribute) and function.attr in _MUTATORS


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def _bound(statement: ast.stmt) -> set[str]:
    names = set()
    for node in _same_scope(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, _DEFINITIONS):
            names.add(node.name)
    if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
        names.add("*")
    return names


def _used(statement: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _same_scope(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if isinstance(node, _SCOPES):
        return
    for child in ast.iter_child_nodes(node):
        yield from _same_scope(child)


def _is_main_guard(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and any(
        isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(statement.test)
    )


def _is_future_import(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def _lines(statement: ast.stmt) -> tuple[int, int]:
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(decorator.lineno for decorator in decorators)])
    return first, statement.end_lineno or statement.lineno
