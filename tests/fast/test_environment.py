"""Requirements pinned from installed versions, and MLflow's files for them, in every form that its flavors take."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.exceptions import MlflowException

from mlflow_keras_subclass.artifacts import environment

DEFAULTS = ["mlflow==3.0", "keras==3.12"]


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def pip_part(root: Path) -> list[str]:
    conda = yaml.safe_load((root / environment.CONDA_FILE).read_text(encoding="utf-8"))
    found: list[str] = next(item["pip"] for item in conda["dependencies"] if isinstance(item, dict))
    return found


def test_defaults_are_pinned_to_what_is_installed() -> None:
    found = environment.requirements(backend="tensorflow")

    for name in ("mlflow", "keras", "cloudpickle", "numpy", "tensorflow"):
        assert f"{name}=={importlib.metadata.version(name)}" in found
    assert found == sorted(found, key=lambda item: item.partition("==")[0])


def test_imports_become_their_distributions() -> None:
    """A module is mapped to what provides it, once, also where the names differ."""
    found = environment.requirements(backend="tensorflow", imports=("sklearn", "numpy", "yaml"))

    assert f"scikit-learn=={importlib.metadata.version('scikit-learn')}" in found
    assert f"PyYAML=={importlib.metadata.version('pyyaml')}" in found
    assert len([item for item in found if item.startswith("numpy")]) == 1


def test_an_import_that_nothing_provides_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = environment.requirements(backend="tensorflow", imports=("no_such_module",))

    assert not any("no_such" in item for item in found)
    assert "'no_such_module', which no installed distribution provides" in caplog.text


def test_files_agree(tmp_path: Path) -> None:
    """requirements.txt is the pip part of conda.yaml; python_env.yaml points at it."""
    environment.write(tmp_path, defaults=DEFAULTS)

    assert lines(tmp_path / "requirements.txt") == DEFAULTS == pip_part(tmp_path)
    python = yaml.safe_load((tmp_path / "python_env.yaml").read_text(encoding="utf-8"))
    assert python["dependencies"] == ["-r requirements.txt"]
    assert not (tmp_path / "constraints.txt").exists()


@pytest.mark.parametrize("argument", ["pip_requirements", "extra_pip_requirements"])
@pytest.mark.parametrize("form", ["list", "file", "-r", "-c"])
def test_requirements_in_every_form(tmp_path: Path, argument: str, form: str) -> None:
    """pip_requirements replaces the defaults and extra_pip_requirements adds to them; files and constraints work."""
    given = tmp_path / "given.txt"
    given.write_text("coloredlogs\n", encoding="utf-8")
    values: dict[str, Any] = {
        "list": ["coloredlogs"],
        "file": str(given),
        "-r": [f"-r {given}"],
        "-c": ["coloredlogs", f"-c {given}"],
    }
    root = tmp_path / "model"
    root.mkdir()
    environment.write(root, defaults=DEFAULTS, **{argument: values[form]})

    found = lines(root / "requirements.txt")
    assert "coloredlogs" in found
    assert ("keras==3.12" in found) == (argument == "extra_pip_requirements")
    assert any(item.startswith("mlflow") for item in found)
    assert ("-c constraints.txt" in found) == (form == "-c")
    assert (root / "constraints.txt").exists() == (form == "-c")


@pytest.mark.parametrize("as_file", [True, False])
def test_conda_env_as_file_and_dict(tmp_path: Path, as_file: bool) -> None:
    given = {"name": "mine", "channels": ["x"], "dependencies": ["python=3.11", {"pip": ["mlflow", "coloredlogs"]}]}
    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    environment.write(tmp_path, defaults=DEFAULTS, conda_env=str(path) if as_file else given)

    assert yaml.safe_load((tmp_path / "conda.yaml").read_text(encoding="utf-8")) == given
    assert lines(tmp_path / "requirements.txt") == ["mlflow", "coloredlogs"]


@pytest.mark.parametrize("other", ["pip_requirements", "extra_pip_requirements"])
def test_conda_env_excludes_requirements(tmp_path: Path, other: str) -> None:
    with pytest.raises(ValueError, match="Only one of `conda_env`"):
        environment.write(tmp_path, defaults=DEFAULTS, conda_env={}, **{other: ["x"]})


def test_a_missing_requirements_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises((OSError, MlflowException)):
        environment.write(tmp_path, defaults=DEFAULTS, pip_requirements=str(tmp_path / "none.txt"))


def test_files_end_in_a_newline(tmp_path: Path) -> None:
    environment.write(tmp_path, defaults=DEFAULTS)

    for name in ("requirements.txt", "conda.yaml"):
        assert (tmp_path / name).read_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    ("module", "name", "parameters"),
    [
        ("mlflow.utils.environment", "_mlflow_conda_env", ["additional_pip_deps"]),
        ("mlflow.utils.environment", "_process_conda_env", ["conda_env"]),
        ("mlflow.utils.environment", "_process_pip_requirements", ["default_pip_requirements", "pip_requirements"]),
        ("mlflow.utils.environment", "_validate_env_arguments", ["conda_env", "pip_requirements"]),
        ("mlflow.models.utils", "_save_example", ["mlflow_model", "input_example", "path"]),
    ],
)
def test_private_names_of_mlflow_are_where_they_were(module: str, name: str, parameters: list[str]) -> None:
    """Notices a release of MLflow that moves or changes what has no public equivalent."""
    function = getattr(importlib.import_module(module), name)

    assert set(parameters) <= set(inspect.signature(function).parameters)


def test_default_requirements_are_not_compared_with_what_they_were_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That comparison reads the list of files of every installed package."""
    compared: list[Any] = []
    monkeypatch.setattr("mlflow.utils.environment.warn_dependency_requirement_mismatches", compared.append)
    defaults = environment.requirements(backend="tensorflow")

    environment.write(tmp_path, defaults=defaults)
    assert not compared
    assert (tmp_path / "requirements.txt").read_text().splitlines() == defaults
    pip = yaml.safe_load((tmp_path / "conda.yaml").read_text())["dependencies"][-1]["pip"]
    assert pip == defaults

    environment.write(tmp_path, defaults=defaults, extra_pip_requirements=["six"])
    assert compared
