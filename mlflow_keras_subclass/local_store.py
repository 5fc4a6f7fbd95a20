"""An artifact store on this machine gets the large files of a model as links, where MLflow would copy them.

MLflow copies a model directory from its temporary folder into a store of files, so that a large model lies on the disk
twice for a while. Imports mlflow_api; knows nothing of Keras.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import mlflow

from mlflow_keras_subclass.mlflow_api import LocalArtifactRepository, get_artifact_repository

__all__ = ["link_into_store"]

# Smaller ones are copied in no time.
_LARGE_BYTES = 2**20


def link_into_store(root: Path, model_id: str) -> None:
    """Move the large files of the model directory ``root`` to where MLflow is about to copy all of it.

    What cannot be linked stays: the store is elsewhere, on another file system, or has the file already.
    """
    large = [path for path in root.rglob("*") if path.is_file() and path.stat().st_size >= _LARGE_BYTES]
    if not large:
        return
    repository = get_artifact_repository(mlflow.get_logged_model(model_id).artifact_location)
    if type(repository) is not LocalArtifactRepository:
        return
    for path in large:
        target = Path(repository.artifact_dir, path.relative_to(root))
        with contextlib.suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(path)
            path.unlink()
