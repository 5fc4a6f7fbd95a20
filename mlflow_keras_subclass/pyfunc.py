"""The python_function side: ``_load_pyfunc`` and the object whose ``predict`` MLflow calls.

Trust comes from the environment of the process, never from the model's own ``model_config``. Keras is reached through
the seam only, after the artifact was verified.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import math
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from mlflow_keras_subclass import keras_api, model_dir
from mlflow_keras_subclass.coercion import (
    Array,
    Arrays,
    coerce,
    example_arrays,
    numpy_dtype,
    refuse_non_finite,
    refuse_unequal_rows,
)
from mlflow_keras_subclass.errors import FormatError, GraphError, ModelFailure, PredictError
from mlflow_keras_subclass.keras_api import KerasApi
from mlflow_keras_subclass.manifest import Manifest
from mlflow_keras_subclass.outputs import flattened, in_form, json_safe
from mlflow_keras_subclass.serving_metrics import Metrics, metrics_of_server
from mlflow_keras_subclass.serving_options import ServingOptions
from mlflow_keras_subclass.serving_process import freeze_garbage, is_serving, threads_of_a_worker
from mlflow_keras_subclass.specs import ArraySpec, InputSpec
from mlflow_keras_subclass.trust import TrustPolicy, VerifiedModel, verify

__all__ = [
    "FLAVOR_NAME",
    "ServedModel",
    "_load_pyfunc",
    "flavor_configuration",
    "open_verified",
    "prefer_backend",
    "serve",
]

FLAVOR_NAME = "keras_subclass"
_logger = logging.getLogger(__name__)

# More than that is warmed up with one row.
_WARM_UP_VALUES = 2**18


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ServedModel:
    """Load for serving; MLflow calls this with ``path`` = ``<model>/keras_subclass``.

    Raises:
        IntegrityError: A file was changed since the model was logged.
        UntrustedCodeError: The environment forbids what loading needs.
        DeviceError: The device asked for is not present.
        RebuildError: What came back is not the model that was logged.
        GraphError: The graph is to be served, and there is none or none for this entry point.
        KerasSubclassError: The environment asks for metrics, which cannot be given here.
    """
    verified = open_verified(Path(path).parent, TrustPolicy.from_environment())
    options = ServingOptions.from_config(model_config)
    served = _serve_graph(verified, options) if options.engine == "graph" else _serve_class(verified, options)
    served.metrics = metrics_of_server()
    freeze_garbage()
    return served


def _serve_class(verified: VerifiedModel, options: ServingOptions) -> ServedModel:
    prefer_backend(verified.manifest)
    api = keras_api.for_versions(verified.manifest.versions)
    api.enable_memory_growth()
    if (threads := options.threads or threads_of_a_worker()) is not None:
        api.set_threads(threads)
    device = api.check_device(options.chosen_device())
    model = model_dir.rebuild(verified, compile=False, device=device)
    input_spec, _ = model_dir.read_specs(verified)
    served = serve(api, model, input_spec, options, device=device)
    with model_dir.unchanged(api, model):
        served.warm_up()
    return served


def _serve_graph(verified: VerifiedModel, options: ServingOptions) -> ServedModel:
    """The graph as it is served: no stored code is run and Keras is not imported, so any trust policy allows it."""
    if options.predict_fn != "call":
        raise GraphError(
            f"model_config: expected predict_fn 'call' for engine 'graph', got {options.predict_fn!r}. There is "
            "no graph of other methods: load it with engine 'class'."
        )
    graph = model_dir.load_graph(
        verified,
        device=options.chosen_device(),
        threads=options.threads or threads_of_a_worker(),
        jit_compile=options.jit_compile,
    )
    input_spec, _ = model_dir.read_specs(verified)
    served = ServedModel(graph.raw, graph, input_spec, options)
    with graph.unchanged():
        served.warm_up()
    return served


def serve(
    api: KerasApi, model: Any, input_spec: InputSpec | None, options: ServingOptions, *, device: str | None = None
) -> ServedModel:
    """``model`` as it is served with these options, compiled now."""
    call = api.compiled(model, input_spec, device=device, jit_compile=options.jit_compile, method=options.predict_fn)
    return ServedModel(model, call, input_spec, options)


class ServedModel:
    """What ``mlflow.pyfunc.load_model`` wraps. ``predict`` may be called from many threads."""

    def __init__(
        self, model: Any, call: Callable[..., Any], input_spec: InputSpec | None, options: ServingOptions
    ) -> None:
        """Serve ``model`` by ``call``, which takes and returns arrays."""
        self._model = model
        self._call = call
        self._spec = input_spec
        self._leaves = input_spec.leaves() if input_spec is not None else {}
        self._bare = input_spec is not None and list(self._leaves) == [None] and len(input_spec.args) == 1
        self._options = options
        self.metrics: Metrics | None = None
        # Inputs that were seen with unequal rows may have them: a table that all rows are compared with.
        seen = [leaf.observed[:1] for leaf in self._leaves.values() if leaf.observed]
        self._aligned = len(seen) == len(self._leaves) > 1 and len({*seen}) == 1
        self.predict = self._plain_predict()

    def warm_up(self) -> None:
        """Call the model once on zeros, so that the first request finds everything allocated.

        Of the shape that was seen, if that is small: a ``predict`` of Keras that met two shapes computes with an open
        batch size from then on, and takes its sums in another order than the model that was logged.
        """
        if self._spec is None:
            return
        try:
            self._once(_zeros(self._leaves), self._spec)
        except Exception as error:  # It may not take zeros; whether it takes a request, the request will tell.
            _logger.info("The model was not warmed up, because it does not take zeros: %s", error)

    def get_raw_model(self) -> Any:
        """The model itself: an instance of the user's class, not compiled for training; or the backend's own graph."""
        return self._model

    unwrap = get_raw_model

    def _plain_predict(self) -> Callable[..., Any]:
        """``predict`` as a function with its signature at hand.

        MLflow 3.17 inspects the signature on every call, which costs a method 10 microseconds and this nearly none.
        """

        def predict(data: Any, params: Mapping[str, Any] | None = None) -> Any:
            """Predictions for ``data``: an array, a list of arrays or a dict of arrays; pandas for a DataFrame.

            Raises:
                PredictError: ``data`` does not fit what the model takes; the text names the input.
            """
            return self._predict(data, params)

        predict.__signature__ = inspect.signature(predict)  # type: ignore[attr-defined]
        return predict

    def _predict(self, data: Any, params: Mapping[str, Any] | None) -> Any:
        if self.metrics is None:
            return self._predicted(data, params)
        with self.metrics.observed():
            return self._predicted(data, params)

    def _predicted(self, data: Any, params: Mapping[str, Any] | None) -> Any:
        batch_size, output = self._options.of_call(params)
        if not is_serving():
            return _framed(self._answer(data, batch_size, output), data)
        with _told_to_a_client():
            answer = self._answer(data, batch_size, output, finite=not self._options.allow_nan)
        return _framed(json_safe(answer), data)

    def _answer(self, data: Any, batch_size: int | None, output: str, *, finite: bool = False) -> Any:
        if self._spec is None:
            outputs = flattened(self._call((example_arrays(data),), {}))
        else:
            arrays = coerce(data, self._spec, self._leaves)
            if self._aligned:
                refuse_unequal_rows(arrays)
            if finite:
                refuse_non_finite(arrays)
            if self.metrics is not None:
                self.metrics.count_rows(max((len(array) for array in arrays.values() if array.ndim), default=0))
            outputs = self._run(arrays, self._spec, batch_size)
        return outputs if output == "raw" else in_form(output, outputs, from_logits=self._options.from_logits)

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
    return verify(root, policy, recorded_sha256=flavor_configuration(root).get("manifest_sha256"))


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


# What `tf.keras` is; TensorFlow reads it once.
_LEGACY_VARIABLE = "TF_USE_LEGACY_KERAS"


def prefer_backend(manifest: Manifest) -> None:
    """Choose the backend that the model was logged with, if Keras was not imported yet and nobody else chose.

    The same for what ``tf.keras`` is, which TensorFlow decides once.
    """
    backend = manifest.versions.backend
    if manifest.versions.keras_distribution == "tf_keras" and "tensorflow" not in sys.modules:
        os.environ.setdefault(_LEGACY_VARIABLE, "1")
    if "keras" not in sys.modules and importlib.util.find_spec(backend) is not None:
        os.environ.setdefault("KERAS_BACKEND", backend)


@contextlib.contextmanager
def _told_to_a_client() -> Iterator[None]:
    """Tell a client whose fault an error of the model is, and nothing of the server's insides; those are logged."""
    try:
        yield
    except MlflowException:
        raise
    except Exception as error:
        number = uuid.uuid4().hex[:12]
        _logger.exception("Request %s: the model raised %s", number, type(error).__name__)
        refused = _is_refusal(error)
        what = "does not take these values" if refused else "failed on data that fits its inputs"
        text = f"The model {what} ({type(error).__name__}); the server's log has it as {number}."
        raise (PredictError(text) if refused else ModelFailure(text)) from None


def _is_refusal(error: Exception) -> bool:
    """Whether an error of the model is about values, such as a token that is not in the vocabulary."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return not names.isdisjoint({"InvalidArgumentError", "IndexError", "ValueError"})


def _zeros(leaves: Mapping[str | None, ArraySpec]) -> dict[str | None, Array]:
    shapes = {name: leaf.example_shape(1) for name, leaf in leaves.items()}
    if sum(math.prod(shape) for shape in shapes.values()) > _WARM_UP_VALUES:
        shapes = {name: (1, *shape[1:]) if shape else () for name, shape in shapes.items()}
    return {
        name: np.full(shapes[name], "" if leaf.dtype == "string" else 0, numpy_dtype(leaf.dtype))
        for name, leaf in leaves.items()
    }


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
    """Predictions of a DataFrame as a Series or DataFrame with its index, where they have the form of one."""
    if isinstance(data, pd.DataFrame) and isinstance(outputs, np.ndarray) and outputs.ndim in (1, 2):
        # MLflow's evaluation of a classifier fails on a DataFrame of one column.
        return (pd.Series if outputs.ndim == 1 else pd.DataFrame)(outputs, index=data.index)
    return outputs
