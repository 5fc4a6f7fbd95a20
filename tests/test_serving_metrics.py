"""Prometheus metrics of a real ``mlflow models serve``, of one process and of two."""

from __future__ import annotations

import re
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from elsewhere import free_port
from servers import Server, serving

import mlflow_keras_subclass as mks
from mlflow_keras_subclass import serving_metrics
from mlflow_keras_subclass.serving_metrics import DIRECTORY_VARIABLE, PORT_VARIABLE

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
SERVER = "__pyfunc_model_path__"


class Net(keras.Model):
    """Refuses large values."""

    def call(self, x: Any) -> Any:
        tf.debugging.assert_less(x, 100.0)
        return x * 2.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "m"
    net = Net()
    net(X)
    mks.save_model(net, path, prove=False)
    return path


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    number = free_port()
    monkeypatch.setenv(PORT_VARIABLE, str(number))
    monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "argv", ["uvicorn"])
    return number


def scraped(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    found = re.findall(r"^mlflow_keras_subclass_(\S+) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def good(server: Server) -> None:
    assert server.ask({"inputs": X.tolist()})[0] == 200


def writers(folder: Path) -> set[str]:
    """The processes that have written numbers into ``folder``."""
    return {path.stem.rpartition("_")[2] for path in folder.glob("*.db")}


def test_one_process(model: Path, tmp_path: Path) -> None:
    """What was answered, how many rows, what was refused and by which error, and how long it took."""
    port = free_port()
    python = Path(sys.executable)
    with serving(model, tmp_path, python=python, environment={PORT_VARIABLE: str(port)}) as server:
        for _ in range(4):
            good(server)
        assert server.ask({"inputs": (X + 1000).tolist()})[0] == 400
        assert server.ask({"inputs": [[float("nan")] * 4]})[0] == 400
        found = scraped(port)

    assert found["predictions_total"] == 4
    # The model refused the rows that it was given; NaN was refused before.
    assert found["rows_total"] == 15
    assert found['prediction_errors_total{kind="PredictError"}'] == 2
    assert found["prediction_seconds_count"] == found['prediction_seconds_bucket{le="+Inf"}'] == 6
    assert 0 < found["prediction_seconds_sum"] < 60


def test_two_processes_are_added_up(model: Path, tmp_path: Path) -> None:
    port, folder = free_port(), tmp_path / "numbers"
    folder.mkdir()
    environment = {PORT_VARIABLE: str(port), DIRECTORY_VARIABLE: str(folder)}
    with serving(model, tmp_path, python=Path(sys.executable), workers=2, environment=environment) as server:
        asked, end = 0, time.monotonic() + 60
        # A busy machine starts the second process later than the first one answers.
        while asked < 40 or (len(writers(folder)) < 2 and time.monotonic() < end):
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(good, [server] * 40))
            asked += 40
        found = scraped(port)

    assert found["predictions_total"] == asked
    assert found["rows_total"] == 3 * asked
    assert len(writers(folder)) == 2


def test_nobody_else_listens(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook with the variable in its environment opens no port, and neither does a server without it."""
    monkeypatch.delenv(SERVER, raising=False)
    assert serving_metrics.metrics_of_server() is None
    monkeypatch.setenv(SERVER, "/model")
    monkeypatch.delenv(PORT_VARIABLE)
    assert serving_metrics.metrics_of_server() is None


def test_what_cannot_be_given_is_an_error_when_the_server_starts(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVER, "/model")
    assert serving_metrics.metrics_of_server() is not None
    assert scraped(port)["predictions_total"] == 0
    with pytest.raises(mks.KerasSubclassError, match=rf"127\.0\.0\.1:{port} cannot be listened on"):
        serving_metrics.metrics_of_server()
    monkeypatch.setattr(sys, "argv", ["uvicorn", "--workers", "2"])
    with pytest.raises(mks.KerasSubclassError, match=f"a server of 2 workers.*Set {DIRECTORY_VARIABLE}"):
        serving_metrics.metrics_of_server()
    monkeypatch.setattr(sys, "argv", ["uvicorn"])
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(mks.KerasSubclassError, match="prometheus_client is not installed here"):
        serving_metrics.metrics_of_server()
    for wrong in ("http", "0", "70000"):
        monkeypatch.setenv(PORT_VARIABLE, wrong)
        with pytest.raises(mks.KerasSubclassError, match=f"expected the number of a port, got '{wrong}'"):
            serving_metrics.metrics_of_server()
