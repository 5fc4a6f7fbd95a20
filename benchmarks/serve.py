"""``mlflow models serve``: requests a second, tail latency and answers of many clients, against mlflow.tensorflow.

mlflow.keras cannot be served for a subclass: its server never imports the class. The servers are up at the same time
and asked in turns; every answer is compared. Usage: python benchmarks/serve.py [rounds] [seconds a round]
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import contextlib
import http.client
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from common import OURS, TENSORFLOW, save, table
from models import made, rows
from servers import Server, python_without_package, serving

from mlflow_keras_subclass.serving_process import GC_VARIABLE

UNFROZEN = "ours, collected"


@dataclass
class Load:
    """What clients saw of one server."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    wrong: int = 0

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.latencies, share))


class Payload:
    """A request and what it is to be answered."""

    def __init__(self, name: str, size: int) -> None:
        batch = rows(name, size)
        self.body = json.dumps({"inputs": batch.tolist()}).encode()
        self.expected = made(name)(batch).numpy()

    def is_answer(self, body: bytes) -> bool:
        try:
            return bool(np.allclose(json.loads(body)["predictions"], self.expected, rtol=1e-4, atol=1e-5))
        except (ValueError, KeyError):
            return False


def ask(server: Server, payload: Payload, clients: int, seconds: float, load: Load) -> None:
    """Let ``clients`` ask over connections of their own until ``seconds`` have passed."""
    started = time.perf_counter()
    threads = [
        threading.Thread(target=_client, args=(server, payload, started + seconds, load)) for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds += time.perf_counter() - started


def _client(server: Server, payload: Payload, ends: float, load: Load) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=120)
    while (started := time.perf_counter()) < ends:
        connection.request("POST", "/invocations", payload.body, {"Content-Type": "application/json"})
        answer = connection.getresponse().read()
        load.latencies.append(time.perf_counter() - started)
        load.wrong += not payload.is_answer(answer)
    connection.close()


def compared(
    servers: dict[str, Server], payload: Payload, clients: Sequence[int], rounds: int, seconds: float
) -> dict[int, dict[str, Load]]:
    found = {count: {name: Load() for name in servers} for count in clients}
    for count in clients:
        for _ in range(rounds):
            for name, server in servers.items():
                ask(server, payload, count, seconds, found[count][name])
    return found


def first_requests(servers: dict[str, Server], payload: Payload) -> list[list[object]]:
    lines = []
    for name, server in servers.items():
        times = []
        for _ in range(101):
            started = time.perf_counter()
            server.post(payload.body)
            times.append(time.perf_counter() - started)
        middle = statistics.median(times[1:])
        lines.append([name, f"{times[0] * 1e3:.1f} ms", f"{middle * 1e3:.1f} ms", times[0] / middle])
    return lines


def lines_of(found: dict[int, dict[str, Load]], base: str) -> list[list[object]]:
    lines: list[list[object]] = []
    for count, loads in found.items():
        for name, load in loads.items():
            tail = load.percentile(99)
            other = loads[base]
            ratios = [load.rate / other.rate, tail / other.percentile(99)]
            lines.append([count, name, round(load.rate, 1), f"{tail * 1e3:.0f} ms", *ratios, load.wrong])
    return lines


HEADER = ["clients", "server", "requests/s", "p99", "rate in the base's", "p99 in the base's", "wrong answers"]


def against_peer(folder: Path, stack: contextlib.ExitStack, rounds: int, seconds: float) -> None:
    python = python_without_package(folder / "venv")
    models = {flavor: save(flavor, "tiny", folder / flavor) for flavor in (OURS, TENSORFLOW)}
    servers = {flavor: stack.enter_context(serving(path, folder, python=python)) for flavor, path in models.items()}
    payload = Payload("tiny", 1)
    table("First request", ["server", "first", "median", "first in median"], first_requests(servers, payload))
    found = compared(servers, payload, (1, 8, 32), rounds, seconds)
    table("Tiny, batch 1", HEADER, lines_of(found, TENSORFLOW))


def large_bodies(folder: Path, stack: contextlib.ExitStack, rounds: int, seconds: float) -> None:
    python = python_without_package(folder / "venv")
    path = save(OURS, "cnn", folder / "cnn")
    servers = {
        label: stack.enter_context(serving(path, folder, python=python, environment={GC_VARIABLE: value}))
        for label, value in ((OURS, "on"), (UNFROZEN, "off"))
    }
    payload = Payload("cnn", 16)
    found = compared(servers, payload, (1, 8), rounds, seconds)
    table(f"CNN, JSON bodies of {len(payload.body) / 2**20:.1f} MiB", HEADER, lines_of(found, UNFROZEN))


def several_workers(folder: Path, stack: contextlib.ExitStack, rounds: int, seconds: float) -> None:
    python = python_without_package(folder / "venv")
    path = save(OURS, "tiny", folder / "tiny")
    fast = {"PYTHONPATH": str(uvloop_in(folder / "fast"))}
    servers = {
        f"{count} workers{label}": stack.enter_context(
            serving(path, folder, python=python, workers=count, environment=environment)
        )
        for label, environment in (("", {}), (", uvloop", fast))
        for count in (1, 2)
    }
    found = compared(servers, Payload("tiny", 1), (1, 32), rounds, seconds)
    table("Workers, tiny, batch 1", HEADER, lines_of(found, "1 workers"))


def main(rounds: int, seconds: float) -> None:
    for part in (against_peer, large_bodies, several_workers):
        with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
            part(Path(name), stack, rounds, seconds)


def uvloop_in(folder: Path) -> Path:
    """A folder with uvloop and httptools, which uvicorn takes where it can import them."""
    if _has("uvloop"):
        sys.exit("uvloop is installed here, so that there would be nothing to compare it with.")
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--target", str(folder)]
    subprocess.run([*command, "uvloop", "httptools"], check=True)
    return folder


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 2,
        float(sys.argv[2]) if len(sys.argv) > 2 else 4.0,
    )
