"""The console script ``mlflow-keras-subclass``, outside the package so that it can start in a tenth of a second.

``import mlflow`` takes three seconds of CPU, and errors of this package are MLflow's, so that every module of it needs
``mlflow.exceptions``. Commands that only read a local directory need nothing else: for them, both packages are entered
without running their ``__init__``. Nothing else of MLflow may be imported in such a process; a test holds that.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

_READING = ("diff", "inspect", "source", "verify")


def main() -> None:
    """Run the command line."""
    if _only_reads(sys.argv[1:]):
        for name in ("mlflow", "mlflow_keras_subclass"):
            _enter(name)
    from mlflow_keras_subclass.cli import cli

    cli()


def _only_reads(arguments: list[str]) -> bool:
    """Whether the command reads local directories and nothing else."""
    given = [item for item in arguments if not item.startswith("-")]
    if not given or given[0] not in _READING or "--rebuild" in arguments:
        return False
    count = 2 if given[0] == "diff" else 1
    return len(given) > count and all(Path(item).is_dir() for item in given[1 : 1 + count])


def _enter(name: str) -> None:
    if name in sys.modules or (spec := importlib.util.find_spec(name)) is None:
        return
    package = types.ModuleType(name)
    package.__spec__ = spec
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules[name] = package


if __name__ == "__main__":
    main()
