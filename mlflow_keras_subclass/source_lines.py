"""Where in the user's source an attribute is set, for messages: ``net.py:12``.

Reads text only, runs nothing, and imports nothing of ours.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from pathlib import Path
from typing import Any

__all__ = ["line_of_attribute", "line_of_class"]


def line_of_attribute(owner: Any, name: str) -> str | None:
    """File and line where a method of the owner's class, or of a base of it, last assigns ``self.<name>``."""
    for kind in type(owner).__mro__[:-1]:
        for function in vars(kind).values():
            found = _assigned(function, name) if isinstance(function, types.FunctionType) else None
            if found is not None:
                return found
    return None


def line_of_class(kind: type) -> str | None:
    """File and line of the constructor of ``kind``, or of the class where it has none of its own."""
    constructor = vars(kind).get("__init__")
    if isinstance(constructor, types.FunctionType):
        return f"{Path(constructor.__code__.co_filename).name}:{constructor.__code__.co_firstlineno}"
    try:
        return f"{Path(inspect.getfile(kind)).name}:{inspect.getsourcelines(kind)[1]}"
    except (OSError, TypeError):
        return None


def _assigned(function: types.FunctionType, name: str) -> str | None:
    code = function.__code__
    if not code.co_argcount or name not in code.co_names:
        return None
    try:
        lines, first = inspect.getsourcelines(function)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError, ValueError):
        return None
    found = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and node.attr == name
        and isinstance(node.value, ast.Name)
        and node.value.id == code.co_varnames[0]
    ]
    return f"{Path(code.co_filename).name}:{first + max(found) - 1}" if found else None
