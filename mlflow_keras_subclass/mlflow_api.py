"""Every name of MLflow that is not public and that this package uses, in one place; a test notices when one moves.

MLflow has no public way to write an autologging integration: these are what its own integrations are made of, with
compatible signatures from MLflow 2.0 to 3.17. Imports nothing of ours, and no Keras.
"""

from __future__ import annotations

from typing import Any

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.utils.autologging_utils import (
    AUTOLOGGING_INTEGRATIONS,
    autologging_integration,
    autologging_is_disabled,
    log_fn_args_as_params,
)
from mlflow.utils.autologging_utils.safety import safe_patch
from mlflow.utils.checkpoint_utils import MlflowModelCheckpointCallbackBase

__all__ = [
    "LocalArtifactRepository",
    "MlflowModelCheckpointCallbackBase",
    "autologging_config",
    "autologging_integration",
    "autologging_is_disabled",
    "get_artifact_repository",
    "keras_model_signature",
    "log_fn_args_as_params",
    "safe_patch",
]


def autologging_config(integration: str) -> dict[str, Any] | None:
    """The arguments of the last ``autolog()`` of an integration that is on, or ``None``."""
    # Its own getter answers one key at a time, and does not tell "off" from "never called".
    config = AUTOLOGGING_INTEGRATIONS.get(integration)
    return None if not config or autologging_is_disabled(integration) else dict(config)


def keras_model_signature(model: Any) -> Any:
    """The signature that ``mlflow.keras`` gives a Functional or Sequential model, or ``None``; imports Keras."""
    from mlflow.keras.utils import get_model_signature

    try:
        return get_model_signature(model)
    except Exception:
        # As in mlflow.keras.autolog: a Sequential model without an input shape has none to tell.
        return None
