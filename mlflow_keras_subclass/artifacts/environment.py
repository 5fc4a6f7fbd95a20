"""The environment that serves a model: requirements pinned from what is installed, and MLflow's files for them.

Reads distribution metadata instead of running the model in a subprocess, which takes MLflow's own flavors 10 to 40
seconds a save. Imports errors and manifest; must not import Keras. All names that MLflow (3.17.2) keeps private for
writing an environment are imported here and nowhere else: they had the same names and parameters in every release from
2.0 on, and there is no public way to write these files for a directory that holds a model already.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from mlflow.environment_variables import MLFLOW_LOCK_MODEL_DEPENDENCIES
from mlflow.models import infer_pip_requirements
from mlflow.utils.environment import (
    _mlflow_conda_env,
    _process_conda_env,
    _process_pip_requirements,
    _PythonEnv,
    _validate_env_arguments,
)

from mlflow_keras_subclass.manifest import REQUIREMENTS_FILE

if sys.version_info >= (3, 11):
    from importlib import metadata
else:
    # Python 3.10's own knows a distribution's top-level modules only if an old tool wrote them down.
    import importlib_metadata as metadata

__all__ = [
    "CONDA_FILE",
    "CONSTRAINTS_FILE",
    "PACKAGE",
    "PYTHON_FILE",
    "check_arguments",
    "conda_environment",
    "inferred",
    "requirements",
    "write",
]

PACKAGE = "mlflow-keras-subclass"

# MLflow's names; its tools look for these files.
CONDA_FILE = "conda.yaml"
PYTHON_FILE = "python_env.yaml"
CONSTRAINTS_FILE = "constraints.txt"

_ALWAYS = ("mlflow", "keras", "cloudpickle", "numpy")
# What the bundled loader imports and the others do not bring in with every backend.
_BUNDLED = ("wrapt",)
_logger = logging.getLogger(__name__)


def requirements(
    *, backend: str, imports: Iterable[str] = (), bundled: bool = True, distribution: str = "keras"
) -> list[str]:
    """Pinned requirements of a model: what loading needs, its backend, and what its source imports.

    Args:
        backend: The backend of Keras: ``tensorflow``, ``jax`` or ``torch``.
        imports: Top-level names of the modules that the user's source imports.
        bundled: Whether the model carries its own loader; if not, this package is a requirement.
        distribution: The package of Keras that the model is made of: ``keras`` or ``tf_keras``.
    """
    names = {*_ALWAYS, *_distributions(distribution), *(_BUNDLED if bundled else (PACKAGE,)), *_distributions(backend)}
    for name in imports:
        found = _distributions(name)
        if not found:
            _logger.warning(
                "The model's source imports %r, which no installed distribution provides: it is not in the "
                "requirements. Add it with extra_pip_requirements, or ship it with code_paths.",
                name,
            )
        names.update(found)
    if bundled:
        # A training script imports this package, and its classes do not.
        names.discard(PACKAGE)
    pinned: dict[str, str] = {}
    for name in sorted(names):
        pinned.setdefault(_normalised(name), _pinned(name))
    return [pinned[key] for key in sorted(pinned)]


def conda_environment(pip_requirements: list[str]) -> Any:
    """MLflow's conda environment with these requirements."""
    return _mlflow_conda_env(additional_pip_deps=pip_requirements)


def check_arguments(conda_env: Any, pip_requirements: Any, extra_pip_requirements: Any) -> None:
    """Refuse combinations of which one would win silently, as MLflow does."""
    _validate_env_arguments(conda_env, pip_requirements, extra_pip_requirements)


def inferred(path: Path, flavor: str, defaults: list[str]) -> list[str]:
    """``defaults`` and what MLflow finds when it runs the model in a subprocess, which takes its time."""
    found = infer_pip_requirements(str(path), flavor, fallback=defaults)
    known = {_normalised(_name(item)) for item in defaults}
    return sorted([*defaults, *(item for item in found if _normalised(_name(item)) not in known)])


def write(
    root: Path,
    *,
    defaults: list[str],
    conda_env: Any = None,
    pip_requirements: Any = None,
    extra_pip_requirements: Any = None,
) -> None:
    """Write ``conda.yaml``, ``python_env.yaml``, ``requirements.txt`` and, if asked for, ``constraints.txt``.

    The arguments mean what they mean to MLflow's own flavors: ``pip_requirements`` replaces ``defaults``,
    ``extra_pip_requirements`` adds to them; both are a list, which may hold ``-r file`` and ``-c file``, or the path
    of a requirements file.
    """
    check_arguments(conda_env, pip_requirements, extra_pip_requirements)
    given = pip_requirements is not None or extra_pip_requirements is not None
    if conda_env is None and not given and not MLFLOW_LOCK_MODEL_DEPENDENCIES.get():
        # MLflow would compare them with what is installed, which they are read from: half of the time of a first log.
        conda, pip, constraints = _mlflow_conda_env(additional_pip_deps=defaults, install_mlflow=False), defaults, []
    elif conda_env is None:
        conda, pip, constraints = _process_pip_requirements(list(defaults), pip_requirements, extra_pip_requirements)
    else:
        conda, pip, constraints = _process_conda_env(conda_env)
    _write(root / CONDA_FILE, yaml.safe_dump(conda, default_flow_style=False))
    _write(root / REQUIREMENTS_FILE, "\n".join(pip))
    if constraints:
        _write(root / CONSTRAINTS_FILE, "\n".join(constraints))
    _PythonEnv.current().to_yaml(str(root / PYTHON_FILE))


def _write(path: Path, text: str) -> None:
    path.write_bytes((text.rstrip("\n") + "\n").encode("utf-8"))


def _distributions(module: str) -> tuple[str, ...]:
    """Names of the installed distributions that provide the top-level ``module``."""
    try:
        return (metadata.distribution(module).name,)
    except metadata.PackageNotFoundError:
        # Reads every distribution's list of files, so only for names unlike their distribution's (PIL, sklearn).
        return tuple(sorted(set(metadata.packages_distributions().get(module, ()))))


def _pinned(name: str) -> str:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return name
    # A local label ("2.5.1+cu121") names a build that no index has.
    return f"{name}=={version.partition('+')[0]}"


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
