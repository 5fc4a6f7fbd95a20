"""The seam: everything that this package asks of Keras goes through ``KerasApi``; Keras is imported here only.

``for_model``, ``for_runtime`` and ``for_versions`` import Keras when called, never before: importing it fixes the
backend. The word backend means tensorflow, jax or torch, as in Keras. The rest of the package asks ``KerasApi`` by its
methods, and never Keras itself. Imports errors, manifest and specs.

``common`` holds what is asked, ``keras3`` and ``legacy`` (tf_keras, the continuation of Keras 2) how it is answered.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from mlflow_keras_subclass.errors import CaptureError, RebuildError
from mlflow_keras_subclass.keras_api.common import KerasApi
from mlflow_keras_subclass.keras_api.keras3 import Keras3Api
from mlflow_keras_subclass.keras_api.legacy import LegacyApi
from mlflow_keras_subclass.manifest import Versions

__all__ = ["KerasApi", "for_model", "for_runtime", "for_versions"]

_SIDES: dict[str, type[KerasApi]] = {side.distribution: side for side in (Keras3Api, LegacyApi)}


@functools.cache
def for_runtime(distribution: str = "keras") -> KerasApi:
    """The seam to a Keras of this process, imported now if it was not: ``keras`` or ``tf_keras``."""
    return _SIDES[distribution](importlib.import_module(distribution))


def for_versions(versions: Versions) -> KerasApi:
    """The seam to the Keras that a model was logged with, in whatever version it is here.

    Raises:
        RebuildError: That Keras is not installed.
    """
    try:
        return for_runtime(versions.keras_distribution)
    except ModuleNotFoundError as error:
        name = versions.keras_distribution
        raise RebuildError(
            f"The model was logged with {name} {versions.keras}, which cannot be imported here: {error}. "
            f"Install {name.replace('_', '-')}=={versions.keras}."
        ) from error


def for_model(model: Any) -> KerasApi:
    """The seam to the Keras that ``model`` is made of.

    Raises:
        CaptureError: ``model`` is not a Keras model.
    """
    roots = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    api = for_runtime(next((name for name in _SIDES if name in roots), "keras"))
    if not api.is_model(model):
        kind = type(model)
        raise CaptureError(
            f"model: expected an instance of a keras.Model subclass (Keras {api.version}), got "
            f"{kind.__module__}.{kind.__qualname__}. Pass the model object itself; plain layers cannot be logged: wrap "
            "a layer in a keras.Model."
        )
    return api
