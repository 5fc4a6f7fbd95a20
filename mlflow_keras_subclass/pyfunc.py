"""The python_function side: ``_load_pyfunc`` and the object whose ``predict`` MLflow calls.

Trust comes from the environment of the process, never from the model's own ``model_config``. Keras is reached through
the seam only, after the artifact was verified.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import Model

from mlflow_keras_subclass import keras_api, model_dir
from mlflow_keras_subclass.coercion import Array, Arrays, coerce, example_arrays
from mlflow_keras_subclass.errors import FormatError, IntegrityError, KerasSubclassError, PredictError
from mlflow_keras_subclass.manifest import Manifest
from mlflow_keras_subclass.outputs import flattened, json_safe
from mlflow_keras_subclass.specs import InputSpec
from mlflow_keras_subclass.trust import TrustPolicy, VerifiedModel, verify

__all__ = [
    "DEVICE_VARIABLE",
    "FLAVOR_NAME",
    "PREDICT_PARAMS",
    "ServedModel",
    "ServingOptions",
    "_load_pyfunc",
    "flavor_configuration",
    "open_verified",
    "prefer_backend",
]

FLAVOR_NAME = "keras_subclass"
DEVICE_VARIABLE = "MLFLOW_KERAS_SUBCLASS_DEVICE"
PREDICT_PARAMS = frozenset({"batch_size"})

# Set by MLflow's scoring server and by `mlflow models predict` (3.17.2); a name, so that nothing private is imported.
_SERVING_VARIABLE = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """The keys of ``model_config``: declared when a model is logged, because MLflow passes on only declared ones.

    Attributes:
        device: ``cpu``, ``gpu``, ``gpu:1``, or ``auto``, which leaves it to ``MLFLOW_KERAS_SUBCLASS_DEVICE`` and
            then to the backend.
        batch_size: Rows of one call of the model; larger inputs are cut. ``None`` never cuts.
        jit_compile: Compile with XLA, which compiles again for every new batch size.
    """

    device: str = "auto"
    batch_size: int | None = 8192
    jit_compile: bool = False

    def __post_init__(self) -> None:
        """Refuse values that could not work on any machine."""
        if not isinstance(self.device, str):
            raise KerasSubclassError(f"model_config: device must be a string such as 'cpu', got {self.device!r}.")
        _check_batch_size("model_config", self.batch_size)
        if not isinstance(self.jit_compile, bool):
            raise KerasSubclassError(f"model_config: jit_compile must be true or false, got {self.jit_compile!r}.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> ServingOptions:
        """Options from a ``model_config``; keys that this release does not know are left alone."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in (config or {}).items() if key in known})

    def to_config(self) -> dict[str, Any]:
        """The ``model_config`` with every key."""
        return dataclasses.asdict(self)

    def chosen_device(self) -> str:
        """The device to use: one given here, else the environment's, else ``auto``."""
        if self.device.lower() != "auto":
            return self.device
        return os.environ.get(DEVICE_VARIABLE, "").strip() or "auto"


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ServedModel:
    """Load for serving; MLflow calls this with ``path`` = ``<model>/keras_subclass``.

    Raises:
        IntegrityError: A file was changed since the model was logged.
        UntrustedCodeError: The environment forbids what loading needs.
        DeviceError: The device asked for is not present.
        RebuildError: What came back is not the model that was logged.
    """
    verified = open_verified(Path(path).parent, TrustPolicy.from_environment())
    options = ServingOptions.from_config(model_config)
    prefer_backend(verified.manifest)
    api = keras_api.for_runtime()
    api.enable_memory_growth()
    device = api.check_device(options.chosen_device())
    model = model_dir.rebuild(verified, compile=False, device=device)
    input_spec, _ = model_dir.read_specs(verified)
    call = api.compiled(model, input_spec, device=device, jit_compile=options.jit_compile)
    return ServedModel(model, call, input_spec, batch_size=options.batch_size)


class ServedModel:
    """What ``mlflow.pyfunc.load_model`` wraps. ``predict`` may be called from many threads."""

    def __init__(
        self, model: Any, call: Callable[..., Any], input_spec: InputSpec | None, *, batch_size: int | None
    ) -> None:
        """Serve ``model`` by ``call``, which takes and returns arrays, in calls of at most ``batch_size`` rows."""
        self._model = model
        self._call = call
        self._spec = input_spec
        self._leaves = input_spec.leaves() if input_spec is not None else {}
        self._bare = input_spec is not None and list(self._leaves) == [None] and len(input_spec.args) == 1
        self._batch_size = batch_size
        self.predict = self._plain_predict()

    def get_raw_model(self) -> Any:
        """The model itself: an instance of the user's class, not compiled for training."""
        return self._model

    unwrap = get_raw_model

    def _plain_predict(self) -> Callable[..., Any]:
        """``predict`` as a function with its signature at hand.

        MLflow 3.17 inspects the signature on every call, which costs a method 10 microseconds and this nearly none.
        """

        def predict(data: Any, params: Mapping[str, Any] | None = None) -> Any:
            """Predictions for ``data``: an array, a list of arrays or a dict of arrays; a DataFrame for a DataFrame.

            Raises:
                PredictError: ``data`` does not fit what the model takes; the text names the input.
            """
            return self._predict(data, params)

        predict.__signature__ = inspect.signature(predict)  # type: ignore[attr-defined]
        return predict

    def _predict(self, data: Any, params: Mapping[str, Any] | None) -> Any:
        batch_size = _batch_size(params, self._batch_size)
        if self._spec is None:
            outputs = flattened(self._call((example_arrays(data),), {}))
        else:
            outputs = self._run(coerce(data, self._spec, self._leaves), self._spec, batch_size)
        if os.environ.get(_SERVING_VARIABLE, "").lower() in ("true", "1"):
            outputs = json_safe(outputs)
        return _framed(outputs, data)

    def _run(self, arrays: Arrays, spec: InputSpec, batch_size: int | None) -> Any:
        rows = {len(array) if array.ndim else 0 for array in arrays.values()}
        total = max(rows, default=0)
        if batch_size is None or total <= batch_size or len(rows) > 1:
            return self._once(arrays, spec)
        first = self._once(_rows(arrays, 0, batch_size), spec)
        if not _one_row_each(first, batch_size):
            return self._once(arrays, spec)
        results = _map(lambda array: np.empty((total, *array.shape[1:]), array.dtype), first)
        _fill(results, first, 0)
        for start in range(batch_size, total, batch_size):
            part = self._once(_rows(arrays, start, start + batch_size), spec)
            if not _fill(results, part, start):
                return self._once(arrays, spec)
        return results

    def _once(self, arrays: Arrays, spec: InputSpec) -> Any:
        if self._bare:  # the common case, at a fifth of the cost of the general one
            return flattened(self._call((arrays[None],), {}))
        return flattened(self._call(*spec.bind(arrays)))


def open_verified(root: Path, policy: TrustPolicy) -> VerifiedModel:
    """Verify the model directory ``root``, its manifest against the digest in MLmodel as well.

    Raises:
        IntegrityError: A file was changed, or the manifest is not the one that MLmodel or the policy names.
        FormatError: ``root`` holds no model of this flavor.
    """
    recorded = flavor_configuration(root).get("manifest_sha256")
    if policy.manifest_sha256 is None:
        return verify(root, dataclasses.replace(policy, manifest_sha256=recorded))
    if recorded not in (None, policy.manifest_sha256):
        raise IntegrityError(
            f"{root / 'MLmodel'}: expected manifest_sha256 {policy.manifest_sha256}, as the trust policy names it, got "
            f"{recorded}. This is another model: check the URI, or download it again."
        )
    return verify(root, policy)


def flavor_configuration(root: Path) -> dict[str, Any]:
    """What MLmodel in ``root`` says about this flavor.

    Raises:
        FormatError: There is no MLmodel, or the model was not logged with this flavor.
    """
    if not (root / "MLmodel").is_file():
        raise FormatError(f"{root} is not an MLflow model: expected the file MLmodel in it. Check the URI.")
    flavors = Model.load(str(root)).flavors
    if FLAVOR_NAME not in flavors:
        raise FormatError(
            f"{root / 'MLmodel'}: expected the flavor {FLAVOR_NAME!r}, got {', '.join(sorted(flavors)) or 'none'}. "
            "Load the model with the flavor that logged it, or with mlflow.pyfunc.load_model."
        )
    return dict(flavors[FLAVOR_NAME])


def prefer_backend(manifest: Manifest) -> None:
    """Choose the backend that the model was logged with, if Keras was not imported yet and nobody else chose."""
    backend = manifest.versions.backend
    if "keras" not in sys.modules and importlib.util.find_spec(backend) is not None:
        os.environ.setdefault("KERAS_BACKEND", backend)


def _batch_size(params: Mapping[str, Any] | None, default: int | None) -> int | None:
    if not params:
        return default
    if unknown := sorted(params.keys() - PREDICT_PARAMS):
        raise PredictError(f"params: expected only {', '.join(sorted(PREDICT_PARAMS))}, got {', '.join(unknown)}.")
    _check_batch_size("params", params["batch_size"])
    size: int | None = params["batch_size"]
    return size


def _check_batch_size(where: str, size: Any) -> None:
    whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
    if size is not None and not (whole and size >= 1):
        error = PredictError if where == "params" else KerasSubclassError
        raise error(f"{where}: batch_size must be a whole number from 1, or null, got {size!r}.")


def _rows(arrays: Arrays, start: int, stop: int) -> Arrays:
    return {name: array[start:stop] for name, array in arrays.items()}


def _map(change: Callable[[Array], Any], outputs: Any) -> Any:
    if isinstance(outputs, dict):
        return {name: change(array) for name, array in outputs.items()}
    return [change(array) for array in outputs] if isinstance(outputs, list) else change(outputs)


def _arrays(outputs: Any) -> list[Any]:
    if isinstance(outputs, dict):
        return list(outputs.values())
    return outputs if isinstance(outputs, list) else [outputs]


def _one_row_each(outputs: Any, rows: int) -> bool:
    """Whether every output has one row for each row that went in, so that cutting the input changes nothing.

    A second dimension of that length is taken for a comparison of all rows with all rows, which cutting would change.
    """
    arrays = _arrays(outputs)
    return all(isinstance(a, np.ndarray) and a.shape[:1] == (rows,) and rows not in a.shape[1:2] for a in arrays)


def _fill(results: Any, part: Any, start: int) -> bool:
    """Put the rows of one call in their place; false if they do not have the form of the first call's."""
    for result, array in zip(_arrays(results), _arrays(part), strict=True):
        if array.shape[1:] != result.shape[1:] or array.dtype != result.dtype:
            return False
        result[start : start + len(array)] = array
    return True


def _framed(outputs: Any, data: Any) -> Any:
    """Predictions of a DataFrame as a DataFrame with its index, where they have the form of a table."""
    if isinstance(data, pd.DataFrame) and isinstance(outputs, np.ndarray) and outputs.ndim in (1, 2):
        return pd.DataFrame(outputs, index=data.index)
    return outputs
