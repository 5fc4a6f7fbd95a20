"""How far a long write has come, on a terminal. Imports nothing of ours; tqdm only where a bar is shown."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator

__all__ = ["progress"]

# MLflow's own switch for its bars.
_PROGRESS_VARIABLE = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
_LARGE_BYTES = 256 * 2**20


@contextlib.contextmanager
def progress(total_bytes: int, text: str) -> Iterator[Callable[[int], object]]:
    """A bar for what takes long; the function inside takes the bytes that were done. Off outside a terminal."""
    wanted = os.environ.get(_PROGRESS_VARIABLE, "true").lower() not in ("false", "0")
    if total_bytes < _LARGE_BYTES or not wanted or not sys.stderr.isatty():
        yield lambda _: None
        return
    tqdm = importlib.import_module("tqdm").tqdm
    with tqdm(total=total_bytes, desc=text, unit="B", unit_scale=True, file=sys.stderr) as bar:
        yield bar.update
