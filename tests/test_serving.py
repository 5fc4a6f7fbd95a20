"""What MLflow's own commands make of a logged model: images, predictions from files.

Environment managers that install something are in ``tests/environments``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow.models import cli

import mlflow_keras_subclass as mks

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


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


@pytest.mark.parametrize("manager", ["local", "uv"])
def test_dockerfile_has_the_python_the_model_and_its_requirements(
    saved: tuple[Path, Any], tmp_path: Path, manager: str
) -> None:
    """There is no docker here to build it with; what it runs are the commands of ``tests/environments``."""
    command = ["-m", str(saved[0]), "-d", str(tmp_path / "image"), "--env-manager", manager]
    done = CliRunner().invoke(cli.generate_dockerfile, command, catch_exceptions=False)

    assert done.exit_code == 0, done.output
    text = (tmp_path / "image" / "Dockerfile").read_text()
    version = ".".join(map(str, sys.version_info[:3]))
    assert f"FROM python:{version}-slim" in text or "FROM ubuntu" in text
    assert f"mlflow=={mlflow.__version__}" in text
    assert f"env_manager='{manager}'" in text
    copied = tmp_path / "image" / "model_dir" / "m"
    assert "COPY model_dir/m /opt/ml/model" in text
    assert {"MLmodel", "code", "keras_subclass"} <= {path.name for path in copied.iterdir()}
    requirements = (copied / "requirements.txt").read_text()
    assert f"keras=={keras.__version__}" in requirements
    assert "mlflow-keras-subclass" not in requirements


def test_predictions_from_a_file(saved: tuple[Path, Any], tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps({"inputs": X.tolist()}))
    mlflow.models.predict(
        str(saved[0]), input_path=str(tmp_path / "in.json"), output_path=str(tmp_path / "o"), env_manager="local"
    )

    found = json.loads((tmp_path / "o").read_text())["predictions"]
    np.testing.assert_array_equal(np.asarray(found, np.float32), saved[1])
