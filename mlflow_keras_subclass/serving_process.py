"""What a model does to the process that serves it: garbage collection and threads; and whether there is such a process.

Only processes of MLflow's scoring server are changed, never a notebook or a job. Imports nothing of ours.
"""

from __future__ import annotations

import gc
import os
import sys

__all__ = ["GC_VARIABLE", "freeze_garbage", "is_server", "is_serving", "threads_of_a_worker", "worker_count"]

GC_VARIABLE = "MLFLOW_KERAS_SUBCLASS_GC_FREEZE"

# Set by MLflow (3.17.2): the first by the scoring server alone, before it loads the model; the second by the server
# once it has, and by `mlflow models predict`. Names, so that nothing private is imported; tests notice a change.
_SERVER_VARIABLE = "__pyfunc_model_path__"
_SERVING_VARIABLE = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"


def is_server() -> bool:
    """Whether this process is one of the scoring server's."""
    return _SERVER_VARIABLE in os.environ


def is_serving() -> bool:
    """Whether predictions go to a client as JSON; also in a notebook, while MLflow tries out an input example."""
    return os.environ.get(_SERVING_VARIABLE, "").lower() in ("true", "1")


def freeze_garbage() -> None:
    """Take all that is alive now out of garbage collection, in a server whose environment does not say ``off``.

    TensorFlow and the model are half a million objects that never die. A full collection visits all of them, which
    takes a quarter of a second, and a large JSON body causes one.
    """
    if is_server() and os.environ.get(GC_VARIABLE, "on").lower() not in ("off", "0", "false"):
        gc.collect()
        gc.freeze()


def threads_of_a_worker() -> int | None:
    """The threads that each of a server's workers should compute with; ``None`` for a process that is alone."""
    workers = worker_count() if is_server() else 1
    if workers < 2:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


def worker_count() -> int:
    """How many processes the server of this process has, if it is one of a server's."""
    # uvicorn starts its workers by multiprocessing's spawn, which gives them the arguments of the first process.
    given = dict(zip(sys.argv, sys.argv[1:], strict=False)).get("--workers") or os.environ.get("WEB_CONCURRENCY") or "1"
    return int(given) if given.isdecimal() else 1
