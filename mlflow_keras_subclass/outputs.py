"""The form in which predictions leave: one array, a list of arrays, or a dict of arrays by name.

The same rule names the outputs in the signature, so it is written once, for values and for specs alike. Imports errors
and specs. Must not import Keras or MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlflow_keras_subclass.errors import PredictError
from mlflow_keras_subclass.specs import ArraySpec, Constant, Record, Structure

__all__ = ["flattened", "in_form", "json_safe", "named_specs", "returns_logits"]


def flattened(value: Any) -> Any:
    """``value`` with at most one level: a leaf as it is, a flat list or tuple as a list, anything else as a dict.

    Names are the keys of dicts, the field names of named tuples and, joined by ``_``, both for nesting:
    ``{"a": (x, y)}`` gives ``a_0`` and ``a_1``; a list that holds containers gives ``output_0_…``.
    """
    children = _children(value)
    if children is None:
        return value
    plain = isinstance(value, list | tuple) and not hasattr(value, "_fields")
    if plain and all(_children(item) is None for _, item in children):
        return [item for _, item in children]
    return dict(_walk(value, ("output",) if plain else ()))


def named_specs(structure: Structure) -> dict[str | None, ArraySpec]:
    """The arrays of an output structure by name; the one array of a model with one output has the name ``None``."""
    flat = flattened(structure)
    if isinstance(flat, ArraySpec):
        return {None: flat}
    if isinstance(flat, list):
        flat = {f"output_{number}": item for number, item in enumerate(flat)}
    return {name: item for name, item in flat.items() if isinstance(item, ArraySpec)} if isinstance(flat, dict) else {}


def json_safe(value: Any) -> Any:
    """``value`` with ``None`` where a float array has NaN or an infinity, which JSON cannot express."""
    if isinstance(value, dict):
        return {name: json_safe(item) for name, item in value.items()}
    if isinstance(value, list):
        return [json_safe(item) for item in value]
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        finite = np.isfinite(value)
        if not finite.all():
            value = value.astype(object)
            value[~finite] = None
    return value


def in_form(form: str, outputs: Any, *, from_logits: bool | None) -> Any:
    """Scores of a classifier as ``class`` numbers or as ``proba``; one score a row is that of class 1 of two.

    Raises:
        PredictError: There is no such form of these outputs.
    """
    scores = _scores(form, outputs)
    several = scores.ndim > 1 and scores.shape[-1] > 1
    if form == "class" and several:
        return scores.argmax(axis=-1)
    if from_logits is None:
        raise PredictError(
            f"output={form!r}: it is not known whether the model returns logits or probabilities. Log it with "
            'model_config={"from_logits": True} or False, or load it so.'
        )
    if form == "class":
        ones = scores > (0 if from_logits else 0.5)
        return (ones[..., 0] if scores.ndim > 1 else ones).astype(np.int64)
    if not from_logits:
        return scores
    return _softmax(scores) if several else _sigmoid(scores)


def returns_logits(outputs: Any) -> bool | None:
    """Whether scores of several classes are logits, by their values; ``None`` where values cannot tell."""
    if not isinstance(outputs, np.ndarray) or outputs.ndim < 2 or outputs.shape[-1] < 2 or not outputs.size:
        return None
    sums = outputs.sum(axis=-1, dtype=np.float64)
    return not bool((outputs >= 0).all() and np.allclose(sums, 1, atol=1e-2))


def _scores(form: str, outputs: Any) -> np.ndarray[Any, Any]:
    if isinstance(outputs, np.ndarray) and outputs.dtype.kind == "f" and outputs.ndim:
        return outputs
    got = f"an array of {outputs.dtype}" if isinstance(outputs, np.ndarray) else f"a {type(outputs).__name__}"
    raise PredictError(f"output={form!r}: expected a model that returns one array of scores, got {got}.")


def _softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: np.ndarray[Any, Any] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return found


def _sigmoid(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    # Either branch alone overflows at one end.
    small = np.exp(-np.abs(logits))
    found: np.ndarray[Any, Any] = np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(logits.dtype)
    return found


def _children(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    if isinstance(value, Record):
        return list(zip(value.fields, value.items, strict=True))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return [(str(number), item) for number, item in enumerate(value)]
    return None


def _walk(value: Any, path: tuple[str, ...]) -> list[tuple[str, Any]]:
    children = _children(value)
    if children is None:
        empty = value is None or (isinstance(value, Constant) and value.value is None)
        return [] if empty else [("_".join(path), value)]
    return [pair for name, item in children for pair in _walk(item, (*path, name))]
