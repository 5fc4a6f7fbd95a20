"""Models that were trained under ``tf.distribute`` and ``keras.distribution`` come back undistributed.

``make test-distribute``; each training is in a process of its own, because devices are configured once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from elsewhere import free_port

import mlflow_keras_subclass as mks

RUNNER = Path(__file__).with_name("distributed_runner.py")


def start(kind: str, folder: Path, python: str = sys.executable, **variables: str) -> subprocess.Popen[bytes]:
    kept = {key: value for key, value in os.environ.items() if key not in ("TF_CONFIG", "XLA_FLAGS", "KERAS_BACKEND")}
    return subprocess.Popen([python, RUNNER, kind, folder], cwd=folder, env={**kept, **variables})


def result(kind: str, folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
    with np.load(folder / f"{kind}.npz") as found:
        return found["predictions"], json.loads(str(found["facts"]))


def test_mirrored_on_two_devices(tmp_path: Path) -> None:
    """Saved within the scope of the strategy; loaded as plain variables, the optimizer where it was."""
    assert start("mirrored", tmp_path).wait(300) == 0
    assert start("load", tmp_path).wait(300) == 0
    expected, before = result("mirrored", tmp_path)
    found, after = result("load", tmp_path)

    assert before["replicas"] == 2
    assert any("Mirrored" in kind for kind in before["kinds"])
    assert not any("Mirrored" in kind or "Distributed" in kind for kind in after["kinds"])
    assert after["iterations"] == before["iterations"] == 8
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_two_workers_log_one_model(tmp_path: Path) -> None:
    """Two processes train together; the chief logs, while the other has gone on."""
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    configs = [{"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}} for index in range(2)]
    processes = [start("workers", tmp_path, TF_CONFIG=json.dumps(config)) for config in configs]
    assert [process.wait(300) for process in processes] == [0, 0]
    expected, facts = result("workers", tmp_path)

    assert facts["replicas"] == 2
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert len(mlflow.search_logged_models(experiment_ids=["1"], output_format="list")) == 1
    loaded = mks.load_model(facts["uri"])
    random = np.random.default_rng(0)
    np.testing.assert_allclose(loaded(random.normal(size=(64, 8)).astype(np.float32)), expected, rtol=1e-5, atol=1e-6)
    assert not any("Mirrored" in type(variable.value).__name__ for variable in loaded.variables)


@pytest.mark.parametrize("kind", ["data", "model"])
def test_keras_distribution_on_jax(tmp_path: Path, kind: str) -> None:
    """Replicated, and with a kernel of which each device has a half."""
    python, backend = os.environ["MKS_JAX"], {"KERAS_BACKEND": "jax"}
    two = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    assert start(kind, tmp_path, python, **backend, **two).wait(300) == 0
    assert start("load", tmp_path, python, **backend).wait(300) == 0
    expected, before = result(kind, tmp_path)
    found, after = result("load", tmp_path)

    assert before["devices"] == [2]
    assert after["devices"] == [1]
    assert after["iterations"] == before["iterations"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
