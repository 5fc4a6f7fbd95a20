"""The keys of ``model_config``: how a model is served, declared when it is logged.

MLflow passes only declared keys on, so every key is written, with its value or its default. Imports errors; must not
import Keras or MLflow.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlflow_keras_subclass.errors import KerasSubclassError, PredictError

__all__ = ["DEVICE_VARIABLE", "ENGINES", "OUTPUT_FORMS", "PREDICT_PARAMS", "ServingOptions"]

DEVICE_VARIABLE = "MLFLOW_KERAS_SUBCLASS_DEVICE"
ENGINES = ("class", "graph")
OUTPUT_FORMS = ("raw", "class", "proba")
PREDICT_PARAMS = frozenset({"batch_size", "output"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """How a model is served.

    Attributes:
        allow_nan: A server takes NaN and infinities, which is also what ``null`` and numbers out of range become in
            MLflow's hands, instead of refusing them.
        batch_size: Rows of one call of the model; larger inputs are cut. ``None`` never cuts.
        device: ``cpu``, ``gpu``, ``gpu:1``, or ``auto``, which leaves it to ``MLFLOW_KERAS_SUBCLASS_DEVICE`` and
            then to the backend.
        engine: ``class``, the model rebuilt from its class; or ``graph``, the graph that ``export_graph`` stored.
        from_logits: Whether the model returns logits and not probabilities; ``None`` if that is not known, and then
            no output form needs it.
        jit_compile: Compile with XLA, which compiles again for every new batch size.
        output: ``raw``, as the model returns it; ``class``, the number of the most likely class; or ``proba``,
            probabilities.
        predict_fn: The method that is called, with the inputs that ``call`` takes. ``call`` is run as Keras runs it;
            another one as it is, so decorate it with ``tf.function`` to have it compiled.
        threads: Threads of one operation; ``None`` shares the cores among the workers of a server.
    """

    allow_nan: bool = False
    batch_size: int | None = 8192
    device: str = "auto"
    engine: str = "class"
    from_logits: bool | None = None
    jit_compile: bool = False
    output: str = "raw"
    predict_fn: str = "call"
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that could not work on any machine."""
        _check(isinstance(self.device, str), "device", "a string such as 'cpu'", self.device)
        _check(isinstance(self.predict_fn, str), "predict_fn", "the name of a method", self.predict_fn)
        for name in ("allow_nan", "jit_compile"):
            _check(isinstance(getattr(self, name), bool), name, "true or false", getattr(self, name))
        _check(self.from_logits in (True, False, None), "from_logits", "true, false or null", self.from_logits)
        _check(self.engine in ENGINES, "engine", f"one of {', '.join(ENGINES)}", self.engine)
        _check(self.output in OUTPUT_FORMS, "output", f"one of {', '.join(OUTPUT_FORMS)}", self.output)
        for name in ("batch_size", "threads"):
            value = getattr(self, name)
            _check(value is None or _is_count(value), name, "a whole number from 1, or null", value)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> ServingOptions:
        """Options from a ``model_config``; keys that this release does not know are left alone."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in (config or {}).items() if key in known})

    def to_config(self) -> dict[str, Any]:
        """The ``model_config`` with every key."""
        return dataclasses.asdict(self)

    def chosen_device(self) -> str:
        """The device to use: one given here, else the environment's, else ``auto``."""
        if self.device.lower() != "auto":
            return self.device
        return os.environ.get(DEVICE_VARIABLE, "").strip() or "auto"

    def of_call(self, params: Mapping[str, Any] | None) -> tuple[int | None, str]:
        """``batch_size`` and ``output`` of one call of ``predict`` with ``params``.

        Raises:
            PredictError: A param that ``predict`` does not have, or a value that it does not take.
        """
        if not params:
            return self.batch_size, self.output
        if unknown := sorted(params.keys() - PREDICT_PARAMS):
            raise PredictError(f"params: expected only {', '.join(sorted(PREDICT_PARAMS))}, got {', '.join(unknown)}.")
        size, output = params.get("batch_size", self.batch_size), params.get("output", self.output)
        if size is not None and not _is_count(size):
            raise PredictError(f"params: batch_size must be a whole number from 1, or null, got {size!r}.")
        if output not in OUTPUT_FORMS:
            raise PredictError(f"params: output must be one of {', '.join(OUTPUT_FORMS)}, got {output!r}.")
        return size, output


def _check(fits: bool, name: str, expected: str, value: Any) -> None:
    if not fits:
        raise KerasSubclassError(f"model_config: {name} must be {expected}, got {value!r}.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 1
