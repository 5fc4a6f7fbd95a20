"""Load 1 GB of weights: time against a plain read and construction, and memory against the weights.

Usage: python benchmarks/load_large.py [rounds]. Every load is a process of its own, the ways take turns, and the files
are in the page cache for all of them. Memory is what the load adds to a process that has imported everything: the peak
while it runs, and what stays.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import KERAS, OURS, PINS, table

CONSTRUCTED, READ, H5 = "construction alone", "plain read", "construction and load_weights(.h5)"
WAYS = (READ, CONSTRUCTED, OURS, KERAS, H5)

_LOAD = """
import json, sys, time
way, folder, benchmarks = sys.argv[1:]
sys.path.insert(0, benchmarks)
import keras, mlflow, numpy as np, tensorflow as tf
import mlflow_keras_subclass as mks
import models
from pathlib import Path
tf.zeros(1)

def memory(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024

def read(path):
    # As safetensors lays it out: the length of a header, the header, then the arrays one after the other.
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        arrays = []
        for name, entry in header.items():
            array = np.empty(entry["shape"], entry["dtype"].replace("F", "float").replace("I", "int"))
            file.readinto(array.reshape(-1).view(np.uint8))
            arrays.append(array)
        return arrays

def weights():
    model = models.Large()
    model.built = True
    model.load_weights(f"{folder}/model.weights.h5")
    return model

run = {
    "plain read": lambda: read(f"{folder}/ours/keras_subclass/state.safetensors"),
    "construction alone": models.Large,
    "ours": lambda: mks.load_model(f"{folder}/ours"),
    "mlflow.keras": lambda: mlflow.keras.load_model(f"{folder}/keras"),
    "construction and load_weights(.h5)": weights,
}[way]
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before, started = memory("VmRSS"), time.perf_counter()
kept = run()
seconds = time.perf_counter() - started
print()
print(json.dumps([seconds, memory("VmHWM") - before, memory("VmRSS") - before]))
"""

_SAVE = """
import sys
folder, benchmarks, pins = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
sys.path.insert(0, benchmarks)
import mlflow, numpy as np
import mlflow_keras_subclass as mks
import models
model = models.Large()
model(np.zeros((1, 2), "int32"))
mks.save_model(model, f"{folder}/ours", prove=False)
mlflow.keras.save_model(model, f"{folder}/keras", pip_requirements=pins)
model.save_weights(f"{folder}/model.weights.h5")
print()
print(sum(int(np.prod(item.shape)) * 4 for item in model.weights))
"""


def _run(script: str, *arguments: str) -> Any:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    benchmarks = str(Path(__file__).parent)
    with tempfile.TemporaryDirectory() as folder:
        size = _run(_SAVE, folder, benchmarks, ",".join(PINS))
        found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
        for _ in range(count):
            for way in WAYS:
                found[way].append(_run(_LOAD, way, folder, benchmarks))

    def median(way: str, column: int) -> float:
        return statistics.median(row[column] for row in found[way])

    base = [a[0] + b[0] for a, b in zip(found[READ], found[CONSTRUCTED], strict=True)]
    rows = []
    for way in WAYS:
        times = statistics.median(row[0] / other for row, other in zip(found[way], base, strict=True))
        rows.append([way, f"{median(way, 0):.2f} s", f"{times:.2f}", *(f"{median(way, n) / size:.2f}" for n in (1, 2))])
    title = f"Load {size / 2**30:.2f} GiB of weights, {count} rounds; time in that of a plain read and construction"
    table(title, ["way", "seconds", "time ratio", "peak / weights", "settled / weights"], rows)


if __name__ == "__main__":
    main()
