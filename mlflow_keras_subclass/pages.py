"""The comparison of two models as a web page. Imports differences and markup; no Keras, no MLflow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mlflow_keras_subclass.differences import ModelDifference
from mlflow_keras_subclass.markup import chips, code, collapsible, document, section, table

__all__ = ["difference_page"]

_SHOWN = 400


def difference_page(found: ModelDifference, *, left: str, right: str) -> str:
    """The page for two models, named ``left`` and ``right``."""
    body = ["<h1>What differs</h1>", chips([f"left: {left}", f"right: {right}"])]
    if found.is_empty:
        body.append("<p>Nothing: the same model in the same environment.</p>")
    if found.source:
        parts = [collapsible(item.path, code(item.diff, "diff"), is_open=True) for item in found.source]
        body.append(section("Source", *parts))
    for name in ("config", "git", "environment", "signature"):
        values = getattr(found, name)
        if values:
            rows = [(item.path, _text(item.left), _text(item.right)) for item in values]
            body.append(section(name.capitalize(), table(("what", "left", "right"), rows)))
    if found.weights:
        body.append(section("Weights", _weights(found.weights)))
    return document("What differs", body)


def _weights(weights: Sequence[Any]) -> str:
    columns = ("variable", "left", "right", "‖left‖", "‖right‖", "‖change‖", "largest change")
    rows = [
        (item.path, item.left or "–", item.right or "–", *map(_number, (item.left_norm, item.right_norm)),
         _number(item.distance), _number(item.largest))
        for item in weights
    ]  # fmt: skip
    return table(columns, rows, numbers=(3, 4, 5, 6))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _text(value: Any) -> str:
    text = "–" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
