"""The text of the user's modules: where it is found when logging, and how it is served after loading.

Imports the sibling modules for records, names and notebook cells only. Never executes what it reads.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import io
import linecache
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_keras_subclass.artifacts.class_definition.notebook import cell_texts, join_cells
from mlflow_keras_subclass.artifacts.class_definition.origins import PRIVATE_DIR, find_spec, original_name
from mlflow_keras_subclass.artifacts.class_definition.records import SourceModule
from mlflow_keras_subclass.manifest import SOURCE_DIR

__all__ = [
    "ShippedSources",
    "UserSource",
    "content_id",
    "find_source",
    "live_variables",
    "parsed",
    "private_file",
    "source_lines",
]


class ShippedSources:
    """The stored modules of one artifact; a PEP 302 loader as far as ``inspect`` and ``linecache`` need one."""

    def __init__(self, identity: str, modules: Mapping[str, tuple[bytes, bool]]) -> None:
        """Serve ``modules`` (name to text and whether it is a package) under the private folder of ``identity``."""
        self.identity = identity
        self.modules = dict(modules)

    def file_of(self, name: str) -> str:
        """The file name that compiled code of the module ``name`` carries."""
        return private_file(self.identity, name)

    def get_data(self, path: str) -> bytes:
        """The text of the module with the private file name ``path``, byte for byte."""
        for name, (data, _) in self.modules.items():
            if self.file_of(name) == path:
                return data
        raise OSError(f"{path} is not part of the loaded model")

    def get_source(self, fullname: str) -> str | None:
        """The text of a module by its private or original name."""
        entry = self.modules.get(original_name(fullname))
        return importlib.util.decode_source(entry[0]) if entry else None

    def fill_linecache(self, *, leave_out: Iterable[str] = ()) -> None:
        """Make the texts known to ``linecache``: TensorFlow's autograph executes source text, not the bytecode."""
        for name in self.modules.keys() - set(leave_out):
            lines = source_lines(self.modules[name][0])
            if lines is not None:
                file = self.file_of(name)
                # No modification time: linecache.checkcache then never looks for a file of that name.
                linecache.cache[file] = (sum(map(len, lines)), None, lines, file)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSource:
    """One module of the user as found: its text, the file it is from and the code that was compiled from it.

    ``line_offsets`` maps the file name in compiled code to the number of lines that precede its text in ``data``;
    only notebook cells have other values than 0. ``shipped`` is set where the module came from an artifact.
    """

    module: SourceModule
    data: bytes
    file: Path | None
    line_offsets: Mapping[str, int]
    shipped: ShippedSources | None = None


def private_file(identity: str, name: str) -> str:
    """The file name of code of the module ``name`` in the artifact called ``identity``."""
    return f"{PRIVATE_DIR}{identity}/{name}.py"


def source_lines(data: bytes) -> list[str] | None:
    """The lines of Python source bytes with their ends, or ``None`` if they cannot be decoded."""
    try:
        return io.StringIO(importlib.util.decode_source(data)).readlines()
    except (SyntaxError, UnicodeDecodeError):
        return None


def parsed(data: bytes) -> ast.Module | None:
    """The syntax tree of Python source, or ``None`` if this Python does not take it."""
    try:
        return ast.parse(data)
    except (SyntaxError, ValueError):
        return None


def content_id(modules: Iterable[tuple[str, bytes]], main_lines: Iterable[tuple[int, int]]) -> str:
    """Twelve hexadecimal digits that are the same exactly for the same modules with the same text."""
    digest = hashlib.sha256()
    for name, data in sorted(modules):
        digest.update(f"{name}\0{hashlib.sha256(data).hexdigest()}\n".encode())
    digest.update(repr(sorted(main_lines)).encode())
    return digest.hexdigest()[:12]


def find_source(
    name: str,
    variables: Mapping[str, Any] | None,
    *,
    filenames: Iterable[str] = (),
    wanted: Iterable[str] = (),
) -> UserSource | None:
    """The source of the module ``name``, or ``None`` if it has none (a namespace package, a prompt, ``.pyc`` only).

    Args:
        name: Dotted name of a module that is the user's.
        variables: Its globals, or ``None`` if it is not imported.
        filenames: File names carried by code that was compiled in it.
        wanted: For a notebook, the variables whose definitions must be part of the text.
    """
    if variables is None:
        return _from_spec(name)
    file, loader = variables.get("__file__"), variables.get("__loader__")
    if isinstance(file, str) and "In" not in variables:
        return _from_file(name, variables, file, loader)
    return _from_cells(name, variables, list(filenames), set(wanted))


def _from_spec(name: str) -> UserSource | None:
    spec = find_spec(name)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    data = _data(spec.origin, spec.loader)
    if data is None:
        return None
    return UserSource(
        module=_module(name, is_package=spec.submodule_search_locations is not None),
        data=data,
        file=_real_file(spec.origin),
        line_offsets={spec.origin: 0},
    )


def _from_file(name: str, variables: Mapping[str, Any], file: str, loader: Any) -> UserSource | None:
    data = _data(file, loader) if file.endswith(".py") or name == "__main__" else None
    if data is None:
        return None
    return UserSource(
        module=_module(name, is_package="__path__" in variables, real_name=_real_name(name, variables)),
        data=data,
        file=_real_file(file),
        line_offsets={file: 0},
        shipped=loader if isinstance(loader, ShippedSources) else None,
    )


def _from_cells(name: str, variables: Mapping[str, Any], filenames: list[str], wanted: set[str]) -> UserSource | None:
    cells = cell_texts(variables, filenames)
    text, offsets = join_cells(cells, wanted)
    if not text:
        return None
    return UserSource(module=_module(name, is_package=False), data=text.encode(), file=None, line_offsets=offsets)


def _module(name: str, *, is_package: bool, real_name: str | None = None) -> SourceModule:
    shown = original_name(name)
    place = (real_name or shown).replace(".", "/")
    suffix = "/__init__.py" if is_package else ".py"
    return SourceModule(name=shown, path=f"{SOURCE_DIR}/{place}{suffix}", is_package=is_package)


def _real_name(name: str, variables: Mapping[str, Any]) -> str | None:
    """The name of a module run with ``python -m``, which itself only knows that it is ``__main__``."""
    spec = variables.get("__spec__")
    if name != "__main__" or not isinstance(spec, importlib.machinery.ModuleSpec):
        return None
    return spec.name if spec.origin == variables.get("__file__") else None


def _data(file: str, loader: Any) -> bytes | None:
    get_data = getattr(loader, "get_data", None)
    try:
        return bytes(get_data(file)) if get_data is not None else Path(file).read_bytes()
    except OSError:
        return None


def _real_file(file: str) -> Path | None:
    path = Path(file)
    return path.resolve() if path.is_file() else None


def live_variables(name: str) -> dict[str, Any] | None:
    """The globals of an imported module, or ``None``."""
    module = sys.modules.get(name)
    return vars(module) if isinstance(module, types.ModuleType) else None
