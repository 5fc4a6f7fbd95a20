"""``autolog()``: ``fit`` logs its parameters, metrics, datasets and a model that can be loaded, for subclassed models.

Made of MLflow's own parts (its patching, managed runs and callback), so that its switches work as everywhere in
MLflow. What it must not do: read a batch that training then misses, make an iterator of a dataset before training
(that advances a shuffle's seed), change the caller's list of callbacks, or let an error in logging end training.
Imports checkpoints, flavor, mlflow_api and the seam; imports no Keras until it is called, and ``callbacks`` then.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import logging
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import LoggedModelInput

from mlflow_keras_subclass import flavor, keras_api, mlflow_api
from mlflow_keras_subclass.checkpoints import check_schedule
from mlflow_keras_subclass.errors import PredictError
from mlflow_keras_subclass.keras_api import KerasApi

__all__ = ["INTEGRATION", "autolog"]

INTEGRATION = flavor.FLAVOR_NAME

_EXAMPLE_ROWS = 5
_DIGESTED_VALUES = 10_000
_DATA_ARGUMENTS = ("self", "x", "y", "sample_weight", "validation_data", "callbacks", "verbose", "batch_size")
_EARLY_STOPPING = ("monitor", "min_delta", "patience", "baseline", "restore_best_weights")
_logger = logging.getLogger(__name__)


def autolog(
    log_every_epoch: bool = True,
    log_every_n_steps: int | None = None,
    log_models: bool = True,
    log_model_signatures: bool = True,
    log_datasets: bool = True,
    log_input_examples: bool = False,
    disable: bool = False,
    exclusive: bool = False,
    disable_for_unsupported_versions: bool = False,
    silent: bool = False,
    registered_model_name: str | None = None,
    extra_tags: Mapping[str, str] | None = None,
    checkpoint: bool = False,
    checkpoint_monitor: str = "val_loss",
    checkpoint_mode: str = "min",
    checkpoint_save_best_only: bool = True,
    checkpoint_save_weights_only: bool = False,
    checkpoint_save_freq: int | str = "epoch",
    model_options: Mapping[str, Any] | None = None,
) -> None:
    """Make ``fit`` of every Keras model log to MLflow, in one run per ``fit``.

    Subclassed models are logged with this flavor; Functional and Sequential models with ``mlflow.keras``. Where
    ``mlflow.keras.autolog`` or ``mlflow.tensorflow.autolog`` is on as well, before or after, this one does the work
    and nothing is logged twice; switched off, it leaves the other as it was. An error in logging is a warning.

    Args:
        log_every_epoch: Log metrics at the end of each epoch.
        log_every_n_steps: Log metrics every so many steps; ``log_every_epoch`` must then be ``False``.
        log_models: Log the model at the end.
        log_model_signatures: Store the signature of the model, taken from how it was called.
        log_datasets: Log which data was used, without iterating over it before training.
        log_input_examples: Store the first rows of the training data with the model.
        disable: Switch it off.
        exclusive: Do not log to a run that the user started.
        disable_for_unsupported_versions: Accepted as everywhere in MLflow; there are no such versions.
        silent: Log no messages or warnings.
        registered_model_name: Register the model under this name each time.
        extra_tags: Tags for the runs that are created.
        checkpoint: Log checkpoints while the model trains, for ``load_checkpoint``. Off unless asked for, other than in
            ``mlflow.tensorflow.autolog``: each is a whole model, which ``fit`` waits for. A ``ModelCheckpoint`` of this
            package or of MLflow among the callbacks of ``fit`` takes its place.
        checkpoint_monitor: The metric that tells which checkpoint is best.
        checkpoint_mode: Whether its ``min`` or ``max`` is best; ``auto`` tells by the name.
        checkpoint_save_best_only: Keep the best only, which replaces the one before; every one with ``False``.
        checkpoint_save_weights_only: Leave out the optimizer's state.
        checkpoint_save_freq: ``"epoch"``, or a number of batches.
        model_options: Further arguments of ``log_model``, such as ``code_paths``.

    Raises:
        CheckpointError: ``checkpoint_mode`` or ``checkpoint_save_freq`` is not one of the above.
    """
    options = dict(locals())
    check_schedule(checkpoint_mode, checkpoint_save_freq)
    _integration(**options)
    if disable:
        _restore_others()


@mlflow_api.autologging_integration(INTEGRATION)  # type: ignore[untyped-decorator] # MLflow carries no types here
def _integration(disable: bool = False, silent: bool = False, **options: Any) -> None:
    """MLflow keeps the arguments, undoes the patches of an earlier call, and calls this unless it is disabled."""
    settings = _Settings(
        **{
            key: value for key, value in options.items() if key in _Settings.__dataclass_fields__
        }  # the rest is MLflow's
    )
    patch = _patcher(settings)
    patch()
    for name in ("keras", "tensorflow"):
        _stay_after(name, patch)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    log_every_epoch: bool
    log_every_n_steps: int | None
    log_models: bool
    log_model_signatures: bool
    log_datasets: bool
    log_input_examples: bool
    registered_model_name: str | None
    extra_tags: Mapping[str, str] | None
    checkpoint: bool
    checkpoint_monitor: str
    checkpoint_mode: str
    checkpoint_save_best_only: bool
    checkpoint_save_weights_only: bool
    checkpoint_save_freq: int | str
    model_options: Mapping[str, Any] | None

    def log_options(self) -> dict[str, Any]:
        """Arguments of ``log_model`` of this flavor, for the model and its checkpoints."""
        return {"signature": None if self.log_model_signatures else False, **(self.model_options or {})}


def _patcher(settings: _Settings) -> Callable[[], None]:
    api = keras_api.for_runtime()

    def fit(original: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
        return _Training(api, settings, model).run(original, args, kwargs)

    def patch() -> None:
        extra_tags = dict(settings.extra_tags) if settings.extra_tags else None
        mlflow_api.safe_patch(INTEGRATION, api.keras.Model, "fit", fit, manage_run=True, extra_tags=extra_tags)

    return patch


def _stay_after(name: str, patch: Callable[[], None]) -> None:
    """Patch ``mlflow.<name>.autolog`` so that ours is put back after it: MLflow's patches replace each other."""
    if name == "tensorflow" and "tensorflow" not in sys.modules:
        return
    module = importlib.import_module(f"mlflow.{name}")

    def autolog(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        patch()
        return result

    mlflow_api.safe_patch(INTEGRATION, module, "autolog", autolog)


def _restore_others() -> None:
    """Undoing our patch restored Keras' own ``fit``; an integration of MLflow's that is on gets its patch back."""
    for name in ("tensorflow", "keras"):
        config = mlflow_api.autologging_config(name)
        if config is not None:
            importlib.import_module(f"mlflow.{name}").autolog(**config)


class _Training:
    """One ``fit``: what is logged before, during and after it."""

    def __init__(self, api: KerasApi, settings: _Settings, model: Any) -> None:
        self._api = api
        self._settings = settings
        self._model = model
        self._first_batch: Any = None

    def run(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = dict(inspect.signature(original).bind(self._model, *args, **kwargs).arguments)
        arguments.pop("self")
        data = arguments.get("x")
        mlflow_api.log_fn_args_as_params(
            original, [], {key: arguments[key] for key in arguments if key not in _DATA_ARGUMENTS}, _DATA_ARGUMENTS
        )
        model_id = mlflow.initialize_logged_model(name="model").model_id if self._settings.log_models else None
        arguments["callbacks"] = self._with_callbacks(arguments.get("callbacks"), model_id)
        if isinstance(data, types.GeneratorType):
            arguments["x"] = self._noting(data)
        try:
            history = original(self._model, **arguments)
        except BaseException:
            if model_id:
                mlflow.finalize_logged_model(model_id, "FAILED")
            raise
        self._log_rest(arguments, data, model_id)
        return history

    def _noting(self, data: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the first is kept as it passes, since a generator cannot be asked again."""
        for batch in data:
            self._first_batch = batch
            yield batch
            break
        yield from data

    def _with_callbacks(self, callbacks: Any, model_id: str | None) -> Any:
        keras_list = self._api.keras.callbacks.CallbackList
        given = callbacks.callbacks if isinstance(callbacks, keras_list) else self._api.flat(callbacks)
        given = [item for item in given if item is not None]
        for item in given:
            if isinstance(item, self._api.keras.callbacks.EarlyStopping):
                mlflow.log_params({name: getattr(item, name) for name in _EARLY_STOPPING})
        # A checkpoint takes the metrics of its step, so these are logged before it.
        added = [*self._metrics_callback(given, model_id), *self._checkpoint_callback(given)]
        if not added:
            return callbacks
        if not isinstance(callbacks, keras_list):
            return [*given, *added]
        extended = copy.copy(callbacks)
        extended.callbacks = [*given, *added]
        for item in added:
            item.set_model(self._model)
            item.set_params(callbacks.params)
        return extended

    def _metrics_callback(self, given: list[Any], model_id: str | None) -> list[Any]:
        kind = importlib.import_module("mlflow.keras").MlflowCallback
        if any(isinstance(item, kind) for item in given):
            _logger.warning("fit was given an MlflowCallback, which logs the metrics; autologging adds none.")
            return []
        return [kind(self._settings.log_every_epoch, self._settings.log_every_n_steps, model_id)]

    def _checkpoint_callback(self, given: list[Any]) -> list[Any]:
        settings = self._settings
        if not settings.checkpoint:
            return []
        from mlflow_keras_subclass import callbacks

        makers = (callbacks.ModelCheckpoint, mlflow_api.MlflowModelCheckpointCallbackBase)
        if any(isinstance(item, makers) for item in given):
            return []
        return [
            callbacks.AutologCheckpoint(
                settings.checkpoint_monitor,
                mode=settings.checkpoint_mode,
                save_best_only=settings.checkpoint_save_best_only,
                save_weights_only=settings.checkpoint_save_weights_only,
                save_freq=settings.checkpoint_save_freq,
                keep_last=1 if settings.checkpoint_save_best_only else None,
                **settings.log_options(),
            )
        ]

    def _log_rest(self, arguments: Mapping[str, Any], data: Any, model_id: str | None) -> None:
        """What is logged after training, where looking at a dataset can no longer change what training sees."""
        settings = self._settings
        # An iterator of a dataset may fill a buffer of its own: only where its content is wanted.
        first = self._first_batch
        if first is None and (settings.log_input_examples or settings.log_datasets):
            first = _first_batch(data)
        size = arguments.get("batch_size") or _batch_size(data, first)
        if size is not None:
            mlflow.log_param("batch_size", int(size))
        _log_stopping(self._api, arguments["callbacks"])
        if settings.log_datasets:
            _log_dataset(data, arguments.get("y"), first, "train", model_id)
            self._log_validation(arguments.get("validation_data"), model_id)
        if model_id:
            self._log_model(model_id, _rows(self._api, first) if settings.log_input_examples else None)

    def _log_validation(self, data: Any, model_id: str | None) -> None:
        if isinstance(data, tuple):
            _log_dataset(data[0], data[1] if len(data) > 1 else None, None, "eval", model_id)
        elif data is not None:
            _log_dataset(data, None, None, "eval", model_id)

    def _log_model(self, model_id: str, example: Any) -> None:
        settings, model = self._settings, self._model
        options: dict[str, Any] = {
            "name": "model",
            "model_id": model_id,
            "registered_model_name": settings.registered_model_name,
        }
        if self._api.is_functional(model) or self._api.is_sequential(model):
            mlflow_keras = importlib.import_module("mlflow.keras")
            signature = mlflow_api.keras_model_signature(model) if settings.log_model_signatures else None
            # Pinned: to infer them, MLflow loads the model again in a process of its own, for half a minute.
            requirements = mlflow_keras.get_default_pip_requirements()
            mlflow_keras.log_model(
                model, signature=signature, input_example=example, pip_requirements=requirements, **options
            )
            return
        options |= settings.log_options()
        try:
            flavor.log_model(model, input_example=example, **options)
        except PredictError as error:
            if example is None:
                raise
            # As where a train_step calls the model on something else than what fit is given.
            _logger.warning("The training data is no input of the model itself, so no example is stored: %s", error)
            flavor.log_model(model, **options)


def _first_batch(data: Any) -> Any:
    """The first batch of what ``fit`` was given, once training is over; arrays are a batch themselves."""
    if _is_arrays(data):
        return (data,)
    if hasattr(data, "element_spec"):
        return next(iter(data.take(1)), None)
    if hasattr(data, "__getitem__"):
        return data[0]
    return None if isinstance(data, Iterator) or data is None else next(iter(data), None)


def _is_arrays(data: Any) -> bool:
    return isinstance(data, dict | list | tuple) or hasattr(data, "shape")


def _batch_size(data: Any, first: Any) -> int | None:
    if (size := getattr(data, "batch_size", None)) is not None:
        return int(size)
    if _is_arrays(data):
        return 32  # Keras' default
    leaves = _leaves(first)
    return int(leaves[0].shape[0]) if leaves and hasattr(leaves[0], "shape") and len(leaves[0].shape) else None


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return [] if value is None else [value]


def _rows(api: KerasApi, batch: Any) -> Any:
    """The first rows of the inputs of a batch, as arrays; copied, since a generator may reuse its buffer."""
    inputs = batch[0] if isinstance(batch, tuple) and batch else batch
    if inputs is None:
        return None
    return api.map_structure(lambda leaf: np.array(api.value(leaf)[:_EXAMPLE_ROWS]), inputs)


def _log_stopping(api: KerasApi, callbacks: Any) -> None:
    for item in getattr(callbacks, "callbacks", callbacks):
        if isinstance(item, api.keras.callbacks.EarlyStopping) and item.stopped_epoch:
            restored = {"restored_epoch": item.best_epoch} if item.restore_best_weights else {}
            mlflow.log_metrics({"stopped_epoch": item.stopped_epoch, **restored})


def _log_dataset(x: Any, y: Any, first: Any, context: str, model_id: str | None) -> None:
    try:
        dataset = _dataset(x, y, first)
        if dataset is not None:
            mlflow.log_input(dataset, context, model=LoggedModelInput(model_id=model_id) if model_id else None)
    except Exception as error:
        _logger.warning("Which data was used could not be logged: %s", error)


def _dataset(x: Any, y: Any, first: Any) -> Any:
    """MLflow's description of the data, or ``None`` if it has none for that kind; nothing is iterated in full."""
    if hasattr(x, "element_spec"):
        batch = first if first is not None else next(iter(x.take(1)), None)
        leaves = [np.asarray(leaf) for leaf in _leaves(batch)]
        from_tensorflow = importlib.import_module("mlflow.data.tensorflow_dataset").from_tensorflow
        return from_tensorflow(features=x, digest=_digest(leaves))
    if not _is_arrays(x) or x is None:
        return None
    features, targets = _named(x), None if y is None else _named(y)
    leaves = [*_leaves(features), *_leaves(targets)]
    from_numpy = importlib.import_module("mlflow.data.numpy_dataset").from_numpy
    return from_numpy(features=features, targets=targets, digest=_digest(leaves))


def _named(data: Any) -> Any:
    if isinstance(data, list | tuple):
        data = {f"input_{number}": item for number, item in enumerate(data)}
    if isinstance(data, Mapping):
        return {key: np.asarray(item) for key, item in data.items()}
    return np.asarray(data)


def _digest(arrays: list[Any]) -> str:
    """A digest of shapes and first values: MLflow's own copies whole arrays and iterates over whole datasets."""
    digest = hashlib.sha256()
    for array in arrays:
        values = array.reshape(-1)[:_DIGESTED_VALUES]
        content = values.astype(str).tobytes() if values.dtype == object else np.ascontiguousarray(values).tobytes()
        digest.update(f"{array.shape}{array.dtype}".encode() + content)
    return digest.hexdigest()[:8]
