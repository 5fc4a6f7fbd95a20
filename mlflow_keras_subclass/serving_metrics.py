"""Prometheus metrics of a scoring server, on a port of their own, if the environment asks for them.

MLflow (3.17) gives a flavor no way into the server's application, so what is counted is what reaches ``predict``.
Imports errors and serving_process; ``prometheus_client`` is imported when asked for.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import time
from collections.abc import Iterator
from typing import Any

from mlflow_keras_subclass.errors import KerasSubclassError
from mlflow_keras_subclass.serving_process import is_server, worker_count

__all__ = ["DIRECTORY_VARIABLE", "HOST_VARIABLE", "PORT_VARIABLE", "Metrics", "metrics_of_server"]

PORT_VARIABLE = "MLFLOW_KERAS_SUBCLASS_METRICS_PORT"
HOST_VARIABLE = "MLFLOW_KERAS_SUBCLASS_METRICS_HOST"
# prometheus_client's own: where the processes of one server keep their numbers.
DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_PREFIX = "mlflow_keras_subclass"
# Seconds: a compiled call of a small model takes a fraction of a millisecond.
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counts calls of ``predict``, their rows, errors and time; safe to use from many threads."""

    def __init__(self, client: Any, registry: Any) -> None:
        """Make the metrics by the module ``prometheus_client`` in ``registry``; ``None`` leaves them out of any."""
        self._predictions = client.Counter(f"{_PREFIX}_predictions", "Requests that were answered.", registry=registry)
        self._errors = client.Counter(
            f"{_PREFIX}_prediction_errors", "Requests that were refused or failed.", ["kind"], registry=registry
        )
        self._rows = client.Counter(f"{_PREFIX}_rows", "Rows that were given to the model.", registry=registry)
        self._seconds = client.Histogram(
            f"{_PREFIX}_prediction_seconds", "Time in predict.", buckets=_BUCKETS, registry=registry
        )

    @contextlib.contextmanager
    def observed(self) -> Iterator[None]:
        """One call of ``predict`` is made inside."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            self._errors.labels(kind=type(error).__name__).inc()
            raise
        else:
            self._predictions.inc()
        finally:
            self._seconds.observe(time.perf_counter() - started)

    def count_rows(self, rows: int) -> None:
        """So many rows are given to the model."""
        self._rows.inc(rows)


def metrics_of_server() -> Metrics | None:
    """The metrics of this process and a port that shows them; ``None`` unless it is a server that was asked for them.

    Raises:
        KerasSubclassError: They were asked for, and cannot be given here.
    """
    port = os.environ.get(PORT_VARIABLE, "").strip()
    if not port or not is_server():
        return None
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise KerasSubclassError(f"{PORT_VARIABLE}: expected the number of a port, got {port!r}.")
    shared = os.environ.get(DIRECTORY_VARIABLE, "").strip()
    if worker_count() > 1 and not shared:
        raise KerasSubclassError(
            f"{PORT_VARIABLE}: a server of {worker_count()} workers adds up their numbers in a directory. Set "
            f"{DIRECTORY_VARIABLE} to an empty one, for each start of the server."
        )
    client: Any = _client()
    registry = client.CollectorRegistry()
    if shared:
        importlib.import_module("prometheus_client.multiprocess").MultiProcessCollector(registry)
    metrics = Metrics(client, None if shared else registry)
    _show(client, int(port), registry)
    return metrics


def _client() -> Any:
    try:
        return importlib.import_module("prometheus_client")
    except ModuleNotFoundError:
        raise KerasSubclassError(
            f"{PORT_VARIABLE}: prometheus_client is not installed here. Log the model with "
            'extra_pip_requirements=["prometheus-client"], or unset the variable.'
        ) from None


def _show(client: Any, port: int, registry: Any) -> None:
    host = os.environ.get(HOST_VARIABLE, "").strip() or "127.0.0.1"
    try:
        client.start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        # Of several workers the first one shows the numbers of all.
        if error.errno != errno.EADDRINUSE or worker_count() == 1:
            raise KerasSubclassError(f"{PORT_VARIABLE}: {host}:{port} cannot be listened on: {error}.") from None
