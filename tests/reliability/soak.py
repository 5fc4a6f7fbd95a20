"""A server under load for minutes: 32 clients send good and bad requests, and get what one client alone gets.

``python soak.py 600 32`` (``make soak``) serves a model, asks every request of a sample once by itself, and then all of
them at once, for so many seconds, over connections that stay open. Good requests must get the same bytes as before, bad
ones the same 4xx, and resident memory must not grow after the first fifth of the time. It ends with a status.
"""

from __future__ import annotations

import http.client
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import hypothesis
import numpy as np
from request_fuzzing import SEED, Reply, Request, Target, requests_for, save_models, verdict
from servers import Server, python_without_package, serving

# Resident memory may move by that share after warm-up: allocators keep what the largest requests needed.
MAY_GROW = 0.05


@dataclass
class Seen:
    """What one client saw."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: {"good": [], "bad": []})
    wrong: list[str] = field(default_factory=list)


def sample(server: Server, target: Target, count: int) -> dict[str, list[tuple[Request, Reply]]]:
    """Requests with what they are answered when nobody else asks, good and bad; MLflow's own 500s are left out."""
    found: dict[str, list[tuple[Request, Reply]]] = {"good": [], "bad": []}

    @hypothesis.seed(SEED)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(requests_for(target))
    def ask(request: Request) -> None:
        # http.client writes a type of its own, or none that is not ASCII.
        if not (request.content_type or "").isascii() or not request.content_type:
            return
        reply = Reply(*server.send(request.body, request.content_type))
        kind = {"right": "good", "refused": "bad"}.get(verdict(target, request, reply))
        if kind is not None:
            found[kind].append((request, reply))

    ask()
    return found


def client(server: Server, sampled: dict[str, list[tuple[Request, Reply]]], ends: float, seed: int, seen: Seen) -> None:
    """Ask until ``ends``, two good requests for each bad one."""
    chosen = random.Random(seed)
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=120)
    while time.perf_counter() < ends:
        kind = chosen.choice(("good", "good", "bad"))
        request, expected = chosen.choice(sampled[kind])
        started = time.perf_counter()
        connection.request("POST", "/invocations", request.body, {"Content-Type": request.content_type})
        response = connection.getresponse()
        found = Reply(response.status, response.read())
        seen.latencies[kind].append(time.perf_counter() - started)
        same = found == expected if kind == "good" else found.status == expected.status
        if not same:
            seen.wrong.append(f"{request.body[:300]!r}: {expected.status} {expected.body[:200]!r} alone, {found} here")
    connection.close()


def soak(server: Server, target: Target, seconds: float, clients: int) -> bool:
    """Print what was seen; whether it was as it should be."""
    sampled = sample(server, target, 1500)
    started = time.perf_counter()
    seen = [Seen() for _ in range(clients)]
    threads = [
        threading.Thread(target=client, args=(server, sampled, started + seconds, number, one))
        for number, one in enumerate(seen)
    ]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(5.0, seconds / 20))
        memory.append(server.resident_mib())
    took = time.perf_counter() - started
    wrong = [text for one in seen for text in one.wrong]
    for kind, requests in sampled.items():
        latencies = [item for one in seen for item in one.latencies[kind]]
        tails = ", ".join(f"p{share} {np.percentile(latencies, share) * 1e3:.0f} ms" for share in (50, 90, 99, 99.9))
        print(f"{kind}: {len(latencies)} answers to {len(requests)} requests, {len(latencies) / took:.0f}/s, {tails}")
    statuses = Counter(reply.status for _, reply in sampled["bad"])
    # A quarter of the samples on either side, so that a single large request does not decide.
    after = memory[len(memory) // 5 :]
    quarter = max(1, len(after) // 4)
    first, last = np.median(after[:quarter]), np.median(after[-quarter:])
    print(f"statuses of the bad: {dict(statuses)}; other answers than alone: {len(wrong)}")
    resident = f"resident {first:.0f} MiB after warm-up, {last:.0f} at the end, {max(memory):.0f} at most"
    print(f"{clients} clients, {took:.0f} s; {resident}")
    print(*wrong[:5], sep="\n")
    return not wrong and last <= first * (1 + MAY_GROW)


def main(seconds: float, clients: int) -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        targets = save_models(folder)
        with serving(folder / "house", folder, python=python_without_package(folder / "venv")) as server:
            return soak(server, targets["house"], seconds, clients)


if __name__ == "__main__":
    sys.exit(not main(float(sys.argv[1]), int(sys.argv[2])))
