"""The table in the package's docstring is true: every module is in it, and imports point downward only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow_keras_subclass

PACKAGE = "mlflow_keras_subclass"
ROOT = Path(mlflow_keras_subclass.__file__).parent


def table() -> list[str]:
    """The names in the first column of the table, from top to bottom."""
    text = (mlflow_keras_subclass.__doc__ or "").split("holds that::")[1]
    return re.findall(r"^    (\w+) ", text, flags=re.MULTILINE)


def unit(module: str) -> str:
    """What a module counts as: its top-level name, and below ``artifacts`` the part."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "artifacts" and len(parts) > 1 else parts[0]


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = [part for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__"]
        if parts:
            found[".".join(parts)] = path
    return found


def imports() -> Iterator[tuple[str, str, str]]:
    """Importing unit, imported unit, and where."""
    known = modules()
    for module, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                if name == PACKAGE or name.startswith(f"{PACKAGE}."):
                    target = name.removeprefix(PACKAGE).removeprefix(".")
                    target = target if target in known else target.rpartition(".")[0]
                    if unit(target) != unit(module):
                        yield unit(module), unit(target), f"{path.name}:{node.lineno}"


def test_every_module_is_in_the_table_and_nothing_else() -> None:
    assert sorted(table()) == sorted({unit(module).partition(".")[0] for module in modules()})


def test_imports_point_downward() -> None:
    rows = {name: number for number, name in enumerate(table())}
    found = list(imports())

    def row(name: str) -> int:
        return rows[name.partition(".")[0]]

    assert found
    wrong = [f"{where}: {source} imports {target}" for source, target, where in found if row(source) >= row(target)]
    assert wrong == []


def test_parts_of_the_artifact_do_not_import_each_other() -> None:
    both = [pair for pair in imports() if pair[0].startswith("artifacts.") and pair[1].startswith("artifacts.")]
    assert both == []


def test_importing_the_package_imports_no_keras() -> None:
    """Importing Keras fixes its backend before the manifest was read."""
    code = f"import sys, {PACKAGE}; print(sorted({{'keras', 'tensorflow', 'jax', 'torch'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_public_names_are_there() -> None:
    assert [name for name in mlflow_keras_subclass.__all__ if not hasattr(mlflow_keras_subclass, name)] == []
