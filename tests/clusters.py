"""A standalone Spark cluster on loopback: a master and workers in processes of their own, and a session on it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyspark
from elsewhere import background, free_port
from pyspark.sql import SparkSession

HOME = Path(pyspark.__file__).parent


@contextlib.contextmanager
def standalone(folder: Path, *, workers: int = 2) -> Iterator[str]:
    """The address of a master with so many workers of one core each; ``folder`` holds logs and scratch files."""
    port, page = free_port(), free_port()
    address = f"spark://127.0.0.1:{port}"
    with contextlib.ExitStack() as stack:
        where = ["--host", "127.0.0.1", "--port", str(port), "--webui-port", str(page)]
        ready = f"http://127.0.0.1:{page}/json/"
        stack.enter_context(_daemon("master.Master", where, ready=ready, folder=folder, name="master"))
        for number in range(workers):
            own, name = free_port(), f"worker-{number}"
            where = ["--host", "127.0.0.1", "--webui-port", str(own), "--cores", "1", "--memory", "2g"]
            where += ["--work-dir", str(folder / name), address]
            ready_worker = f"http://127.0.0.1:{own}/json/"
            stack.enter_context(_daemon("worker.Worker", where, ready=ready_worker, folder=folder, name=name))
        _wait_for(ready, workers)
        yield address


@contextlib.contextmanager
def session(address: str, python: Path | str) -> Iterator[Any]:
    """A Spark session whose executors run Python workers with ``python``, one each."""
    before = {name: os.environ.get(name) for name in ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON", "SPARK_LOCAL_IP")}
    os.environ.update(PYSPARK_PYTHON=str(python), PYSPARK_DRIVER_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1")
    options = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.executor.memory": "1g",
        "spark.executor.cores": "1",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "10000",
    }
    builder = SparkSession.builder.master(address).appName("mlflow-keras-subclass")
    for name, value in options.items():
        builder = builder.config(name, value)
    found = builder.getOrCreate()
    try:
        yield found
    finally:
        found.stop()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _daemon(kind: str, where: list[str], *, ready: str, folder: Path, name: str) -> Any:
    # What the workers start must find nothing through this process' environment.
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYSPARK", "SPARK"))}
    environment = {**kept, "SPARK_HOME": str(HOME), "SPARK_LOCAL_IP": "127.0.0.1"}
    command = [str(HOME / "bin" / "spark-class"), f"org.apache.spark.deploy.{kind}", *where]
    return background(command, ready=ready, environment=environment, log=folder / f"{name}.log")


def _wait_for(page: str, workers: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with urllib.request.urlopen(page, timeout=5) as response:
            if json.load(response)["aliveworkers"] >= workers:
                return
        time.sleep(0.2)
    raise RuntimeError(f"{page}: fewer than {workers} workers after {seconds} s")
