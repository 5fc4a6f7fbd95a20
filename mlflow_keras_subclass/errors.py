"""Every error that this package raises on purpose; imports nothing of ours.

One class for each thing a caller can do about it. The text says what, where, expected, got, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

__all__ = [
    "CaptureError",
    "CheckpointError",
    "ClassDefinitionError",
    "DeviceError",
    "Finding",
    "FormatError",
    "GraphError",
    "IntegrityError",
    "KerasSubclassError",
    "ModelFailure",
    "PredictError",
    "ProofError",
    "ProvenanceError",
    "RebuildError",
    "UntrustedCodeError",
]


class KerasSubclassError(MlflowException):
    """Base of the errors below; an ``MlflowException`` with the code ``INVALID_PARAMETER_VALUE``."""

    def __init__(self, message: str) -> None:
        """Keep ``message`` as it is; MLflow's REST layer turns the code into a 400."""
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that keeps a model from coming back the same.

    Attributes:
        path: What it is about: an attribute path, an argument, or ``model``.
        problem: What is wrong, and what to do.
        source: File and line of the user's source, where they are known.
    """

    path: str
    problem: str
    source: str | None = None

    def __str__(self) -> str:
        return f"{self.path}{f' ({self.source})' if self.source else ''}: {self.problem}"


class CaptureError(KerasSubclassError):
    """The model cannot be stored so that it would come back the same: change the model or state ``config=``.

    ``findings`` are all reasons that were found.
    """

    def __init__(self, message: str, *, findings: Sequence[Finding] = ()) -> None:
        """Keep ``message``; without ``findings`` it is the one finding, its path before the first colon."""
        super().__init__(message)
        path, _, problem = message.partition(": ")
        self.findings = tuple(findings) or (Finding(path=path, problem=problem),)


class CheckpointError(KerasSubclassError):
    """There is no such checkpoint, or the way to make checkpoints is not one there is."""


class ClassDefinitionError(KerasSubclassError):
    """The class definition cannot be shipped or brought back: change the source or bring your own class."""


class DeviceError(KerasSubclassError):
    """The device asked for is not present in this process."""


class FormatError(KerasSubclassError):
    """A file of the artifact does not have the form that its format version promises."""


class GraphError(KerasSubclassError):
    """The model cannot be written as a graph, or has none to serve: leave ``export_graph`` out, or serve the class."""


class IntegrityError(KerasSubclassError):
    """A file of the artifact is missing, added or changed since it was logged."""


class ModelFailure(MlflowException):
    """The model raised an error that is not its client's: a server answers 500."""

    def __init__(self, message: str) -> None:
        """Keep ``message`` as it is; MLflow's REST layer turns the code into a 500."""
        super().__init__(message, error_code=INTERNAL_ERROR)


class PredictError(KerasSubclassError):
    """The data given to ``predict`` does not fit what the model takes."""


class _DifferingError(KerasSubclassError):
    """``paths`` are the layers and attributes that differ, where it is these."""

    def __init__(self, message: str, *, paths: Sequence[str] = ()) -> None:
        """Keep both as they are."""
        super().__init__(message)
        self.paths = tuple(paths)


class ProofError(_DifferingError):
    """What was written does not come back as the model that was to be logged; nothing was logged.

    ``paths`` are the layers and attributes that differ, where it is these.
    """


class ProvenanceError(KerasSubclassError):
    """The source of a model cannot be put back, or is not what the model says it is; nothing was left behind."""


class RebuildError(_DifferingError):
    """The class was brought back, but the model built from it is not the model that was logged.

    ``paths`` are the layers and attributes that differ, where it is these.
    """


class UntrustedCodeError(KerasSubclassError):
    """Loading would run code from the artifact, and the caller or the environment forbids that."""
