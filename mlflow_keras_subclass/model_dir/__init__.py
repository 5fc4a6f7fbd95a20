"""The two flows, in order: ``write`` a model's part of an artifact, ``rebuild`` the model from a verified one.

Reads like the table of contents; each step is a part in ``artifacts``. Imports everything below it, and of MLflow its
exception only.
"""

from mlflow_keras_subclass.model_dir.comparing import (
    compare,
    load_graph,
    read_specs,
    unchanged,
    verify_graph,
    verify_predictions,
)
from mlflow_keras_subclass.model_dir.findings import located
from mlflow_keras_subclass.model_dir.rebuilding import call_on_zeros, rebuild, restore_variables
from mlflow_keras_subclass.model_dir.writing import ModelFacts, add_json, write

__all__ = [
    "ModelFacts",
    "add_json",
    "call_on_zeros",
    "compare",
    "load_graph",
    "located",
    "read_specs",
    "rebuild",
    "restore_variables",
    "unchanged",
    "verify_graph",
    "verify_predictions",
    "write",
]
