"""``check`` and ``export``: what would not come back, before training; and the way out to Keras' own formats.

``check`` is the real way of writing, into a directory that is thrown away. Imports staging, flavor and below; imports
no Keras itself.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow_keras_subclass import flavor, model_dir
from mlflow_keras_subclass.downloads import downloaded
from mlflow_keras_subclass.errors import CaptureError, Finding, KerasSubclassError, ProofError
from mlflow_keras_subclass.manifest import DATA_DIR, PROOF_FILE
from mlflow_keras_subclass.pyfunc import open_verified
from mlflow_keras_subclass.staging import scratch
from mlflow_keras_subclass.trust import TrustPolicy

__all__ = ["CheckResult", "check", "export"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What ``check`` found: nothing if ``ok``; ``compared`` says what was proven to come back."""

    ok: bool
    findings: tuple[Finding, ...]
    compared: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        """The findings, one a line, each with the line of the source where it is known."""
        if self.ok:
            counts = ", ".join(f"{self.compared[key]} {key}" for key in ("layers", "variables", "attributes"))
            return f"The model comes back as it is: compared {counts}, and what it answers."
        return "\n".join(map(str, self.findings))


def check(model: Any, input_example: Any = None, **options: Any) -> CheckResult:
    """Say in seconds what of ``model`` would not come back if it was logged now, and how to mend it.

    The model is written as ``save_model`` would, rebuilt in an isolated process, compared, and thrown away. A model
    that was not called yet needs ``input_example``, on which it is called once.

    Args:
        model: The model, trained or not.
        input_example: An input of the model.
        **options: Arguments of ``save_model``: ``config``, ``custom_objects``, ``code_paths``.
    """
    try:
        if input_example is not None and not getattr(model, "built", True):
            model(input_example)
        with scratch(None) as root:
            flavor.save_model(model, root / "model", input_example=input_example, **options)
            compared = json.loads((root / "model" / DATA_DIR / PROOF_FILE).read_text(encoding="utf-8"))
    except KerasSubclassError as error:
        return CheckResult(ok=False, findings=_findings(model, error), compared={})
    return CheckResult(ok=True, findings=(), compared=compared)


def _findings(model: Any, error: KerasSubclassError) -> tuple[Finding, ...]:
    if isinstance(error, CaptureError):
        return error.findings
    if isinstance(error, ProofError):
        return model_dir.located(model, error.paths, str(error.message))
    return (Finding(path="model", problem=str(error.message)),)


def export(model_uri: str | Path, target: str | Path) -> Path:
    """Write a logged model in a format of Keras' own, for those who leave this flavor.

    Args:
        model_uri: See ``load_model``.
        target: ``FILE.keras``, ``FILE.weights.h5``, or a directory for a SavedModel.

    Raises:
        KerasSubclassError: ``target`` is there already, or the model cannot be loaded.
    """
    path = Path(target)
    if path.exists():
        raise KerasSubclassError(f"{path} is there already. Give a name that is not taken.")
    with downloaded(model_uri) as root:
        model = flavor.load_model(root)
        if path.name.endswith(".weights.h5"):
            model.save_weights(path)
        elif path.suffix == ".keras":
            model.save(path)
        else:
            inputs, _ = model_dir.read_specs(open_verified(root, TrustPolicy.from_environment()))
            if inputs is not None:
                # Keras takes the signature of the graph from a call.
                model_dir.call_on_zeros(model, inputs)
            model.export(str(path), verbose=False)
    return path
