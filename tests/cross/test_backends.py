"""Logged on each backend and loaded on each other: equal, close, or an error that names the line in the way.

Needs an interpreter for each backend, in the environment variables ``MKS_TENSORFLOW``, ``MKS_JAX`` and ``MKS_TORCH``:
``make test-backends`` sets them.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from matrix.table import TOLERANCE

BACKENDS = ("tensorflow", "jax", "torch")
PAIRS = [(logged, loaded) for logged in BACKENDS for loaded in BACKENDS]
OTHERS = [pair for pair in PAIRS if pair[0] != pair[1]]
LINES = {"tensorflow": "tf.where(", "jax": "jnp.where(", "torch": "torch.where("}


def run(backend: str, verb: str, folder: Path) -> None:
    python = os.environ[f"MKS_{backend.upper()}"]
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [python, "-I", str(Path(__file__).with_name("zoo.py")), verb, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("backends")
    for verb in ("log", "load"):
        for backend in BACKENDS:
            run(backend, verb, folder)
    return {backend: json.loads((folder / f"load-{backend}.json").read_text()) for backend in BACKENDS}


@pytest.mark.parametrize(("logged", "loaded"), PAIRS)
def test_keras_ops_only(verdicts: dict[str, Any], logged: str, loaded: str) -> None:
    """Weights, statistics, seeds, counters and the optimizer; bit for bit on the same backend."""
    found = verdicts[loaded][f"Portable-{logged}"]
    assert "error" in found, found
    assert found["error"] <= (0.0 if logged == loaded else TOLERANCE)
    assert found["steps"] == 4
    assert found["warnings"] == []


@pytest.mark.parametrize(("logged", "loaded"), OTHERS)
def test_a_call_that_asks_its_backend_is_refused_with_its_line(
    verdicts: dict[str, Any], logged: str, loaded: str
) -> None:
    """Or it answers alike, because the other backend takes these tensors; then a warning names the line."""
    found = verdicts[loaded][f"Bound-{logged}"]
    if "error" in found:
        assert found["error"] == 0.0
        assert any(LINES[logged] in line for line in found["warnings"])
    else:
        assert LINES[logged] in found["refused"]
        assert f"KERAS_BACKEND={logged}" in found["refused"]
    assert "error" in verdicts[logged][f"Bound-{logged}"]


@pytest.mark.parametrize(("logged", "loaded"), OTHERS)
def test_a_training_step_for_one_backend_is_named_and_does_not_hinder(
    verdicts: dict[str, Any], logged: str, loaded: str
) -> None:
    """What the model answers is the same; the lines that would fail are said."""
    found = verdicts[loaded][f"OnlyTraining-{logged}"]
    assert found["error"] <= TOLERANCE
    assert any("fail or differ when they are reached" in line for line in found["warnings"])
