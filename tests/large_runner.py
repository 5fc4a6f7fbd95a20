"""In a process of its own: saves and loads a model of 192 MiB and one of ten thousand variables, and says what it took.

``python large_runner.py FOLDER`` prints JSON on its last line. Sizes are bytes that a step added at its peak to what
the process had before.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import mlflow_keras_subclass as mks


class Large(keras.Model):
    """One variable of 128 MiB and one of 64; the larger one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.table = keras.layers.Embedding(2**15, 2**10, trainable=False)
        self.dense = keras.layers.Dense(2**14, use_bias=False)

    def call(self, tokens: Any) -> Any:
        return self.dense(keras.ops.mean(self.table(tokens), axis=1))


class Many(keras.Model):
    """Many variables; TensorFlow's own, since Keras takes ten times as long to make one."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.parts = [tf.Variable([0.0, 0.0]) for _ in range(count)]

    def call(self, x: Any) -> Any:
        return x


def memory(name: str) -> int:
    """A line of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def added(step: Callable[[], Any]) -> tuple[int, Any]:
    """What ``step`` added at its peak, and what it returned."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    before = memory("VmRSS")
    found = step()
    return memory("VmHWM") - before, found


class Opened:
    """Notes how often each file of weights is opened, to write and to read."""

    def __init__(self) -> None:
        self.modes: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(args[0]).endswith("state.safetensors"):
            self.modes.append("write" if args[1] and set(args[1]) & set("wxa") else "read")


def main(folder: Path) -> None:
    """Do it all."""
    keras.utils.set_random_seed(1)
    small = Many(1)
    small(np.zeros((1, 2), "float32"))
    mks.save_model(small, folder / "small", prove=False)  # what the first save of a process imports
    mks.load_model(folder / "small")
    model = Large()
    model(np.zeros((1, 2), "int32"))
    opened = Opened()
    saving, _ = added(lambda: mks.save_model(model, folder / "large", prove=False))
    modes, size = list(opened.modes), (folder / "large/keras_subclass/state.safetensors").stat().st_size
    loading, _ = added(lambda: mks.load_model(folder / "large"))
    many = Many(10_000)
    many.built = True
    values = [np.array([number, -number], "float32") for number in range(10_000)]
    for variable, value in zip(many.parts, values, strict=True):
        variable.assign(value)
    mks.save_model(many, folder / "many", prove=False)
    back = mks.load_model(folder / "many")
    equal = sum(np.array_equal(a, b) for a, b in zip(values, map(np.asarray, back.parts), strict=True))
    found = {"size": size, "saving": saving, "loading": loading, "opened": modes, "equal": int(equal)}
    print(json.dumps(found))


if __name__ == "__main__":
    tf.zeros(1)
    main(Path(sys.argv[1]))
