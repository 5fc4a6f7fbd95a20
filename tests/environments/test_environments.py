"""MLflow's environment managers for real: the requirements of a model are installed, and the model runs with them.

``make test-serving-environments`` runs it. Each test installs everything anew, as MLflow's commands do; ``virtualenv``
needs pyenv.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from servers import environment_of, serving

import mlflow_keras_subclass as mks

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
PYTHON = Path(sys.executable)
MANAGERS = [
    "uv",
    pytest.param("virtualenv", marks=pytest.mark.skipif(shutil.which("pyenv") is None, reason="needs pyenv")),
]


class Net(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.out = keras.layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.out(x)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A model that was logged, and what it answers."""
    path, model = tmp_path_factory.mktemp("models") / "m", Net()
    model(X)
    mks.save_model(model, path, input_example=X)
    return path, np.asarray(model(X))


@pytest.mark.parametrize("manager", MANAGERS)
def test_models_predict(saved: tuple[Path, Any], tmp_path: Path, manager: str) -> None:
    path, expected = saved
    (tmp_path / "in.json").write_text(json.dumps({"inputs": X.tolist()}))
    files = ["-i", str(tmp_path / "in.json"), "-o", str(tmp_path / "out.json"), "-t", "json"]
    command = [str(PYTHON), "-m", "mlflow", "models", "predict", "-m", str(path), *files, "--env-manager", manager]
    variables = environment_of(PYTHON)
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)

    if "failed to download Python" in done.stderr:
        pytest.skip("MLflow lets pyenv build Python anew for this, from python.org, which cannot be reached from here")
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "out.json").read_text())["predictions"]
    np.testing.assert_array_equal(np.asarray(found, np.float32), expected)


@pytest.mark.parametrize("manager", MANAGERS)
def test_models_serve(saved: tuple[Path, Any], tmp_path: Path, manager: str) -> None:
    path, expected = saved
    # Else in the home directory, where the next test would find it.
    environment = {"MLFLOW_ENV_ROOT": str(tmp_path / "envs")}
    with serving(path, tmp_path, python=PYTHON, env_manager=manager, environment=environment) as server:
        status, answer = server.ask({"inputs": X.tolist()})
        assert (status, server.ask({"inputs": [[1.0]]})[0]) == (200, 400)

    np.testing.assert_array_equal(np.asarray(answer["predictions"], np.float32), expected)


def test_mlflow_models_predict(saved: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, expected = saved
    monkeypatch.setenv("PATH", environment_of(PYTHON)["PATH"])
    output = tmp_path / "out.json"
    mlflow.models.predict(str(path), input_data=X, output_path=str(output), env_manager="uv")

    found = json.loads(output.read_text())["predictions"]
    np.testing.assert_array_equal(np.asarray(found, np.float32), expected)
