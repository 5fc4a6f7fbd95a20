"""What MLflow's own commands make of a logged model: health while it loads, images, predictions from files.

Environment managers that install something are in ``tests/environments``.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from elsewhere import background, free_port
from mlflow.models import cli
from servers import environment_of

import mlflow_keras_subclass as mks

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)

SLOW = """
import os, pathlib, time
import keras

class Slow(keras.Model):
    def __init__(self):
        super().__init__()
        time.sleep(float(os.environ.get("SLOW_SECONDS", "0")))
        self.out = keras.layers.Dense(2)

    def call(self, x):
        if "SLOW_FOLDER" in os.environ:  # Python of a trace: the served call is traced at the end of a load
            pathlib.Path(os.environ["SLOW_FOLDER"], str(os.getpid())).touch()
        return self.out(x)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A model that takes its time to be built where the environment says so, and what it answers."""
    root = tmp_path_factory.mktemp("models")
    (root / "slow_net.py").write_text(SLOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        import slow_net

        model = slow_net.Slow()
        model(X)
        mks.save_model(model, root / "m", input_example=X)
    return root / "m", np.asarray(model(X))


def asked(url: str, body: bytes | None = None) -> int | None:
    """The status of the answer within a second; ``None`` if there was none."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=1 if body is None else 30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.mark.parametrize("workers", [1, 2])
def test_health_is_not_told_before_the_model_can_answer(saved: tuple[Path, Any], tmp_path: Path, workers: int) -> None:
    """No answer at all while the model loads, with one worker or more; then both paths say 200, and so do requests."""
    port, loaded = free_port(), tmp_path / "loaded"
    loaded.mkdir()
    url, seen, over = f"http://127.0.0.1:{port}", [], threading.Event()

    def poll() -> None:
        while not over.is_set():
            before = any(loaded.iterdir())
            seen.append((before, asked(f"{url}/health")))
            time.sleep(0.05)

    watching = threading.Thread(target=poll)
    watching.start()
    try:
        where = ["-m", str(saved[0]), "-h", "127.0.0.1", "-p", str(port), "--workers", str(workers)]
        command = [sys.executable, "-m", "mlflow", "models", "serve", *where, "--env-manager", "local"]
        environment = {**environment_of(Path(sys.executable)), "SLOW_SECONDS": "3", "SLOW_FOLDER": str(loaded)}
        with background(command, ready=f"{url}/ping", environment=environment, log=tmp_path / "log"):
            body = json.dumps({"inputs": X.tolist()}).encode()
            assert [asked(f"{url}/invocations", body) for _ in range(5)] == [200] * 5
            assert any(loaded.iterdir())
            time.sleep(0.5)
    finally:
        over.set()
        watching.join()

    early = [status for was_loaded, status in seen if not was_loaded]
    assert len(early) > 3
    # A request that waited for the last moments of the load may be the first that is answered.
    assert set(early[:-1]) == {None}
    assert 200 in [status for _, status in seen]
    assert {status for _, status in seen} <= {None, 200}


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
