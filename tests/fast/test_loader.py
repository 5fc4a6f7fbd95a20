"""The bundled loader: which modules, under which name, and what is changed in them."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from mlflow_keras_subclass.artifacts import environment, loader
from mlflow_keras_subclass.artifacts.environment import metadata
from mlflow_keras_subclass.errors import KerasSubclassError

PACKAGE = "mlflow_keras_subclass"
FOLDER = Path(loader.__file__).parent.parent
SOURCES = sorted(FOLDER.rglob("*.py"))


def imports(tree: ast.AST, package: str) -> list[str]:
    """The parser's word for what ``loader.imported`` finds."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == package:
            found += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_only_import_statements_are_renamed(path: Path) -> None:
    """For every module of the package, the parser finds the same imports, and nothing else differs."""
    source = path.read_bytes()
    tree, renamed = ast.parse(source), loader.renamed(source, "_mks_rt_00000000")
    names = imports(tree, PACKAGE)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE:
            node.module = str(node.module).replace(PACKAGE, "_mks_rt_00000000", 1)

    assert set(loader.imported(source)) >= set(names)
    assert ast.dump(ast.parse(renamed)) == ast.dump(tree)
    assert len(renamed) - len(source) == renamed.count(b"_mks_rt_00000000") * (len("_mks_rt_00000000") - len(PACKAGE))


def test_a_plain_import_cannot_be_renamed() -> None:
    with pytest.raises(ValueError, match=r"got 'import mlflow_keras_subclass\.specs as specs'"):
        loader.renamed(b"import os\nimport mlflow_keras_subclass.specs as specs\n", "_mks_rt_00000000")


def test_bundle_holds_what_loading_imports_and_nothing_of_saving() -> None:
    files = loader.bundle().files

    needed = {"__init__.py", "pyfunc.py", "model_dir/rebuilding.py", "keras_api/inference.py", "values/__init__.py"}
    assert needed <= files.keys()
    assert not {"flavor.py", "staging.py", "proof.py", "proof_worker.py", "artifacts/loader.py"} & files.keys()
    for path, data in files.items():
        assert not imports(ast.parse(data), PACKAGE), path


def test_name_is_that_of_the_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release has another name."""
    name = loader.bundle().name
    monkeypatch.setattr(loader, "_INIT", loader._INIT + "\n")

    assert re.fullmatch(r"_mks_rt_[0-9a-f]{8}", name)
    assert loader.bundle.__wrapped__().name != name


def test_requirements_of_a_bundled_model_bring_all_that_its_loader_imports() -> None:
    """The names that the bundle imports come from the requirements or from what these require in turn."""
    found = {
        alias.partition(".")[0]
        for data in loader.bundle().files.values()
        for node in ast.parse(data).body
        for alias in ([item.name for item in node.names] if isinstance(node, ast.Import) else [_module(node)])
    }
    third_party = found - set(sys.stdlib_module_names) - {"", loader.bundle().name}
    providers = metadata.packages_distributions()
    required = _closure([re.split(r"[=<>~!]", item)[0] for item in environment.requirements(backend="torch")])

    assert {"numpy", "wrapt", "mlflow"} <= third_party
    for name in third_party:
        assert {_normalised(item) for item in providers[name]} & required, name


def _module(node: ast.stmt) -> str:
    return (node.module or "") if isinstance(node, ast.ImportFrom) else ""


def _closure(names: list[str]) -> set[str]:
    found: set[str] = set()
    while names:
        name = _normalised(names.pop())
        if name in found:
            continue
        found.add(name)
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        names += [re.split(r"[^\w.-]", item)[0] for item in required if "extra ==" not in item]
    return found


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_requirements_name_this_package_only_for_a_model_without_a_bundle() -> None:
    """Also when the user's module imports it, as a training script does."""

    def names(bundled: bool) -> set[str]:
        found = environment.requirements(backend="tensorflow", imports=["mlflow_keras_subclass"], bundled=bundled)
        return {item.partition("==")[0] for item in found}

    assert names(False) - names(True) == {"mlflow-keras-subclass"}
    assert names(True) - names(False) == {"wrapt"}


# --- who may do without


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, direct_url: str | None) -> None:
    """Put the metadata of an installation of this package before those of the real one."""
    metadata = folder / "mlflow_keras_subclass-9.9.9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mlflow-keras-subclass\nVersion: 9.9.9\n")
    if direct_url is not None:
        (metadata / "direct_url.json").write_text(direct_url)
    monkeypatch.syspath_prepend(str(folder))


def test_no_bundle_where_the_package_came_from_an_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, None)

    assert loader.choose(False) == PACKAGE
    assert loader.is_bundle(loader.choose(None))
    assert loader.is_bundle(loader.choose(True))
    loader.write(tmp_path / "model", PACKAGE)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("direct_url", ['{"dir_info": {"editable": true}}', '{"vcs_info": {}}'])
def test_no_bundle_is_refused_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, direct_url: str) -> None:
    install(monkeypatch, tmp_path, direct_url)

    assert loader.is_bundle(loader.choose(None))
    with pytest.raises(KerasSubclassError, match="was not installed from a package index here"):
        loader.choose(False)
    with pytest.raises(KerasSubclassError, match="bundle: expected True, False or None, got 'no'"):
        loader.choose("no")  # type: ignore[arg-type]
