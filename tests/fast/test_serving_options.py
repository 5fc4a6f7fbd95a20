"""The keys of ``model_config``, and what a serving process does for itself."""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

import pytest
from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT
from mlflow.pyfunc import scoring_server

from mlflow_keras_subclass import serving_process
from mlflow_keras_subclass.errors import KerasSubclassError, PredictError
from mlflow_keras_subclass.serving_options import DEVICE_VARIABLE, ServingOptions

SERVER = "__pyfunc_model_path__"


def test_device_of_the_model_config_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICE_VARIABLE, "gpu:6")

    assert ServingOptions(device="cpu").chosen_device() == "cpu"
    assert ServingOptions().chosen_device() == "gpu:6"
    monkeypatch.delenv(DEVICE_VARIABLE)
    assert ServingOptions().chosen_device() == "auto"


def test_options_of_a_newer_release_are_left_alone() -> None:
    assert ServingOptions.from_config({"device": "cpu", "later": 1}) == ServingOptions(device="cpu")


def test_every_key_is_written() -> None:
    options = ServingOptions(threads=2, output="class", from_logits=True)

    assert ServingOptions.from_config(options.to_config()) == options
    assert len(options.to_config()) == 9


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"device": 3}, "device must be a string such as 'cpu', got 3"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1, or null, got 0"),
        ({"threads": True}, "threads must be a whole number from 1, or null, got True"),
        ({"jit_compile": "yes"}, "jit_compile must be true or false, got 'yes'"),
        ({"allow_nan": 1}, "allow_nan must be true or false, got 1"),
        ({"output": "label"}, "output must be one of raw, class, proba, got 'label'"),
        ({"engine": "onnx"}, "engine must be one of class, graph, got 'onnx'"),
        ({"from_logits": "no"}, "from_logits must be true, false or null, got 'no'"),
        ({"predict_fn": None}, "predict_fn must be the name of a method, got None"),
    ],
)
def test_values_that_no_machine_could_use_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(KerasSubclassError, match=f"model_config: {message}"):
        ServingOptions.from_config(config)


def test_params_of_one_call() -> None:
    options = ServingOptions(batch_size=4, output="class")

    assert options.of_call(None) == (4, "class")
    assert options.of_call({"batch_size": 2}) == (2, "class")
    assert options.of_call({"batch_size": None, "output": "raw"}) == (None, "raw")
    for params, message in [
        ({"batch_size": -1}, "batch_size must be a whole number from 1, or null, got -1"),
        ({"output": "x"}, "output must be one of raw, class, proba, got 'x'"),
        ({"temperature": 1}, "expected only batch_size, output, got temperature"),
    ]:
        with pytest.raises(PredictError, match=message):
            options.of_call(params)


# --- the process


def test_names_by_which_mlflow_marks_its_processes() -> None:
    """Both are private in MLflow: this fails when they change."""
    assert scoring_server._SERVER_MODEL_PATH == serving_process._SERVER_VARIABLE
    assert _MLFLOW_IS_IN_SERVING_ENVIRONMENT.name == serving_process._SERVING_VARIABLE


def test_only_a_server_is_frozen_and_may_opt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SERVER, raising=False)
    before = gc.get_freeze_count()  # Python 3.12 freezes some of its own
    serving_process.freeze_garbage()
    assert gc.get_freeze_count() == before

    monkeypatch.setenv(SERVER, "/model")
    monkeypatch.setenv(serving_process.GC_VARIABLE, "off")
    serving_process.freeze_garbage()
    assert gc.get_freeze_count() == before

    monkeypatch.delenv(serving_process.GC_VARIABLE)
    try:
        serving_process.freeze_garbage()
        assert gc.get_freeze_count() > before + 1000
    finally:
        gc.unfreeze()


def test_workers_of_a_server_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(sys, "argv", ["uvicorn", "--port", "1", "--workers", "2", "app"])
    monkeypatch.delenv(SERVER, raising=False)
    assert serving_process.threads_of_a_worker() is None

    monkeypatch.setenv(SERVER, "/model")
    assert serving_process.threads_of_a_worker() == max(1, cores // 2)
    monkeypatch.setattr(sys, "argv", ["uvicorn", "app"])
    assert serving_process.threads_of_a_worker() is None
    monkeypatch.setenv("WEB_CONCURRENCY", "1000")
    assert serving_process.threads_of_a_worker() == 1
