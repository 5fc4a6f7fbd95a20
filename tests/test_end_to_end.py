"""The whole path as a user goes it, with the models of ``examples/``.

A tracking server that proxies artifacts, the registry with an alias, a fresh process that cannot import the source,
and scoring servers that lack this package.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import elsewhere
import image_classifier
import keras
import mlflow
import numpy as np
import pytest
import seed_patterns
import text_classifier
import two_tower_recommender
import variational_autoencoder
from servers import Server, python_without_package, serving, tracking

import demo
import mlflow_keras_subclass as mks
from mlflow_keras_subclass import keras_api, recorder

EXAMPLES = Path(elsewhere.__file__).parent
ROWS = 20
SEEDS = ["SimpleModel", "ComplexModel", "ScaledModel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """A model as it was logged: where, inputs for it, and what the live model answers.

    ``predicted`` by its own ``predict``, and ``served`` by the compiled call of a server, which may fuse differently.
    """

    uri: str
    run_uri: str
    inputs: Any
    predicted: Any
    served: Any


def trained() -> dict[str, tuple[Any, Any]]:
    """The models of the examples, hardly trained, with inputs."""
    seeds, features = seed_patterns.train(epochs=1)
    return {
        "digits": image_classifier.train(epochs=1)[:2],
        "autoencoder": variational_autoencoder.train(epochs=1),
        "docstrings": text_classifier.train(epochs=1)[:2],
        "towers": two_tower_recommender.train(epochs=1)[:2],
        **{type(model).__name__: (model, features) for model in seeds},
    }


NAMES = ["digits", "autoencoder", "docstrings", "towers", *SEEDS]


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    with tracking(tmp_path_factory.mktemp("tracking")) as uri:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        # Another module's experiment, still active in this process, is not on this server.
        mlflow.set_experiment("end to end")
        yield uri
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])


@pytest.fixture(scope="module")
def logged(tracking_uri: str) -> dict[str, Logged]:
    """Every model, logged to the tracking server and registered with the alias ``champion``."""
    return {name: log(name, model, inputs) for name, (model, inputs) in trained().items()}


def log(name: str, model: Any, inputs: Any) -> Logged:
    few = {key: array[:ROWS] for key, array in inputs.items()} if isinstance(inputs, dict) else inputs[:ROWS]
    with mlflow.start_run() as run:
        info = mks.log_model(model, name=name, registered_model_name=name)
    mlflow.MlflowClient().set_registered_model_alias(name, "champion", info.registered_model_version)
    return Logged(
        uri=info.model_uri,
        run_uri=f"runs:/{run.info.run_id}/{name}",
        inputs=few,
        predicted=model.predict(few, verbose=0),
        served=served(model, few),
    )


def served(model: Any, inputs: Any) -> Any:
    """What the live model answers, called as a server calls it."""
    spec = recorder.observed_input_spec(model)
    call = keras_api.for_model(model).compiled(model, spec, device=None, jit_compile=False)
    return call(*spec.bind(inputs if isinstance(inputs, dict) else {None: inputs}))


@pytest.fixture(scope="module")
def reloaded(logged: dict[str, Logged], tracking_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All of them in one fresh process: natively by ID or run, as a ``python_function`` by alias."""
    folder = tmp_path_factory.mktemp("reload")
    jobs = {name: {"native": model.uri, "pyfunc": f"models:/{name}@champion"} for name, model in logged.items()}
    jobs["towers"]["native"] = logged["towers"].run_uri
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    for name, model in logged.items():
        elsewhere.write_inputs(folder / f"{name}.inputs.npz", model.inputs)
    done = subprocess.run(
        [sys.executable, "-I", str(Path(__file__).parent / "reload_runner.py"), str(folder)],
        cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": tracking_uri},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: dict(np.load(folder / f"{name}.outputs.npz")) for name in logged}


@pytest.mark.parametrize("name", NAMES)
def test_fresh_process_predicts_the_same(logged: dict[str, Logged], reloaded: Any, name: str) -> None:
    """Bit for bit, natively and through the pyfunc."""
    elsewhere.require_equal(logged[name].predicted, reloaded[name]["native"])
    elsewhere.require_equal(logged[name].served, reloaded[name]["pyfunc"])


class Small(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.out = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.out(x)


def test_one_line_has_the_address_of_the_model_on_the_server(
    tracking_uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    model = Small()
    model(np.ones((1, 2), "float32"))
    info = mks.log_model(model, name="small", prove=False)

    experiment = mlflow.get_experiment_by_name("end to end").experiment_id
    page = f"{tracking_uri}/#/experiments/{experiment}/models/{info.model_id}"
    assert f"Logged {info.model_uri}: {page}" in capsys.readouterr().err.splitlines()


@pytest.fixture(scope="module")
def servers(
    logged: dict[str, Logged], tracking_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Server]]:
    """One scoring server for each seed pattern, started together, where this package cannot be imported."""
    folder = tmp_path_factory.mktemp("servers")
    python = python_without_package(folder / "venv")
    environment = {"MLFLOW_TRACKING_URI": tracking_uri, "TF_NUM_INTRAOP_THREADS": "1"}
    with ExitStack() as stack, ThreadPoolExecutor(len(SEEDS)) as pool:

        def start(name: str) -> Server:
            return stack.enter_context(
                serving(f"models:/{name}@champion", folder, python=python, environment=environment)
            )

        yield dict(zip(SEEDS, pool.map(start, SEEDS), strict=True))


@pytest.mark.parametrize("name", SEEDS)
def test_scoring_server_answers_the_same(logged: dict[str, Logged], servers: dict[str, Server], name: str) -> None:
    """Over HTTP, from the registry of the tracking server."""
    url = f"{servers[name].url}/invocations"

    elsewhere.require_equal(logged[name].served, elsewhere.score(url, logged[name].inputs))


def test_seed_patterns_are_written_carelessly_on_purpose() -> None:
    """None overrides get_config, takes ``**kwargs`` or is registered; Keras' own file loses the last one."""
    source = Path(seed_patterns.__file__).read_text(encoding="utf-8").partition("class SimpleModel")[2]

    assert not any(word in source for word in ("def get_config", "kwargs", "register_keras_serializable"))
    models, _ = seed_patterns.train(epochs=1)
    assert models[-1].scale == 100.0
    assert seed_patterns.by_way_of_keras_file(models[-1]) in (
        "load_model() raises TypeError",
        "load_model() returns one with scale=1.0",
    )


def test_what_the_examples_say_of_training_is_true(logged: dict[str, Logged]) -> None:
    """The autoencoder goes on training with the losses of the original; the text model's own method works."""
    model, pixels = variational_autoencoder.train(epochs=1)
    copy = mks.load_model(logged["autoencoder"].uri)

    assert variational_autoencoder.train_on(copy, pixels) == variational_autoencoder.train_on(model, pixels)
    assert mks.load_model(logged["docstrings"].uri).name_of("Fit a model.") in text_classifier.LIBRARIES


# --- the demo


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``make demo`` to the end, with one epoch; it leaves a store that the command it prints opens."""
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    monkeypatch.chdir(tmp_path)
    try:
        demo.main(epochs=1)
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])

    printed = capsys.readouterr().out
    assert "3970 predictions, each equal bit for bit." in printed
    assert "mlflow ui --backend-store-uri sqlite:///demo/mlflow.db" in printed
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/demo/mlflow.db", f"sqlite:///{tmp_path}/demo/mlflow.db")
    assert client.get_model_version("digits", "1").name == "digits"


@pytest.mark.parametrize("change", [lambda a: np.nextafter(a, a + 1), lambda a: a.astype(np.float64), lambda a: a[1:]])
def test_demo_leaves_with_an_error_on_any_difference(change: Callable[[Any], Any]) -> None:
    array = np.linspace(0, 1, 5, dtype=np.float32)

    elsewhere.require_equal(array, array.copy())
    with pytest.raises(SystemExit, match="The predictions differ"):
        elsewhere.require_equal(array, change(array))


def test_fresh_process_refuses_to_prove_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="json can be imported here"):
        elsewhere._predict_here("models:/m-1", str(tmp_path), "json")


def test_server_ends_with_the_one_who_started_it(tmp_path: Path) -> None:
    """Also when that one is told to end in the middle."""
    port = elsewhere.free_port()
    code = f"""
import os, pathlib, signal, sys
sys.path.insert(0, {str(EXAMPLES)!r})
from elsewhere import background, sigterm_as_exit
command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "{port}"]
log = pathlib.Path({str(tmp_path)!r}, "log")
with sigterm_as_exit(), background(command, ready="http://127.0.0.1:{port}/", environment=os.environ, log=log):
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)

    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)


def test_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]

    with (
        pytest.raises(RuntimeError, match="no such model"),
        elsewhere.background(command, ready="http://127.0.0.1:1/", environment=os.environ, log=tmp_path / "log"),
    ):
        pass
