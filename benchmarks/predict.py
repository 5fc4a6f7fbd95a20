"""predict in one process: against numpy -> concrete function -> numpy, and against the peers; traces; memory.

Usage: python benchmarks/predict.py [rounds]
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import functools
import inspect
import sys
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import tensorflow as tf
from common import EXPORTED, KERAS, OURS, TENSORFLOW, ratio, resident_mib, rounds, save, table
from models import made, rows

import mlflow_keras_subclass as mks

FLOOR = "concrete function"
CELLS = [("tiny", 1), ("tiny", 32), ("cnn", 1), ("cnn", 32), ("transformer", 1), ("transformer", 32)]


def floor(name: str, batch: np.ndarray[Any, Any]) -> Callable[[], Any]:
    """From numpy through a concrete function to numpy: what TensorFlow itself needs."""
    model = made(name)
    spec = tf.TensorSpec((None, *batch.shape[1:]), batch.dtype)
    function = tf.function(lambda x: model(x, training=False), input_signature=[spec], autograph=False)
    concrete = function.get_concrete_function()
    return lambda: concrete(tf.constant(batch)).numpy()


def latency(folder: Path, count: int) -> None:
    lines = []
    for name in dict.fromkeys(name for name, _ in CELLS):
        served = {
            flavor: mlflow.pyfunc.load_model(str(save(flavor, name, folder / f"{name}-{number}")))
            for number, flavor in enumerate((OURS, KERAS, TENSORFLOW, EXPORTED))
        }
        for size in [size for other, size in CELLS if other == name]:
            batch = rows(name, size)
            runs: dict[str, Callable[[], Any]] = {FLOOR: floor(name, batch)}
            runs |= {flavor: functools.partial(model.predict, batch) for flavor, model in served.items()}
            found = rounds(runs, count=count)
            speedups = [ratio(found, peer, OURS) for peer in (KERAS, TENSORFLOW, EXPORTED)]
            lines.append([name, size, f"{min(found[OURS]) * 1e6:.0f} µs", ratio(found, OURS, FLOOR), *speedups])
    header = [
        "model",
        "batch",
        "ours, best",
        f"ours in {FLOOR}",
        *(f"faster than {p}" for p in (KERAS, TENSORFLOW, EXPORTED)),
    ]
    table("pyfunc predict", header, lines)


def bulk(folder: Path, count: int) -> None:
    batch = rows("tiny", 100_000)
    model, served = made("tiny"), mlflow.pyfunc.load_model(str(save(OURS, "tiny", folder / "bulk")))
    runs = {
        OURS: lambda: served.predict(batch),
        "model.predict": lambda: model.predict(batch, batch_size=8192, verbose=0),
    }
    found = rounds(runs, count=count)
    table(
        "100k rows, tiny",
        ["ours, best", "faster than model.predict(batch_size=8192)"],
        [[f"{min(found[OURS]) * 1e3:.1f} ms", ratio(found, "model.predict", OURS)]],
    )


def overhead(folder: Path, calls: int = 20_000) -> None:
    """What MLflow's wrapper adds to a predict that does nothing: as ours is, and as a method is."""
    metadata = mlflow.pyfunc.load_model(str(save(OURS, "tiny", folder / "overhead"))).metadata
    batch = rows("tiny", 1)

    class Method:
        def predict(self, data: Any, params: Any = None) -> Any:
            return data

    class Plain:
        def __init__(self) -> None:
            def predict(data: Any, params: Any = None) -> Any:
                return data

            predict.__signature__ = inspect.signature(predict)  # type: ignore[attr-defined]
            self.predict = predict

    best = []
    for kind in (Plain, Method):
        model = mlflow.pyfunc.PyFuncModel(metadata, kind())
        best.append(min(timeit.repeat(lambda model=model: model.predict(batch), number=1, repeat=calls)))
    table("MLflow's own overhead", ["as ours", "a method"], [[f"{seconds * 1e6:.1f} µs" for seconds in best]])


class Traced(keras.Model):
    """Counts how often Python runs its call."""

    runs = 0

    def call(self, x: Any) -> Any:
        type(self).runs += 1
        return x * 2.0


def traces(folder: Path) -> None:
    model = Traced()
    model(np.zeros((2, 4), np.float32))
    mks.save_model(model, folder / "traced", prove=False)
    served = mlflow.pyfunc.load_model(str(folder / "traced"))
    kind = type(served.get_raw_model())
    before = kind.runs
    for size in range(1, 258):
        served.predict(np.zeros((size, 4), np.float32))
    table("Traces after load, batch sizes 1 to 257", ["traces"], [[kind.runs - before]])


def memory(folder: Path, calls: int = 100_000) -> None:
    served = mlflow.pyfunc.load_model(str(save(OURS, "tiny", folder / "memory")))
    batches = [rows("tiny", size) for size in range(1, 65)]
    marks = []
    for number in range(calls):
        if number in (calls // 10, calls // 2):
            marks.append(resident_mib())
        served.predict(batches[number % 64])
    marks.append(resident_mib())
    table(
        f"Memory over {calls} calls of varying batch",
        ["after a tenth", "after half", "at the end", "growth after a tenth"],
        [[*(f"{mark:.0f} MiB" for mark in marks), f"{(marks[-1] / marks[0] - 1) * 100:.2f} %"]],
    )


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        latency(folder, count)
        bulk(folder, count)
        overhead(folder)
        traces(folder)
        memory(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
