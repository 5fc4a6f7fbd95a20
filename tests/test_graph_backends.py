"""The graph sidecar where TensorFlow's Keras 3 is not: StableHLO on JAX, a SavedModel of tf_keras, none on torch.

``make test-jax``, ``make test-torch`` and ``make test-tf-keras`` run it, each with its backend.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

import mlflow_keras_subclass as mks
from mlflow_keras_subclass.manifest import DATA_DIR, GRAPH_FILE, PROOF_FILE

LEGACY = os.environ.get("TF_USE_LEGACY_KERAS") == "1"
BACKEND = "tf_keras" if LEGACY else os.environ.get("KERAS_BACKEND", "tensorflow")
if BACKEND == "tensorflow":
    pytest.skip("tests/test_graph.py is about TensorFlow", allow_module_level=True)
keras: Any = importlib.import_module("tf_keras" if LEGACY else "keras")

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
GRAPH = {"engine": "graph"}


class Net(keras.Model):  # type: ignore[misc, name-defined]
    """Two inputs, a nested output, and state that a call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = keras.layers.Dense(3), keras.layers.Dense(3)
        self.drop = keras.layers.Dropout(0.5)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, inputs: Any) -> Any:
        self.calls.assign_add(1.0)
        left, right = self.left(inputs["left"]), self.right(inputs["right"])
        return {"sum": self.drop(left + right) + self.calls, "parts": (left, right)}


DATA = {"left": X, "right": X * 2}

FRESH = """
import sys
sys.modules["keras"] = sys.modules["tf_keras"] = None  # whoever imports them fails
import mlflow, numpy as np
served = mlflow.pyfunc.load_model(sys.argv[1] + "/m", model_config={"engine": "graph"})
with np.load(sys.argv[1] + "/data.npz") as data:
    data = dict(data)
for number, rows in enumerate((5, 5, 2)):
    found = served.predict({name: item[:rows] for name, item in data.items()})
    np.savez(f"{sys.argv[1]}/{number}.npz", **found)
empty = served.predict({name: item[:0] for name, item in data.items()})
assert {name: item.shape for name, item in empty.items()} == {name: (0, 3) for name in found}, empty
"""


@pytest.mark.skipif(BACKEND == "torch", reason="torch has no graph")
def test_graph_is_served_without_keras_and_the_class(tmp_path: Path) -> None:
    """Bit for bit what the class answers, over several calls and batch sizes."""
    model = Net()
    model(DATA)
    mks.save_model(model, tmp_path / "m", export_graph=True)
    served = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    np.savez(tmp_path / "data.npz", **DATA)
    environment = {**os.environ, "MLFLOW_KERAS_SUBCLASS_TRUST": "never"}
    command = [sys.executable, "-c", FRESH, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-4000:]
    for number, rows in enumerate((5, 5, 2)):
        expected = served.predict({name: item[:rows] for name, item in DATA.items()})
        with np.load(tmp_path / f"{number}.npz") as found:
            assert set(found) == set(expected) == {"sum", "parts_0", "parts_1"}
            for name, item in expected.items():
                np.testing.assert_array_equal(found[name], item)
    folder = tmp_path / "m" / DATA_DIR
    assert json.loads((folder / PROOF_FILE).read_text())["graph"] == "exact"
    assert (BACKEND == "jax") == ("flatbuffers==" in (tmp_path / "m" / "requirements.txt").read_text())
    stored = json.loads((folder / GRAPH_FILE).read_text())
    assert stored["format"] == {"jax": "stablehlo", "tf_keras": "saved_model"}[BACKEND]


@pytest.mark.skipif(BACKEND != "torch", reason="has a graph")
def test_torch_says_that_it_has_no_graph(tmp_path: Path) -> None:
    model = Net()
    model(DATA)

    with pytest.raises(mks.GraphError, match="a model on the torch backend has no graph here; tensorflow and jax have"):
        mks.save_model(model, tmp_path / "m", export_graph=True, prove=False)


class Looping(keras.Model):  # type: ignore[misc, name-defined]
    """Python that needs to know the number of rows."""

    def call(self, x: Any) -> Any:
        return sum(x[row] for row in range(x.shape[0]))


class Guessing(keras.Model):  # type: ignore[misc, name-defined]
    """Asks the number of rows what it cannot answer while it is open: JAX takes such numbers for unequal."""

    def call(self, x: Any) -> Any:
        return x * float(x.shape[0] % 3 == 2)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX only")
def test_a_call_that_needs_the_number_of_rows_has_no_graph(tmp_path: Path) -> None:
    """It cannot be written, or the proof finds that it answers otherwise."""
    looping, guessing = Looping(), Guessing()
    for model in (looping, guessing):
        model(X)

    with pytest.raises(mks.GraphError, match="cannot be written as a graph with an open batch dimension"):
        mks.save_model(looping, tmp_path / "m", export_graph=True, prove=False)
    with pytest.raises(mks.ProofError, match="graph: output 0 differs"):
        mks.save_model(guessing, tmp_path / "m", export_graph=True, prove=False)
    assert not (tmp_path / "m").exists()
