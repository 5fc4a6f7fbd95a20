"""What the benchmarks share: the same model saved by each flavor, interleaved rounds, and a table of ratios."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import mlflow
from mlflow.models import infer_signature
from models import Cnn, Tiny, Transformer, made, rows

import mlflow_keras_subclass as mks

# The peers' own requirement inference runs the model in a subprocess for half a minute; with this they all save alike.
PINS = ["mlflow", "keras", "tensorflow"]
OURS, KERAS, TENSORFLOW, EXPORTED = "ours", "mlflow.keras", "mlflow.tensorflow", "mlflow.keras, exported"


def save(flavor: str, name: str, path: Path) -> Path:
    """Save the model ``name`` with ``flavor`` to ``path``."""
    model, batch = made(name), rows(name, 2)
    signature = infer_signature(batch, model(batch).numpy())
    if flavor == OURS:
        mks.save_model(model, path, prove=False)
    elif flavor == TENSORFLOW:
        custom = {kind.__name__: kind for kind in (Cnn, Tiny, Transformer)}
        mlflow.tensorflow.save_model(
            model,
            str(path),
            custom_objects=custom,
            signature=signature,
            pip_requirements=PINS,
            code_paths=[str(Path(__file__).with_name("models.py"))],
        )
    else:
        exported = flavor == EXPORTED
        mlflow.keras.save_model(
            model, str(path), save_exported_model=exported, signature=signature, pip_requirements=PINS
        )
    return path


def rounds(candidates: Mapping[str, Callable[[], Any]], *, count: int, seconds: float = 0.2) -> dict[str, list[float]]:
    """Seconds a call of each candidate, in rounds that take turns, so that a busy machine is busy for all of them."""
    found: dict[str, list[float]] = {name: [] for name in candidates}
    with contextlib.redirect_stdout(io.StringIO()):  # Keras draws progress bars
        for run in candidates.values():
            run()
        for _ in range(count):
            for name, run in candidates.items():
                found[name].append(_typical(run, seconds))
    return found


def _typical(run: Callable[[], Any], seconds: float) -> float:
    """A quick one (the 10th percentile) of the calls that fit into ``seconds``: the others waited for other work."""
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < ends:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 10]


def ratio(found: Mapping[str, list[float]], name: str, base: str) -> float:
    """Median over the rounds of ``name``'s time in that of ``base``."""
    return statistics.median(one / other for one, other in zip(found[name], found[base], strict=True))


def resident_mib() -> float:
    """Resident memory of this process."""
    with Path("/proc/self/statm").open(encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def table(title: str, header: Iterable[str], lines: Iterable[Iterable[Any]]) -> None:
    """Print a Markdown table."""
    names = list(header)
    print(f"\n## {title}\n\n| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for line in lines:
        print(f"| {' | '.join(_cell(item) for item in line)} |")
    print(f"\n{_machine()}", flush=True)


def _cell(item: Any) -> str:
    return f"{item:.3g}" if isinstance(item, float) else str(item)


def _machine() -> str:
    load = os.getloadavg()[0]
    return f"{date.today()}, {os.cpu_count()} cores, {platform.machine()}, load {load:.1f} at the end."
