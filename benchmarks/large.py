"""Large models: what it costs to save, log and load them, beside Keras, ``mlflow.keras`` and a plain copy of the bytes.

Usage: python benchmarks/large.py SIZE [rounds [WAY…]]; SIZE is a key of ``SIZES``, and of ``WAYS`` all are taken, or
those that are named. Every way is a process of its own, and its files are removed before the next. Time is given in
that of a plain copy or read of the same bytes in the same round. Memory is what is added to a process that holds the
model already (or nothing yet, when it is loaded). Disk is what lay in the temporary folder and at the target while it
ran, hard links counted once: beyond what was there at the end for what stores, and at the beginning for what loads. All
of it is divided by the size of the weights.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from servers import tracking

# A class of models.py and its arguments.
SIZES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "1gb": ("Large", {}),
    "4gb": ("Large", {"layers": 15, "width": 2**13, "vocabulary": 2**13, "fill": 2.0**-13}),
    "one-of-3gb": ("Large", {"layers": 1, "width": 2**10, "vocabulary": 3 * 2**18}),
    "10000-variables": ("Many", {}),
}
COPY, READ, CONSTRUCTED = "plain copy of the file", "plain read of the file", "construction alone"
# Each way to store it, and how what was stored is loaded; the first of each is what the others are compared with.
WAYS: Mapping[str, tuple[str, ...]] = {
    COPY: (READ, CONSTRUCTED),
    "save_weights, .weights.h5": ("construction and load_weights",),
    "model.save, .keras": ("keras.models.load_model",),
    "save_model": ("load_model", "pyfunc.load_model"),
    "save_model with proof": (),
    "log_model, local store": ("load_model, local store",),
    "mlflow.keras.log_model, local store": ("mlflow.keras.load_model, local store",),
    "log_model, HTTP": ("load_model, HTTP", "pyfunc.load_model, HTTP"),
    "mlflow.keras.log_model, HTTP": ("mlflow.keras.load_model, HTTP",),
}
COLUMNS = ["way", "seconds", "in that of the first", "peak memory / weights", "added disk / weights"]
BEGIN, EXPERIMENT = "begin", "large"


# --- one way, in a process of its own


def measure(way: str, size: str, folder: Path) -> None:
    """Run ``way`` in ``folder`` and print the seconds and the memory that it took."""
    import numpy as np
    import tensorflow as tf

    tf.zeros(1)
    stores = way in WAYS
    model = made(size) if stores and way != COPY else None
    if model is not None:
        model(np.zeros((1, 2), "int32"))
    run = (_stores if stores else _loads)(way, size, folder, model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _memory("VmRSS")
    print(BEGIN, flush=True)
    started = time.perf_counter()
    kept = run()
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, _memory("VmHWM") - before]), flush=True)
    del kept


def made(size: str) -> Any:
    """The model of that size, not called yet."""
    import models

    name, arguments = SIZES[size]
    return getattr(models, name)(**arguments)


def _stores(way: str, size: str, folder: Path, model: Any) -> Callable[[], Any]:
    import mlflow
    from common import PINS

    import mlflow_keras_subclass as mks

    if "local store" in way:
        mlflow.create_experiment(EXPERIMENT, artifact_location=(folder / "artifacts").as_uri())
        mlflow.set_experiment(EXPERIMENT)

    def ours() -> None:
        _logged(folder, mks.log_model(model, name="m", prove=False).model_uri)

    def theirs() -> None:
        _logged(folder, mlflow.keras.log_model(model, name="m", pip_requirements=PINS).model_uri)

    runs: dict[str, Callable[[], Any]] = {
        COPY: lambda: shutil.copyfile(folder / "bytes", folder / "copied"),
        "save_weights, .weights.h5": lambda: model.save_weights(folder / "m.weights.h5"),
        "model.save, .keras": lambda: model.save(folder / "m.keras"),
        "save_model": lambda: mks.save_model(model, folder / "m", prove=False),
        "save_model with proof": lambda: mks.save_model(model, folder / "m"),
        "log_model, local store": ours,
        "log_model, HTTP": ours,
        "mlflow.keras.log_model, local store": theirs,
        "mlflow.keras.log_model, HTTP": theirs,
    }
    return runs[way]


def _loads(way: str, size: str, folder: Path, _: Any) -> Callable[[], Any]:
    import keras
    import mlflow
    import models  # noqa: F401 - its classes are registered

    import mlflow_keras_subclass as mks

    def restored() -> Any:
        model = made(size)
        model.built = True
        model.load_weights(folder / "m.weights.h5")
        return model

    uri = (folder / "uri").read_text() if (folder / "uri").exists() else str(folder / "m")
    runs: dict[str, Callable[[], Any]] = {
        READ: lambda: _read(folder / "bytes"),
        CONSTRUCTED: lambda: made(size),
        "construction and load_weights": restored,
        "keras.models.load_model": lambda: keras.models.load_model(folder / "m.keras"),
        "load_model": lambda: mks.load_model(uri),
        "pyfunc.load_model": lambda: mlflow.pyfunc.load_model(uri),
        "mlflow.keras.load_model": lambda: mlflow.keras.load_model(uri),
    }
    return runs[way.partition(",")[0]]


def _logged(folder: Path, uri: str) -> None:
    (folder / "uri").write_text(uri)


def _read(path: Path) -> list[Any]:
    """The arrays, as safetensors lays them out: the length of a header, the header, then one after the other."""
    import numpy as np

    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        arrays = []
        for entry in header.values():
            array = np.empty(entry["shape"], entry["dtype"].replace("F", "float").replace("I", "int"))
            file.readinto(array.reshape(-1).view(np.uint8))
            arrays.append(array)
    return arrays


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


# --- all of them


class Disk:
    """The most that lies in a folder while a way runs, looked at fifty times a second."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak_bytes = 0

    def __enter__(self) -> Disk:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak_bytes = max(self.peak_bytes, self.now())

    def now(self) -> int:
        """Bytes in the folder, each file once whatever its number of names."""
        found = {}
        for root, _, names in os.walk(self._folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(os.path.join(root, name))  # noqa: PTH118 - ten thousand times a second
                    found[status.st_ino] = status.st_size
        return sum(found.values())


def run(way: str, size: str, folder: Path) -> tuple[float, int, int]:
    """Seconds, added memory and added disk of one way."""
    environment = {**os.environ, "MLFLOW_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, __file__, "--one", way, size, str(folder)]
    disk = Disk(folder.parent)
    log = folder.parent / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as child,
    ):
        assert child.stdout is not None
        while (line := child.stdout.readline()) and line.strip() != BEGIN:
            pass
        before = disk.now()
        with disk:
            # Keras draws bars here; what is left to read is short.
            line = next((text for text in child.stdout if text.startswith("[")), "")
        left = disk.now()
    if child.returncode != 0:
        raise SystemExit(f"{way}: {log.read_text()[-4000:]}")
    seconds, memory = json.loads(line)
    return seconds, memory, max(disk.peak_bytes - (left if way in WAYS else before), 0)


@contextlib.contextmanager
def store(way: str, root: Path) -> Iterator[None]:
    """The tracking store that a way needs, in the environment of its processes."""
    if "HTTP" in way:
        with tracking(root) as url:
            os.environ["MLFLOW_TRACKING_URI"] = url
            yield
    else:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{root}/mlflow.db"
        yield


def one_round(
    ways: Mapping[str, tuple[str, ...]], size: str, root: Path, found: dict[str, list[tuple[float, int, int]]]
) -> None:
    """Every way once."""
    for way, loads in ways.items():
        folder = root / "target"
        folder.mkdir()
        if way == COPY:
            (root / "bytes").replace(folder / "bytes")
        with store(way, folder):
            for item in (way, *loads):
                found.setdefault(item, []).append(run(item, size, folder))
                print(f"{item}: {found[item][-1]}", file=sys.stderr, flush=True)
        if way == COPY:
            (folder / "bytes").replace(root / "bytes")
        shutil.rmtree(folder)


def write_bytes(size: str, path: Path) -> int:
    """A file with the weights of the model, for the plain ways; returns the size of the weights."""
    script = """
import sys
import numpy as np, mlflow_keras_subclass as mks
from large import made
model = made(sys.argv[1])
model(np.zeros((1, 2), "int32"))
mks.save_model(model, sys.argv[2], prove=False, max_shard_size=None)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        subprocess.run([sys.executable, "-c", script, size, f"{folder}/m"], env=environment, check=True)
        Path(folder, "m/keras_subclass/state.safetensors").replace(path)
    return path.stat().st_size


def main() -> None:
    from common import table

    size, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
    chosen = [COPY, *(sys.argv[3:] or WAYS)]
    ways = {way: loads for way, loads in WAYS.items() if way in chosen}
    found: dict[str, list[tuple[float, int, int]]] = {}
    with tempfile.TemporaryDirectory(prefix="large-") as name:
        root = Path(name)
        (root / "tmp").mkdir()
        os.environ["TMPDIR"] = str(root / "tmp")
        weights = write_bytes(size, root / "bytes")
        for _ in range(count):
            one_round(ways, size, root, found)

    def line(way: str, base: str) -> list[str]:
        seconds = statistics.median(row[0] for row in found[way])
        ratio = statistics.median(row[0] / other[0] for row, other in zip(found[way], found[base], strict=True))
        memory, disk = (statistics.median(row[n] for row in found[way]) / weights for n in (1, 2))
        return [way, f"{seconds:.2f}", f"{ratio:.2f}", f"{memory:.2f}", f"{disk:.2f}"]

    gib = f"{size}: {weights / 2**30:.3g} GiB, {count} rounds"
    table(f"Save and log, {gib}", COLUMNS, [line(way, COPY) for way in ways])
    table(f"Load, {gib}", COLUMNS, [line(way, READ) for loads in ways.values() for way in loads])


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        measure(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main()
