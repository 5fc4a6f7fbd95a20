"""Devices of this process by the names that users give: ``cpu``, ``gpu``, ``gpu:1``, ``auto``.

Imports errors; the backend is imported when asked for. Part of the seam: nothing else talks to a backend's devices.
"""

from __future__ import annotations

import importlib
import logging
import re

from mlflow_keras_subclass.errors import DeviceError

__all__ = ["check", "enable_memory_growth", "present", "set_threads"]

_logger = logging.getLogger(__name__)
_NAME = re.compile(r"(cpu|gpu)(?::(\d+))?")


def check(backend: str, name: str | None) -> str | None:
    """``name`` as ``cpu:0`` or ``gpu:1``; ``None`` for ``None`` and ``auto``, which leave the choice to the backend.

    Raises:
        DeviceError: ``name`` is not of that form, or the device is not in this process.
    """
    if name is None or name.lower() == "auto":
        return None
    match = _NAME.fullmatch(name.lower())
    if match is None:
        raise DeviceError(f"device: expected 'auto', 'cpu', 'gpu' or a numbered one like 'gpu:1', got {name!r}.")
    canonical = f"{match[1]}:{int(match[2] or 0)}"
    if canonical not in (devices := present(backend)):
        raise DeviceError(
            f"device: {name!r} is not present in this process; present with the {backend} backend: "
            f"{', '.join(devices)}. Choose one of them, or 'auto'."
        )
    return canonical


def present(backend: str) -> tuple[str, ...]:
    """The devices of this process, sorted: ``("cpu:0", "gpu:0")``."""
    library = importlib.import_module(backend)
    if backend == "tensorflow":
        found = library.config.list_logical_devices()
        names = [f"{device.device_type.lower()}:{device.name.rsplit(':', 1)[1]}" for device in found]
        return tuple(sorted(name for name in names if name.startswith(("cpu", "gpu"))))
    if backend == "jax":
        gpus = [device for device in library.devices() if device.platform in ("gpu", "cuda", "rocm")]
        return ("cpu:0", *(f"gpu:{number}" for number in range(len(gpus))))
    count = library.cuda.device_count() if library.cuda.is_available() else 0
    return ("cpu:0", *(f"gpu:{number}" for number in range(count)))


def enable_memory_growth(backend: str) -> None:
    """Turn on memory growth for TensorFlow's GPUs; a process that has used its GPUs already keeps what it has."""
    if backend != "tensorflow":
        return
    config = importlib.import_module(backend).config
    for gpu in config.list_physical_devices("GPU"):
        try:
            config.experimental.set_memory_growth(gpu, True)
        except RuntimeError as error:
            _logger.info("GPU memory growth was not changed: %s", error)


def set_threads(backend: str, count: int) -> None:
    """Let one operation use ``count`` threads; a process that has computed already keeps what it has."""
    if backend == "jax":
        _logger.info("threads: JAX takes them from XLA_FLAGS only, when the process starts; they were not changed.")
        return
    library = importlib.import_module(backend)
    if backend == "torch":
        library.set_num_threads(count)
        return
    try:
        library.config.threading.set_intra_op_parallelism_threads(count)
        library.config.threading.set_inter_op_parallelism_threads(count)
    except RuntimeError as error:
        _logger.info("threads were not changed: %s", error)
