"""Models that earlier formats and other Pythons wrote load for ever, with the state and predictions that they had."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mlflow_keras_subclass import model_dir
from mlflow_keras_subclass.manifest import FORMAT_VERSION
from mlflow_keras_subclass.trust import TrustPolicy, verify

FOLDERS = sorted((Path(__file__).parent / "golden").glob("format-*"))
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def python_of(folder):
    return verify(folder / "model", TrustPolicy()).manifest.versions.python.rpartition(".")[0]


def test_each_python_made_one_of_every_format_version():
    pairs = [(number, python) for number in range(1, FORMAT_VERSION + 1) for python in PYTHONS]
    wanted = {f"format-{number}-python-{python}": python for number, python in pairs}

    # The first was made before they were told apart.
    assert {folder.name: python_of(folder) for folder in FOLDERS} == {"format-1": "3.11", **wanted}


@pytest.mark.parametrize("route", ["cloudpickle", "source", None])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_golden_model_loads(folder, route):
    """From its source on every Python, which is what another one than its own takes; from its bytecode on its own."""
    if route == "cloudpickle" and python_of(folder) != f"{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip("bytecode of another Python")
    expected = np.load(folder / "expected.npz")

    model = model_dir.rebuild(verify(folder / "model", TrustPolicy()), route=route)

    assert type(model).__name__ == "GoldenNet"
    if folder.name != "format-1":  # which does not say what its state was
        state = [expected[f"arr_{number}"] for number in range(len(expected.files) - len("xy"))]
        for variable, array in zip(model.variables, state, strict=True):
            np.testing.assert_array_equal(np.asarray(variable), array, strict=True)
    # Another processor or release of TensorFlow may order the sums of a product otherwise.
    np.testing.assert_allclose(np.asarray(model(expected["x"])), expected["y"], rtol=1e-5, atol=1e-6)
    assert int(model.optimizer.iterations) == 1
