"""The directory of a logged model on this machine, for as long as it is needed.

MLflow downloads to a temporary folder and leaves it there: one copy of the weights for each load. Imports manifest and
mlflow_api; knows nothing of Keras.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import mlflow

from mlflow_keras_subclass.manifest import DATA_DIR
from mlflow_keras_subclass.mlflow_api import LocalArtifactRepository, get_artifact_repository

__all__ = ["downloaded"]


@contextlib.contextmanager
def downloaded(model_uri: str | Path, dst_path: str | Path | None = None) -> Iterator[Path]:
    """The model directory at ``model_uri``; what was downloaded for it to a temporary folder is removed afterwards.

    The code beside the model stays until the process ends: modules may be imported from it at any later time.

    Args:
        model_uri: A path or any URI that MLflow can download from.
        dst_path: Where to download to, and to leave it.
    """
    uri, folder = str(model_uri), None
    if dst_path is None and not _is_at_hand(uri):
        folder = Path(tempfile.mkdtemp(prefix="mlflow-keras-subclass-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    target = dst_path if folder is None else folder
    try:
        path = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=None if target is None else str(target))
        yield Path(path).absolute()
    finally:
        if folder is not None:
            for data in folder.rglob(DATA_DIR):
                shutil.rmtree(data, ignore_errors=True)


def _is_at_hand(uri: str) -> bool:
    """Whether MLflow finds the files on this machine, and copies nothing."""
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file") or len(scheme) == 1:  # a drive
        return True
    if scheme != "models":
        return False
    repository = get_artifact_repository(uri)
    while hasattr(repository, "repo"):
        repository = repository.repo
    return isinstance(repository, LocalArtifactRepository)
