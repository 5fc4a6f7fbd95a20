"""Where stored source text asks a backend directly, and not through Keras: what ties a class to that backend.

Reads text and tracebacks only; nothing is run or imported.
"""

from __future__ import annotations

import ast
import linecache
import traceback
from collections.abc import Iterable, Iterator

from mlflow_keras_subclass.artifacts.class_definition.origins import PRIVATE_DIR
from mlflow_keras_subclass.artifacts.class_definition.records import DefinitionRecord
from mlflow_keras_subclass.artifacts.class_definition.slicing import needed_statements
from mlflow_keras_subclass.artifacts.class_definition.sources import parsed
from mlflow_keras_subclass.files import ArtifactReader

__all__ = ["last_line", "lines_asking"]

# A backend of Keras, and the packages that work on its tensors only.
_PACKAGES = {
    "tensorflow": ("tensorflow", "tensorflow_probability", "tensorflow_addons"),
    "jax": ("jax", "flax", "optax"),
    "torch": ("torch", "torchvision"),
}


def lines_asking(backend: str, record: DefinitionRecord, reader: ArtifactReader) -> list[str]:
    """``file:line: text`` of each line that uses ``backend`` by name, of the definitions and what they need."""
    found = []
    tops: dict[str, set[str]] = {}
    for name, qualname in record.definitions.values():
        tops.setdefault(name, set()).add(qualname.partition(".")[0])
    for module in record.modules:
        data = reader.read_bytes(module.path)
        tree = parsed(data)
        if tree is None:
            continue
        text = data.decode("utf-8", "replace").splitlines()
        kept = needed_statements(tree, tops[module.name]) if module.name in tops else [(1, len(text))]
        lines = {item for item in _uses(tree, _names(tree, _PACKAGES[backend])) if _is_in(item, kept)}
        for number in sorted(lines):
            found.append(f"{module.path}:{number}: {text[number - 1].strip()}")
    return found


def _is_in(line: int, kept: Iterable[tuple[int, int]]) -> bool:
    return any(first <= line <= last for first, last in kept)


def _names(tree: ast.Module, packages: tuple[str, ...]) -> set[str]:
    """What the module calls the packages, their submodules and what it takes from them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            items = [item for item in node.names if item.name.partition(".")[0] in packages]
            names |= {item.asname or item.name.partition(".")[0] for item in items}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in packages:
            # tensorflow.keras is Keras, whatever the backend.
            names |= {item.asname or item.name for item in node.names if item.name != "keras"}
    return names


def _uses(tree: ast.Module, names: set[str]) -> Iterator[int]:
    nodes = list(ast.walk(tree))
    of_keras = {id(node.value) for node in nodes if isinstance(node, ast.Attribute) and node.attr == "keras"}
    for node in nodes:
        if not isinstance(node, ast.Name) or id(node) in of_keras:
            continue
        if node.id in names and isinstance(node.ctx, ast.Load):
            yield node.lineno


def last_line(error: BaseException) -> str | None:
    """``file:line: text`` of the innermost line of stored source that ``error`` passed through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(PRIVATE_DIR):
            name = frame.filename.rpartition("/")[2]
            return f"{name}:{frame.lineno}: {linecache.getline(frame.filename, frame.lineno or 0).strip()}"
    return None
