"""An empty MLflow store on this machine, for as long as a test needs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import mlflow


@contextlib.contextmanager
def local_store(root: Path, experiment: str) -> Iterator[Path]:
    """Track, register and keep artifacts below ``root``, in a new active ``experiment``; the old stores afterwards.

    An experiment of its own: one that another module left active in this process is not in this store.
    """
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    mlflow.set_registry_uri(f"sqlite:///{root / 'mlflow.db'}")
    try:
        mlflow.create_experiment(experiment, artifact_location=(root / "artifacts").as_uri())
        mlflow.set_experiment(experiment)
        yield root
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])
