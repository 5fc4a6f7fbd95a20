"""Checkpoints are logged models of a run with tags that say which: found, compared and loaded here.

Nothing here trains or imports Keras; the callback that makes checkpoints is in ``callbacks``. Imports flavor and
everything below it.
"""

from __future__ import annotations

import re
from typing import Any

import mlflow
from mlflow.entities import LoggedModel

from mlflow_keras_subclass.errors import CheckpointError
from mlflow_keras_subclass.flavor import load_model
from mlflow_keras_subclass.trust import TrustPolicy

__all__ = ["BEST_TAG", "EPOCH_TAG", "STEP_TAG", "check_schedule", "find_checkpoints", "load_checkpoint"]

EPOCH_TAG = "mlflow_keras_subclass.epoch"
STEP_TAG = "mlflow_keras_subclass.step"
BEST_TAG = "mlflow_keras_subclass.best"

_RUN_ID = re.compile(r"[0-9a-zA-Z_-]+")


def check_schedule(mode: str, save_freq: int | str) -> None:
    """Raise ``CheckpointError`` for a ``mode`` or ``save_freq`` that ``ModelCheckpoint`` does not know."""
    if mode not in ("auto", "min", "max"):
        raise CheckpointError(f"mode: expected 'auto', 'min' or 'max', got {mode!r}.")
    if save_freq != "epoch" and not (isinstance(save_freq, int) and save_freq > 0):
        raise CheckpointError(f"save_freq: expected 'epoch' or a number of batches from 1, got {save_freq!r}.")


def find_checkpoints(run_id: str, *, monitor: str | None = None, mode: str = "min") -> list[LoggedModel]:
    """The checkpoints of a run: the newest first, or the best of ``monitor`` first.

    Args:
        run_id: The run that trained the model.
        monitor: A metric of the checkpoints to order by, such as ``val_loss``.
        mode: Whether the ``min`` or the ``max`` of it is best.

    Raises:
        CheckpointError: ``run_id`` is no ID of a run.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise CheckpointError(f"run_id: expected the ID of a run, got {run_id!r}.")
    found = mlflow.search_logged_models(
        experiment_ids=[mlflow.get_run(run_id).info.experiment_id],
        filter_string=f"source_run_id = '{run_id}' AND tags.`{STEP_TAG}` LIKE '%'",
        order_by=[{"field_name": f"metrics.{monitor}", "ascending": mode == "min"}] if monitor else None,
        output_format="list",
    )
    return found if monitor else sorted(found, key=_age, reverse=True)


def _age(checkpoint: LoggedModel) -> tuple[int, int]:
    return int(checkpoint.tags[STEP_TAG]), checkpoint.creation_timestamp


def load_checkpoint(
    run_id: str,
    *,
    epoch: int | None = None,
    step: int | None = None,
    best: bool = False,
    custom_objects: dict[str, Any] | None = None,
    device: str | None = None,
    trust_policy: TrustPolicy | None = None,
) -> Any:
    """Load one checkpoint that ``ModelCheckpoint`` logged, to evaluate it or to go on training from it.

    ``fit(…, initial_epoch=epoch + 1)`` then goes on exactly where the checkpoint was taken: optimizers, schedules,
    seeds and metrics are as they were.

    Args:
        run_id: The run that trained the model.
        epoch: The epoch at whose end it was taken, from 0 as Keras counts.
        step: The number of batches after which it was taken.
        best: The best by the callback's ``monitor``. With none of the three, the newest.
        custom_objects: See ``load_model``.
        device: See ``load_model``.
        trust_policy: See ``load_model``.

    Raises:
        CheckpointError: The run has no such checkpoint, or more than one of the three was asked for.
        KerasSubclassError: It cannot be loaded; see ``load_model``.
    """
    wanted = {"epoch": epoch, "step": step, "best": best or None}
    asked = {name: value for name, value in wanted.items() if value is not None}
    if len(asked) > 1:
        raise CheckpointError(f"load_checkpoint: expected one of epoch, step and best, got {', '.join(asked)}.")
    checkpoints = find_checkpoints(run_id)
    matching = [item for item in checkpoints if _matches(item, asked)]
    if not matching:
        there = ", ".join(f"{item.tags[EPOCH_TAG]} (step {item.tags[STEP_TAG]})" for item in reversed(checkpoints))
        text = ", ".join(f"{name}={value}" for name, value in asked.items())
        raise CheckpointError(f"Run {run_id} has no checkpoint with {text or 'any'}; epochs there: {there or 'none'}.")
    return load_model(matching[0].model_uri, custom_objects=custom_objects, device=device, trust_policy=trust_policy)


def _matches(checkpoint: LoggedModel, asked: dict[str, Any]) -> bool:
    tags = {"epoch": EPOCH_TAG, "step": STEP_TAG, "best": BEST_TAG}
    expected = {name: "true" if value is True else str(value) for name, value in asked.items()}
    return all(checkpoint.tags.get(tags[name]) == value for name, value in expected.items())
