"""Proof at log time: what was just written is rebuilt in an isolated process and compared with the live model.

The process has no user modules (an import hook blocks them), no GPU and no network. It is started once and kept warm,
because importing TensorFlow costs seconds and a proof of a small model a fraction of one. Every route by which the
class could be brought back is tried, so that a load follows what is known to work. Imports model_dir and everything
below it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow_keras_subclass import model_dir, trust
from mlflow_keras_subclass.errors import ProofError
from mlflow_keras_subclass.files import link_or_copy
from mlflow_keras_subclass.manifest import CODE_DIR, DATA_DIR, PROOF_FILE
from mlflow_keras_subclass.model_dir import ModelFacts

__all__ = ["Later", "ProofRecord", "check_graph", "prove"]

_SECONDS = 900.0
_logger = logging.getLogger(__name__)
_PACKAGE_FOLDER = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofRecord:
    """What ``proof.json`` holds: what was compared, and the result.

    Attributes:
        layers: Number of layers compared.
        variables: Number of variables compared, bit for bit.
        attributes: Number of plain attributes compared.
        not_stored: Paths of attributes without data form that the rebuilt model does not have.
        files_read: Files of the machine that were read to rebuild the model, of no package and no system.
        entry_points: For each entry point ``exact``, ``close`` (the live model was on another device), or why its
            answers could not be compared.
        graph: What became of the graph's answers, in the same words; ``None`` if the model has none.
        routes: For each route by which the class can be brought back ``""`` if it brought back this model, else what
            speaks against it.
        device: The device of the other process.
        seconds: How long it took.
    """

    layers: int
    variables: int
    attributes: int
    not_stored: tuple[str, ...]
    files_read: tuple[str, ...]
    entry_points: Mapping[str, str]
    graph: str | None
    routes: Mapping[str, str]
    device: str
    seconds: float


def prove(root: Path, facts: ModelFacts, *, forced: bool) -> ModelFacts:
    """Rebuild ``root`` elsewhere, compare, and add ``proof.json``; returns the facts with the new manifest.

    Args:
        root: The model directory just written.
        facts: Of that directory.
        forced: Whether only the route that the record names will do.

    Raises:
        ProofError: The model does not come back, or not as it is; the text says what differs.
    """
    record = _compare(root, facts, forced=forced)
    if record.not_stored:
        _logger.warning(
            "%s: these attributes were set after construction, have no form as data and do not come back: %s.",
            facts.class_name,
            ", ".join(record.not_stored),
        )
    if record.files_read:
        _logger.warning(
            "%s: its constructor reads %s, which must be where the model is loaded as well. Pass what the constructor "
            "takes from there as an argument instead.",
            facts.class_name,
            ", ".join(record.files_read),
        )
    return model_dir.add_json(root, facts, PROOF_FILE, asdict(record))


def check_graph(root: Path, facts: ModelFacts) -> str:
    """Ask the graph in ``root`` what the class was asked, in this process; the result in one word or a reason.

    Raises:
        ProofError: It answers differently, or not at all.
    """
    try:
        return model_dir.verify_graph(trust.verify(root, trust.TrustPolicy()))
    except Exception as error:
        raise _other_graph(facts, f"{type(error).__name__}: {error}") from error


class Later:
    """A proof that runs while the caller goes on, on links to the files that are being logged."""

    def __init__(self, root: Path, facts: ModelFacts, *, forced: bool) -> None:
        """Keep what ``root`` holds now; it may be moved or removed afterwards."""
        self._folder = Path(tempfile.mkdtemp(prefix="mlflow-keras-subclass-proof-"))
        self._facts = facts
        self._forced = forced
        for name in (DATA_DIR, CODE_DIR):
            if (root / name).is_dir():
                shutil.copytree(root / name, self._folder / name, copy_function=link_or_copy)

    def start(self, done: Callable[[str], None]) -> threading.Thread:
        """Prove in a thread that the process waits for at its end; ``done`` gets ``proven`` or what differs."""
        thread = threading.Thread(target=self._run, args=(done,), name="mlflow-keras-subclass-proof")
        thread.start()
        return thread

    def discard(self) -> None:
        """Remove what was kept."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, done: Callable[[str], None]) -> None:
        try:
            _compare(self._folder, self._facts, forced=self._forced)
            done("proven")
        except ProofError as error:
            done(f"failed: {error.message}")
        finally:
            self.discard()


def _compare(root: Path, facts: ModelFacts, *, forced: bool) -> ProofRecord:
    started = time.monotonic()
    chosen = facts.serialization_format
    answers = {route: _answer(root, facts, route) for route in _routes(facts)}
    proven = [route for route, answer in answers.items() if "error" not in answer]
    if not proven or (forced and chosen not in proven):
        raise ProofError(
            f"{facts.class_name} was written but does not come back as it is, so it was not logged.\n"
            f"{answers[chosen]['error']}",
            paths=answers[chosen].get("paths", ()),
        )
    reasons = {route: str(answer.get("error", "")) for route, answer in answers.items()}
    return ProofRecord(
        **answers[proven[0]]["compared"],
        graph=_graph(root, facts) if facts.has_graph else None,
        routes={**facts.routes, **reasons} if chosen != "import" else reasons,
        device="cpu",
        seconds=round(time.monotonic() - started, 3),
    )


def _graph(root: Path, facts: ModelFacts) -> str:
    """What ``check_graph`` finds where nothing of the user's can be imported."""
    request = {"root": str(root), "graph": True, "blocked": facts.user_modules}
    answer = _worker(facts.manifest.versions.backend).ask(request)
    if "error" in answer:
        raise _other_graph(facts, answer["error"])
    return str(answer["compared"]["graph"])


def _other_graph(facts: ModelFacts, why: str) -> ProofError:
    return ProofError(
        f"{facts.class_name}: the graph that was written does not answer as the class does, so it was not logged."
        f"\n{why}\n"
        "Its call depends on something outside of its tensors and variables. Mend that, or leave export_graph out."
    )


def _routes(facts: ModelFacts) -> list[str]:
    """The route that the record names, then the others that nothing speaks against."""
    chosen = facts.serialization_format
    if chosen == "import":
        return [chosen]
    return [chosen, *(route for route in ("cloudpickle", "source") if route != chosen and not facts.routes[route])]


def _answer(root: Path, facts: ModelFacts, route: str) -> dict[str, Any]:
    blocked = [] if route == "import" else list(facts.user_modules)
    request = {"root": str(root), "route": route, "blocked": blocked}
    return _worker(facts.manifest.versions.backend).ask(request)


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
