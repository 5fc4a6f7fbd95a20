"""What the examples share: a local MLflow store, a process that never saw the model's source, and a scoring server.

Run as a script in Python's isolated mode, this file *is* that process: there, nothing of this folder can be imported.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np

import mlflow_keras_subclass as mks

STORE = Path("demo")


class Reloaded(NamedTuple):
    """What a fresh process predicted: with the model itself, and through MLflow's ``python_function``."""

    native: np.ndarray
    pyfunc: np.ndarray


def use_local_store(experiment: str) -> None:
    """Log to ``demo/mlflow.db`` below the current folder, with the files beside it."""
    store = STORE.absolute()
    store.mkdir(exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{store / 'mlflow.db'}")
    mlflow.set_registry_uri(mlflow.get_tracking_uri())
    if mlflow.get_experiment_by_name(experiment) is None:
        mlflow.create_experiment(experiment, artifact_location=(store / "artifacts" / experiment).as_uri())
    mlflow.set_experiment(experiment)


def in_fresh_process(model_uri: str, inputs: Any, *, source: str) -> Reloaded:
    """Predict ``inputs`` in a new process that can't import the file ``source``, where the class is written."""
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder, "inputs.npz"), inputs)
        done = subprocess.run(
            [sys.executable, "-I", __file__, model_uri, folder, Path(source).stem],
            cwd=folder,
            env={**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"The fresh process ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
        with np.load(Path(folder, "outputs.npz")) as outputs:
            return Reloaded(**outputs)


def require_equal(expected: Any, found: Any) -> None:
    """Leave with a message and a non-zero status unless both are the same, bit for bit."""
    expected, found = np.asarray(expected), np.asarray(found)
    if expected.dtype != found.dtype or not np.array_equal(expected, found):
        sys.exit(f"The predictions differ.\nexpected: {expected.dtype}\n{expected}\nfound: {found.dtype}\n{found}")


@contextlib.contextmanager
def serving(model_uri: str) -> Iterator[str]:
    """``mlflow models serve`` on a free port; yields the URL that scores. The server ends with us, come what may."""
    port = free_port()
    where = ["-m", model_uri, "-h", "127.0.0.1", "-p", str(port), "--env-manager", "local"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        # MLflow starts uvicorn by its name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    with tempfile.TemporaryDirectory() as folder, sigterm_as_exit():
        command = [sys.executable, "-m", "mlflow", "models", "serve", *where]
        ready = f"http://127.0.0.1:{port}/ping"
        with background(command, ready=ready, environment=environment, log=Path(folder, "log")):
            yield f"http://127.0.0.1:{port}/invocations"


def score(url: str, inputs: Any) -> np.ndarray:
    """The predictions of a scoring server for an array or a dict of arrays; JSON numbers become float32 again."""
    if isinstance(inputs, Mapping):
        payload = {name: array.tolist() for name, array in inputs.items()}
    else:
        payload = inputs.tolist()
    body = json.dumps({"inputs": payload}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return np.array(json.load(response)["predictions"], np.float32)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def background(
    command: Sequence[str], *, ready: str, environment: Mapping[str, str], log: Path, seconds: float = 180
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` with all its children beside us until the block ends; it starts when the URL ``ready`` answers.

    An error if that takes more than ``seconds``.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=log.parent, env=dict(environment), stdout=file, stderr=file, start_new_session=True
        )
        try:
            if not _answers(ready, process, seconds):
                output = log.read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"{' '.join(command)} does not answer:\n{output}")
            yield process
        finally:
            _stop(process)


@contextlib.contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Make of SIGTERM an exception, so that it runs the ``finally`` that stops what runs beside us."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _answers(url: str, process: subprocess.Popen[bytes], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return True
        time.sleep(0.1)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
            return


def write_inputs(path: Path, inputs: Any) -> None:
    """An array, or a dict of arrays, for the other process; strings without pickle."""
    named = inputs if isinstance(inputs, Mapping) else {"": inputs}
    np.savez(path, **{name: array.astype(str) if array.dtype == object else array for name, array in named.items()})


def read_inputs(path: Path) -> Any:
    with np.load(path) as stored:
        named = {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in stored.items()}
    return named.get("", named)


def _predict_here(model_uri: str, folder: str, source: str) -> None:
    if importlib.util.find_spec(source) is not None:
        sys.exit(f"{source} can be imported here, so this would prove nothing.")
    inputs = read_inputs(Path(folder, "inputs.npz"))
    native = mks.load_model(model_uri).predict(inputs, verbose=0)
    pyfunc = mlflow.pyfunc.load_model(model_uri).predict(inputs)
    np.savez(Path(folder, "outputs.npz"), native=native, pyfunc=pyfunc)


if __name__ == "__main__":
    _predict_here(*sys.argv[1:])
