"""Log time, load time in a fresh process, and the first prediction after it.

Usage: python benchmarks/start.py [rounds]; with ``--peers-default`` also a save with the peers' own requirements, which
takes half a minute.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
from common import KERAS, OURS, PINS, TENSORFLOW, ratio, rounds, save, table
from mlflow.models import infer_signature
from models import made, rows

import mlflow_keras_subclass as mks

_FRESH = """
import json, statistics, sys, time
sys.path.insert(0, sys.argv[3])
started = time.perf_counter()
import mlflow, numpy, keras, tensorflow
if sys.argv[2] != "ours":
    import models
imported = time.perf_counter()
model = mlflow.pyfunc.load_model(sys.argv[1])
loaded = time.perf_counter()
batch = numpy.zeros((1, 8), numpy.float32)
times = []
for _ in range(200):
    before = time.perf_counter()
    model.predict(batch)
    times.append(time.perf_counter() - before)
print()
print(json.dumps([imported - started, loaded - imported, times[0], statistics.median(times[1:])]))
"""


def log_time(folder: Path, count: int, *, defaults: bool) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_experiment("benchmark")
    model, batch = made("tiny"), rows("tiny", 2)
    signature = infer_signature(batch, model(batch).numpy())
    with mlflow.start_run():
        runs: dict[str, Any] = {
            OURS: lambda: mks.log_model(model, name="m", prove=False),
            KERAS: lambda: mlflow.keras.log_model(model, name="m", signature=signature, pip_requirements=PINS),
            TENSORFLOW: lambda: mlflow.tensorflow.log_model(
                model, name="m", signature=signature, pip_requirements=PINS
            ),
        }
        found = rounds(runs, count=count, seconds=0)
        lines = [[name, f"{min(times):.2f} s", ratio(found, name, OURS)] for name, times in found.items()]
        if defaults:
            started = time.perf_counter()
            mlflow.keras.log_model(model, name="m", signature=signature)
            lines.append(["mlflow.keras, its own requirements", f"{time.perf_counter() - started:.1f} s", ""])
    table("log_model, tiny, sqlite, without proof", ["flavor", "best", "in ours"], lines)


def fresh(folder: Path, count: int) -> None:
    found: dict[str, list[list[float]]] = {}
    paths = {flavor: save(flavor, "tiny", folder / flavor) for flavor in (OURS, TENSORFLOW)}
    for _ in range(count):
        for flavor, path in paths.items():
            command = [sys.executable, "-c", _FRESH, str(path), flavor, str(Path(__file__).parent)]
            output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout
            found.setdefault(flavor, []).append(json.loads(output.splitlines()[-1]))  # Keras prints too
    lines = [
        [
            flavor,
            f"{min(item[0] for item in items):.1f} s",
            f"{min(item[1] for item in items):.2f} s",
            f"{min(item[2] for item in items) * 1e3:.2f} ms",
            min(item[2] / item[3] for item in items),
        ]
        for flavor, items in found.items()
    ]
    header = ["flavor", "imports", "load_model", "first prediction", "first in median"]
    table("A fresh process, tiny", header, lines)


def main(count: int, *, defaults: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        log_time(Path(name), count, defaults=defaults)
        fresh(Path(name), min(count, 3))


if __name__ == "__main__":
    numbers = [item for item in sys.argv[1:] if item.isdecimal()]
    main(int(numbers[0]) if numbers else 5, defaults="--peers-default" in sys.argv)
