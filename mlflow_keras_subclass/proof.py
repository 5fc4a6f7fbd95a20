"""Proof at log time: what was just written is rebuilt in an isolated process and compared with the live model.

The process has no user modules (an import hook blocks them), no GPU and no network. It is started once and kept warm,
because importing TensorFlow costs seconds and a proof of a small model a fraction of one. Imports model_dir and
everything below it.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_keras_subclass import keras_api, model_dir
from mlflow_keras_subclass.errors import ProofError
from mlflow_keras_subclass.keras_api import KerasApi
from mlflow_keras_subclass.manifest import PROOF_FILE
from mlflow_keras_subclass.model_dir import ModelFacts
from mlflow_keras_subclass.specs import ArraySpec, InputSpec

__all__ = ["ProofRecord", "outputs_of", "prove", "read_arrays", "write_arrays"]

_SECONDS = 900.0
_PACKAGE_FOLDER = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofRecord:
    """What ``proof.json`` holds: what was compared, and on what.

    ``probe`` is ``input_example`` or ``seeded`` (drawn from the input spec), or says why no outputs were compared.
    """

    layers: int
    variables: int
    attributes: int
    outputs: int
    probe: str
    exact: bool
    device: str
    seconds: float


def prove(
    model: Any,
    root: Path,
    facts: ModelFacts,
    example: Mapping[str | None, Any] | None,
    *,
    importable: bool = False,
) -> ModelFacts:
    """Rebuild ``root`` elsewhere, compare, and add ``proof.json``; returns the facts with the new manifest.

    Args:
        model: The live model; as it was afterwards.
        root: The model directory just written.
        facts: Of that directory.
        example: An input by name, used in place of a seeded one.
        importable: Whether the class is meant to be imported where the model is loaded; its modules are not blocked.

    Raises:
        ProofError: The model does not come back, or not as it is; the text says what differs.
    """
    started = time.monotonic()
    api = keras_api.for_model(model)
    with tempfile.TemporaryDirectory(prefix="mlflow-keras-subclass-proof-") as folder:
        probe, reason = _probe(facts.input_spec, example)
        expected: list[Any] | None = None
        if probe is not None and facts.input_spec is not None:
            with api.device("cpu:0"):
                expected, reason = _expected(api, model, facts.input_spec, probe, reason)
        if expected is not None:
            write_arrays(Path(folder, "inputs.npz"), [*probe.values()] if probe else [])
            write_arrays(Path(folder, "outputs.npz"), expected)
        # Another device sums in another order.
        exact = not any(name.startswith("gpu") for name in api.devices())
        answer = _worker(api.backend).ask(
            {
                "root": str(root),
                "probe": folder if expected is not None else None,
                "exact": exact,
                "blocked": [] if importable else list(facts.user_modules),
            }
        )
    if "error" in answer:
        raise ProofError(
            f"{facts.class_name} was written but does not come back as it is, so it was not logged.\n{answer['error']}"
        )
    seconds = round(time.monotonic() - started, 3)
    record = ProofRecord(**answer["compared"], probe=reason, exact=exact, device="cpu", seconds=seconds)
    return model_dir.add_json(root, facts, PROOF_FILE, asdict(record))


def _probe(
    spec: InputSpec | None, example: Mapping[str | None, Any] | None
) -> tuple[dict[str | None, Any] | None, str]:
    if spec is None:
        return None, "no call of the model was seen"
    if example is not None:
        return dict(example), "input_example"
    rng = np.random.default_rng(20261124)
    return {name: _drawn(leaf, rng) for name, leaf in spec.leaves().items()}, "seeded"


def _drawn(leaf: ArraySpec, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    shape = leaf.observed or tuple(2 if size is None else size for size in leaf.shape)
    if leaf.dtype == "string":
        return np.full(shape, "probe", dtype=object)
    if leaf.dtype == "bool" or "int" in leaf.dtype:
        # Small: a token must be in the vocabulary, a class among the classes.
        return rng.integers(0, 2, shape).astype(leaf.dtype)
    return rng.normal(size=shape).astype(leaf.dtype)


def _expected(
    api: KerasApi, model: Any, spec: InputSpec, probe: Mapping[str | None, Any], reason: str
) -> tuple[list[Any] | None, str]:
    """The live model's outputs, or none and why; its state afterwards is that before."""
    answers = []
    for _ in range(2):
        try:
            with model_dir.unchanged(api, model):
                answers.append(outputs_of(api, model, spec, probe))
        except Exception as error:
            # The live model itself does not take this call: there is nothing to compare with.
            return None, f"the model's own call raised {type(error).__name__}"
    if any(_digest(one) != _digest(other) for one, other in zip(*answers, strict=True)):
        return None, "the model draws from a random generator that is not part of it: no two calls answer alike"
    return answers[0], reason


def _digest(array: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], bytes]:
    content = array.astype(str) if array.dtype == object else array
    return array.dtype.name, array.shape, hashlib.sha256(np.ascontiguousarray(content).tobytes()).digest()


def outputs_of(api: KerasApi, model: Any, spec: InputSpec, arrays: Mapping[str | None, Any]) -> list[Any]:
    """Every output of one call, flat, as arrays."""
    args, kwargs = spec.bind({name: api.tensor(array) for name, array in arrays.items()})
    return [api.value(item) for item in api.keras.tree.flatten(model(*args, **kwargs))]


def write_arrays(path: Path, arrays: list[Any]) -> None:
    """Write arrays for the other process; strings as text, so that nothing is pickled."""
    plain = [array.astype(str) if array.dtype == object else array for array in map(np.asarray, arrays)]
    np.savez(path, *[array.view(np.uint16) if array.dtype.name == "bfloat16" else array for array in plain])


def read_arrays(path: Path) -> list[Any]:
    """The inverse of ``write_arrays``."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = [stored[f"arr_{number}"] for number in range(len(stored.files))]
    return [array.astype(object) if array.dtype.kind == "U" else array for array in arrays]


class _Worker:
    """The other process, asked one thing at a time."""

    def __init__(self, backend: str) -> None:
        self._owner = os.getpid()
        self.backend = backend
        self._lock = threading.Lock()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, str(_PACKAGE_FOLDER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=tempfile.gettempdir(),
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu", "KERAS_BACKEND": backend},
        )

    def usable(self, backend: str) -> bool:
        return self._owner == os.getpid() and self._process.poll() is None and self.backend == backend

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock, self._deadline():
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None
            assert stdout is not None
            with contextlib.suppress(BrokenPipeError):
                stdin.write(json.dumps(request).encode() + b"\n")
                stdin.flush()
            line = stdout.readline()
        if not line:
            return {
                "error": f"The process that rebuilt it ended with status {self._process.wait()}.\n{self._last_words()}"
            }
        answer: dict[str, Any] = json.loads(line)
        return answer

    @contextlib.contextmanager
    def _deadline(self) -> Iterator[None]:
        timer = threading.Timer(_SECONDS, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")[-2000:]

    def stop(self) -> None:
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout, self._log):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()


_START = "import sys; sys.path.append(sys.argv[1]); from mlflow_keras_subclass.proof_worker import main; main()"

# The one warm process; a process of its own for each that forked from this one.
_WORKERS: list[_Worker] = []
_STARTING = threading.Lock()


def _worker(backend: str) -> _Worker:
    with _STARTING:
        if not _WORKERS or not _WORKERS[0].usable(backend):
            _stop_workers()
            _WORKERS.append(_Worker(backend))
        return _WORKERS[0]


@atexit.register
def _stop_workers() -> None:
    while _WORKERS:
        _WORKERS.pop().stop()
