"""Every error that this package raises on purpose; imports nothing of ours.

One class for each thing a caller can do about it. The text says what, where, expected, got, and what to do.
"""

from __future__ import annotations

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

__all__ = [
    "CaptureError",
    "CheckpointError",
    "ClassDefinitionError",
    "DeviceError",
    "FormatError",
    "IntegrityError",
    "KerasSubclassError",
    "ModelFailure",
    "PredictError",
    "ProofError",
    "RebuildError",
    "UntrustedCodeError",
]


class KerasSubclassError(MlflowException):
    """Base of the errors below; an ``MlflowException`` with the code ``INVALID_PARAMETER_VALUE``."""

    def __init__(self, message: str) -> None:
        """Keep ``message`` as it is; MLflow's REST layer turns the code into a 400."""
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)


class CaptureError(KerasSubclassError):
    """The model cannot be stored so that it would come back the same: change the model or state ``config=``."""


class CheckpointError(KerasSubclassError):
    """There is no such checkpoint, or the way to make checkpoints is not one there is."""


class ClassDefinitionError(KerasSubclassError):
    """The class definition cannot be shipped or brought back: change the source or bring your own class."""


class DeviceError(KerasSubclassError):
    """The device asked for is not present in this process."""


class FormatError(KerasSubclassError):
    """A file of the artifact does not have the form that its format version promises."""


class IntegrityError(KerasSubclassError):
    """A file of the artifact is missing, added or changed since it was logged."""


class ModelFailure(MlflowException):
    """The model raised an error that is not its client's: a server answers 500."""

    def __init__(self, message: str) -> None:
        """Keep ``message`` as it is; MLflow's REST layer turns the code into a 500."""
        super().__init__(message, error_code=INTERNAL_ERROR)


class PredictError(KerasSubclassError):
    """The data given to ``predict`` does not fit what the model takes."""


class ProofError(KerasSubclassError):
    """What was written does not come back as the model that was to be logged; nothing was logged."""


class RebuildError(KerasSubclassError):
    """The class was brought back, but the model built from it is not the model that was logged."""


class UntrustedCodeError(KerasSubclassError):
    """Loading would run code from the artifact, and the caller or the environment forbids that."""
