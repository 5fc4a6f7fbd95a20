"""What keeps a model from being stored so that it comes back: collected from every step, raised as one error.

Imports nothing else of ``model_dir``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from mlflow_keras_subclass.artifacts.class_definition import is_user_defined
from mlflow_keras_subclass.errors import CaptureError, ClassDefinitionError, Finding
from mlflow_keras_subclass.keras_api import for_model
from mlflow_keras_subclass.model_tree import ModelTree, walk
from mlflow_keras_subclass.source_lines import line_of_attribute, line_of_class

__all__ = ["Findings", "located", "refuse"]


class Findings:
    """All that is in the way of storing a model, from every step, for one error."""

    def __init__(self, tree: ModelTree) -> None:
        self._tree = tree
        self._errors: list[CaptureError | ClassDefinitionError] = []

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """A refusal inside is kept for ``raise_any``, which must be called before the step's result is used."""
        try:
            yield
        except (CaptureError, ClassDefinitionError) as error:
            self._errors.append(error)

    def raise_any(self) -> None:
        """Raise what was collected: the error itself where there is one, else one with all findings."""
        if len(self._errors) == 1 and isinstance(self._errors[0], ClassDefinitionError):
            raise self._errors[0]
        found = [finding for error in self._errors for finding in self._of(error)]
        if found:
            listed = "".join(f"\n- {finding}" for finding in found)
            message = f"The model cannot be stored so that it comes back the same:{listed}"
            raise CaptureError(message, findings=found) from self._errors[0]

    def _of(self, error: CaptureError | ClassDefinitionError) -> Iterator[Finding]:
        if isinstance(error, ClassDefinitionError):
            yield Finding(path="class definition", problem=error.message)
            return
        yield from map(self.located, error.findings)

    def located(self, finding: Finding) -> Finding:
        """``finding`` with the line of the user's source, where it is known."""
        return replace(finding, source=finding.source or self._line(finding.path))

    def _line(self, path: str) -> str | None:
        """The line of the user's source that sets what ``path`` names, or that of the model's constructor."""
        model = self._tree.owners[""]
        steps = path
        while place := self._tree.place(steps):
            if isinstance(place.key, str) and not place.is_item and is_user_defined(type(place.owner)):
                return line_of_attribute(place.owner, place.key) or line_of_class(type(place.owner))
            steps = steps[: steps.rindex("[")] if place.is_item else steps.rpartition(".")[0]
        return line_of_class(type(model)) if is_user_defined(type(model)) else None


def located(model: Any, paths: Sequence[str], problem: str) -> tuple[Finding, ...]:
    """A finding for each of ``paths``, or one for the model, with the lines of the user's source that set them."""
    findings = Findings(walk(for_model(model), model, is_user_defined))
    # What lies below another one comes back with it.
    outer = [path for path in paths if not path.startswith(tuple(f"{other}{mark}" for other in paths for mark in ".["))]
    return tuple(findings.located(Finding(path=path or "model", problem=problem)) for path in outer or ("",))


def refuse(model: Any, tree: ModelTree) -> None:
    """Raise one ``CaptureError`` with all findings that make the model impossible to restore."""
    findings = [
        Finding(
            path=path,
            problem="a set holds several layers or variables, which have no order and no name. Use a list or a dict.",
        )
        for path in tree.unordered
    ]
    if len(tree.layers) > 1 and not any(layer.built for layer in tree.layers.values()):
        problem = (
            f"{type(model).__qualname__} was never called, so its layers have no weights yet. Call it once on data, or "
            "fit it, before logging."
        )
        findings.append(Finding(path="model", problem=problem))
    if findings:
        raise CaptureError("; ".join(map(str, findings)), findings=findings)
