"""The text of classes that have no file: notebook cells, prompts, executed strings.

IPython keeps the cells as typed in ``In`` and the text it compiled in ``linecache``. Only the cells that the shipped
definitions need are taken: a notebook's history holds tokens and data that nobody meant to log.
"""

from __future__ import annotations

import ast
import linecache
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_keras_subclass.artifacts.class_definition.slicing import needed_statements

__all__ = ["cell_texts", "join_cells"]

Cell = tuple[str, str]  # Name of the file that compiled code carries (may be empty), text.


def cell_texts(variables: Mapping[str, Any], filenames: Sequence[str]) -> list[Cell]:
    """The executed cells in order of execution, in the form in which they were compiled."""
    known = {_normal(text): file for file, text in _cached(variables, filenames)}
    history = [_normal(text) for text in _history(variables)]
    if not history:
        return [(file, text) for text, file in known.items()]
    extra = [(file, text) for text, file in known.items() if text not in history and file in filenames]
    # A cell that was run again counts where it was run last.
    last = {text: position for position, text in enumerate(history)}
    return [(known.get(text, ""), text) for text in sorted(last, key=last.__getitem__)] + extra


def join_cells(cells: Sequence[Cell], wanted: set[str]) -> tuple[str, dict[str, int]]:
    """The cells that define ``wanted`` as one text, and how many lines precede each cell's text in it."""
    cells = [cell for cell in cells if _parses(cell[1])]
    text, starts = _concatenated(cells)
    lines = needed_statements(ast.parse(text), wanted)
    needed = [
        cell
        for cell, start in zip(cells, starts, strict=True)
        if any(start < first <= start + cell[1].count("\n") for first, _ in lines)
    ]
    text, starts = _concatenated(needed)
    return text, {file: start for (file, _), start in zip(needed, starts, strict=True) if file}


def _concatenated(cells: Sequence[Cell]) -> tuple[str, list[int]]:
    text, starts = "", []
    for _, cell in cells:
        starts.append(text.count("\n"))
        text += cell + "\n"
    return text, starts


def _cached(variables: Mapping[str, Any], filenames: Sequence[str]) -> list[tuple[str, str]]:
    """Texts in ``linecache`` by file name: those named, and in IPython all cells, in order of first execution."""
    names = [file for file in linecache.cache if file in filenames or ("In" in variables and "ipy" in file)]
    return [(file, "".join(linecache.getlines(file))) for file in dict.fromkeys([*names, *filenames])]


def _history(variables: Mapping[str, Any]) -> list[str]:
    cells = variables.get("In")
    manager = getattr(sys.modules.get("IPython.core.inputtransformer2"), "TransformerManager", None)
    if not isinstance(cells, list) or manager is None:
        return []
    transform = manager().transform_cell
    return [transform(cell) for cell in cells if isinstance(cell, str) and cell.strip()]


def _normal(text: str) -> str:
    return text.rstrip("\n") + "\n" if text.strip() else ""


def _parses(text: str) -> bool:
    try:
        return bool(ast.parse(text).body)
    except (SyntaxError, ValueError):
        return False
