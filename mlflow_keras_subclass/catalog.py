"""The logged models of this flavor in a tracking store. Imports flavor for its tags; imports no Keras."""

from __future__ import annotations

from typing import Any

import mlflow
from mlflow.entities import LoggedModel

from mlflow_keras_subclass.errors import KerasSubclassError
from mlflow_keras_subclass.flavor import DIGEST_TAG, PROOF_TAG

__all__ = ["logged_models"]


def logged_models(experiment: str | None) -> list[dict[str, Any]]:
    """A row for each, newest first: ID, name, class, commit, dirty, proof, metrics.

    Raises:
        KerasSubclassError: There is no such experiment.
    """
    client = mlflow.MlflowClient()
    if experiment is None:
        ids = [item.experiment_id for item in client.search_experiments()]
    else:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise KerasSubclassError(f"There is no experiment {experiment!r} in {mlflow.get_tracking_uri()}.")
        ids = [found.experiment_id]
    models = mlflow.search_logged_models(
        experiment_ids=ids, filter_string=f"tags.`{DIGEST_TAG}` LIKE '%'", output_format="list"
    )
    return [_row(model) for model in models]


def _row(model: LoggedModel) -> dict[str, Any]:
    return {
        "model_id": model.model_id,
        "name": model.name,
        "model_class": model.params.get("model_class"),
        "git_commit": model.params.get("git_commit"),
        "git_dirty": model.params.get("git_dirty"),
        "proof": model.tags.get(PROOF_TAG),
        "metrics": {metric.key: metric.value for metric in model.metrics or ()},
    }
