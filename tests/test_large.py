"""Large models: memory, disk and reads do not grow with a copy of the weights, neither here nor in a store."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from stores import local_store

import mlflow_keras_subclass as mks

STATE = "keras_subclass/state.safetensors"
X = np.ones((2, 600), "float32")


class Net(keras.Model):
    """More than 1 MiB of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(600)

    def call(self, x: Any) -> Any:
        return self.dense(x)


@pytest.fixture(scope="module")
def model() -> Net:
    model = Net()
    model(X)
    return model


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with local_store(tmp_path_factory.mktemp("large"), "large") as root:
        yield root


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What another process measured, of 192 MiB of weights and of ten thousand variables."""
    script = Path(__file__).with_name("large_runner.py")
    command = [sys.executable, str(script), str(tmp_path_factory.mktemp("measured"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_a_save_takes_no_memory_for_the_weights(measured: dict[str, Any]) -> None:
    """Two thirds of them in one variable, which is frozen."""
    assert measured["saving"] <= 0.2 * measured["size"]


def test_a_load_takes_the_memory_of_the_weights_once(measured: dict[str, Any]) -> None:
    assert measured["loading"] <= 1.2 * measured["size"]


def test_weights_are_read_once_after_they_were_written(measured: dict[str, Any]) -> None:
    """By the report, which reads a sample of them; the digests are taken while they are written."""
    assert measured["opened"] == ["write", "read"]


def test_ten_thousand_variables_come_back(measured: dict[str, Any]) -> None:
    assert measured["equal"] == 10_000


def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all files that MLflow copies into a store of files, from now on."""
    names: list[str] = []
    module = mlflow.utils.file_utils.shutil
    original = module.copy2

    def noting(source: Any, target: Any, **kwargs: Any) -> Any:
        names.append(Path(source).name)
        return original(source, target, **kwargs)

    monkeypatch.setattr(module, "copy2", noting)
    return names


def files_of(info: Any) -> Path:
    return Path(mlflow.artifacts.download_artifacts(info.model_uri))


def test_a_store_on_this_machine_gets_the_weights_without_a_copy(model: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    names = copied(monkeypatch)
    info = mks.log_model(model, name="net", prove=False)

    assert "state.safetensors" not in names
    assert "MLmodel" in names
    assert (files_of(info) / STATE).stat().st_nlink == 1
    assert np.array_equal(mks.load_model(info.model_uri)(X), model(X))
    assert mlflow.pyfunc.load_model(info.model_uri).predict(X).shape == (2, 600)


@pytest.mark.parametrize("is_tried", [True, False])
def test_what_mlflow_loads_to_try_the_example_is_there(
    model: Net, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_tried: bool
) -> None:
    names = copied(monkeypatch)
    info = mks.log_model(model, name="net", prove=False, input_example=X, validate_serving_input=is_tried)

    assert ("state.safetensors" in names) == is_tried
    assert "Failed to validate" not in caplog.text
    assert np.array_equal(mks.load_model(info.model_uri)(X), model(X))


def test_a_store_on_another_file_system_gets_a_copy(model: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("Invalid cross-device link")

    names = copied(monkeypatch)
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    info = mks.log_model(model, name="net", prove=False)

    assert "state.safetensors" in names
    assert np.array_equal(mks.load_model(info.model_uri)(X), model(X))


def test_what_is_downloaded_for_a_load_is_removed(model: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow copies what a run logged to a temporary folder, from any store."""
    with mlflow.start_run() as run:
        info = mks.log_model(model, name="net", prove=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    uri = f"runs:/{run.info.run_id}/net"
    loaded = mks.load_model(uri)

    assert np.array_equal(loaded(X), model(X))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert list(tmp_path.rglob("MLmodel"))
    assert (files_of(info) / STATE).is_file()
    mks.load_model(uri, dst_path=tmp_path / "kept")
    assert len(list(tmp_path.rglob("state.safetensors"))) == 1


@pytest.mark.parametrize("address", ["{path}", "file://{path}", "models:/{model_id}"])
def test_what_was_not_downloaded_is_never_removed(
    model: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    info = mks.log_model(model, name="net", prove=False)
    path = files_of(info)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mks.load_model(address.format(path=path, model_id=info.model_id))

    assert (path / STATE).is_file()
    assert not list(tmp_path.rglob("MLmodel"))
