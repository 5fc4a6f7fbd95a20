"""``ModelCheckpoint``: each checkpoint of a training is a logged model, with its step and metrics.

The one module beside the seam that imports Keras, because a callback must be a subclass of Keras' own; the package
imports it when ``mlflow_keras_subclass.ModelCheckpoint`` is first asked for. Imports checkpoints and what is below.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import mlflow
from mlflow.exceptions import MlflowException

from mlflow_keras_subclass import flavor, mlflow_api, model_dir
from mlflow_keras_subclass.checkpoints import BEST_TAG, EPOCH_TAG, STEP_TAG, check_schedule
from mlflow_keras_subclass.downloads import downloaded
from mlflow_keras_subclass.errors import CheckpointError, KerasSubclassError
from mlflow_keras_subclass.pyfunc import open_verified
from mlflow_keras_subclass.trust import TrustPolicy

__all__ = ["AutologCheckpoint", "ModelCheckpoint"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saved:
    model_id: str
    model_uri: str
    value: float | None


class ModelCheckpoint(keras.callbacks.Callback):  # type: ignore[misc] # Keras carries no types
    """Log the model as it trains; each checkpoint is a logged model of the run, searchable by its metrics.

    Where there is no active run, one is started for the training. The first checkpoint is proven to come back before
    training goes on; later ones are of the same class. A checkpoint that cannot be stored raises; a tracking server
    that does not answer after the first checkpoint is a warning, and training goes on.

    Args:
        monitor: The metric that tells which checkpoint is best.
        mode: Whether its ``min`` or ``max`` is best; ``auto`` tells by the name, as Keras does.
        save_best_only: Whether to log only checkpoints that are better than all before.
        save_weights_only: Whether to leave out the optimizer's state: smaller, but training cannot go on exactly.
        save_freq: ``"epoch"``, or a number of batches after which to log.
        keep_last: Number of newest checkpoints to keep beside the best; older ones are deleted with their files.
        restore_best: Whether the model gets the variables of its best checkpoint when training ends.
        registered_model_name: Registers the best checkpoint, or the last if none is, under this name at the end.
        name: Name of the logged models.
        prove_all: Whether to prove every checkpoint.
        **log_options: Arguments of ``log_model`` for every checkpoint: ``input_example``, ``code_paths``, ``tags``.

    Raises:
        CheckpointError: An argument is not one of the above.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        mode: str = "auto",
        save_best_only: bool = False,
        save_weights_only: bool = False,
        save_freq: int | str = "epoch",
        keep_last: int | None = None,
        restore_best: bool = False,
        registered_model_name: str | None = None,
        name: str = "checkpoint",
        prove_all: bool = False,
        **log_options: Any,
    ) -> None:
        super().__init__()
        check_schedule(mode, save_freq)
        if keep_last is not None and keep_last < 1:
            raise CheckpointError(f"keep_last: expected None or a number from 1, got {keep_last!r}.")
        self.monitor = monitor
        self.mode = mode if mode != "auto" else _mode_of(monitor)
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq = save_freq
        self.keep_last = keep_last
        self.restore_best = restore_best
        self.registered_model_name = registered_model_name
        self.name = name
        self.prove_all = prove_all
        self.log_options = log_options
        self._start_over()

    def _start_over(self) -> None:
        self._saved: list[_Saved] = []
        self._best: _Saved | None = None
        self._started_run = False
        self._has_warned = False
        self._first_epoch: int | None = None
        self._epoch = 0
        self._batches = 0
        self._last_batch = -1
        self._since_saved = 0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Start a run if there is none; a callback may be used for several trainings."""
        self._start_over()
        if mlflow.active_run() is None:
            mlflow.start_run()
            self._started_run = True

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note where training is; a resumed one goes on counting where it was left."""
        if self._first_epoch is None:
            self._first_epoch = epoch
            self._batches = epoch * (self.params.get("steps") or 0)
        self._epoch, self._last_batch = epoch, -1

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count, and log every ``save_freq`` batches."""
        # With steps_per_execution, a batch is reported for several.
        new = batch - self._last_batch
        self._last_batch = batch
        self._batches += new
        self._since_saved += new
        if isinstance(self.save_freq, int) and self._since_saved >= self.save_freq:
            self._since_saved = 0
            self._checkpoint(logs, step=self._batches)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Log at the end of every epoch, if that is the frequency."""
        if self.save_freq == "epoch":
            # The step of the epoch's metrics, as MLflow's own callback logs them.
            self._checkpoint(logs, step=epoch)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Restore and register the best, and end a run that was started here."""
        chosen = self._best or (self._saved[-1] if self._saved else None)
        try:
            if self.restore_best and self._best is not None:
                _restore(self.model, self._best.model_uri)
            if self.registered_model_name and chosen:
                mlflow.register_model(chosen.model_uri, self.registered_model_name)
        finally:
            if self._started_run:
                mlflow.end_run()

    def _checkpoint(self, logs: Mapping[str, Any] | None, *, step: int) -> None:
        metrics = {key: float(value) for key, value in (logs or {}).items()}
        value = metrics.get(self.monitor)
        if value is None and (self.save_best_only or self.restore_best) and not self._has_warned:
            self._has_warned = True
            _logger.warning("%s is not among the metrics %s: which checkpoint is best is not known.",
                            self.monitor, ", ".join(metrics))  # fmt: skip
        improved = value is not None and self._improves(value)
        if self.save_best_only and not improved:
            return
        try:
            self._keep(self._log(metrics, value, step=step, best=improved), improved=improved)
        except (MlflowException, OSError) as error:
            if isinstance(error, KerasSubclassError) or not self._saved:
                raise
            _logger.warning("A checkpoint of epoch %s could not be logged, training goes on: %s", self._epoch, error)

    def _improves(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if self._best is None or self._best.value is None:
            return True
        return value < self._best.value if self.mode == "min" else value > self._best.value

    def _log(self, metrics: Mapping[str, float], value: float | None, *, step: int, best: bool) -> _Saved:
        options = dict(self.log_options)
        options["tags"] = {
            **(options.get("tags") or {}),
            EPOCH_TAG: str(self._epoch),
            STEP_TAG: str(self._batches),
            BEST_TAG: str(best).lower(),
        }
        options.setdefault("prove", self.prove_all or not self._saved)
        info = flavor.log_model(
            self.model, name=self.name, step=step, include_optimizer=not self.save_weights_only, **options
        )
        present = {item.key for item in mlflow.get_logged_model(info.model_id).metrics or ()}
        mlflow.log_metrics(
            {key: item for key, item in metrics.items() if key not in present}, step=step, model_id=info.model_id
        )
        return _Saved(model_id=info.model_id, model_uri=info.model_uri, value=value)

    def _keep(self, saved: _Saved, *, improved: bool) -> None:
        self._saved.append(saved)
        if improved:
            if self._best is not None:
                mlflow.MlflowClient().set_logged_model_tags(self._best.model_id, {BEST_TAG: "false"})
            self._best = saved
        if self.keep_last is not None:
            for old in self._saved[: -self.keep_last]:
                if old is not self._best:
                    self._saved.remove(old)
                    _delete(old.model_id)


class AutologCheckpoint(ModelCheckpoint):
    """What ``autolog(checkpoint=True)`` adds: an error is a warning, and training goes on without checkpoints."""

    def _start_over(self) -> None:
        super()._start_over()
        self._has_failed = False

    def _checkpoint(self, logs: Mapping[str, Any] | None, *, step: int) -> None:
        if self._has_failed:
            return
        try:
            super()._checkpoint(logs, step=step)
        except Exception as error:
            self._has_failed = True
            _logger.warning("Training goes on without checkpoints, since one could not be logged: %s", error)


def _mode_of(monitor: str) -> str:
    rising = ("acc", "auc", "precision", "recall", "f1", "fmeasure", "iou", "dice")
    return "max" if any(word in monitor.lower() for word in rising) else "min"


def _delete(model_id: str) -> None:
    """Delete a checkpoint and its files: MLflow itself keeps those until ``mlflow gc``."""
    client = mlflow.MlflowClient()
    location = client.get_logged_model(model_id).artifact_location
    client.delete_logged_model(model_id)
    try:
        mlflow_api.get_artifact_repository(location).delete_artifacts()
    except NotImplementedError:
        _logger.warning("The files of %s stay in %s: that store cannot delete them.", model_id, location)


def _restore(model: Any, model_uri: str) -> None:
    with downloaded(model_uri) as root:
        model_dir.restore_variables(open_verified(root, TrustPolicy.from_environment()), model)
