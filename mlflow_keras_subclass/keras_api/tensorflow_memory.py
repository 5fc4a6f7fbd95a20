"""Arrays and TensorFlow tensors that share their memory, by DLPack: what a large model costs to load.

A tensor that is made from an array in the usual way is a copy of it. Part of the seam; TensorFlow is imported when
asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlflow_keras_subclass.tensors import ALIGNMENT, aligned

__all__ = ["read_in_place", "taken_over", "untouched_zeros"]

# Below, a copy costs less than the way around it.
_LARGE_BYTES = 2**20


def taken_over(array: np.ndarray[Any, Any]) -> Any:
    """A tensor in the memory of ``array``, which nobody may use from now on; the array itself where that cannot be."""
    if array.nbytes < _LARGE_BYTES or array.ctypes.data % ALIGNMENT or not array.flags.c_contiguous:
        return array
    try:
        return importlib.import_module("tensorflow").experimental.dlpack.from_dlpack(array.__dlpack__())
    except (BufferError, TypeError):  # NumPy does not export dtypes of other packages, such as bfloat16.
        return array


def read_in_place(variable: Any) -> np.ndarray[Any, Any] | None:
    """The value of a variable in its own memory, not to be written to; ``None`` where that cannot be.

    TensorFlow never writes into memory that somebody else reads: whatever changes the variable gives it other memory.
    """
    tensorflow: Any = importlib.import_module("tensorflow")
    tensor = tensorflow.convert_to_tensor(variable)
    if tensor.dtype == tensorflow.string or not hasattr(tensor, "numpy") or "CPU" not in tensor.device:
        return None
    dtype = np.dtype(tensor.dtype.as_numpy_dtype)
    if tensor.dtype == tensorflow.bfloat16:  # A buffer cannot name the dtypes of other packages.
        tensor = tensorflow.bitcast(tensor, tensorflow.uint16)
    elif dtype.isbuiltin != 1:
        return None
    found: np.ndarray[Any, Any] = np.asarray(memoryview(tensor)).view(dtype)
    return found


def untouched_zeros(shape: Sequence[int], dtype: str) -> Any:
    """Zeros in memory that the system gives only when it is written to; ``None`` where that cannot be."""
    tensorflow: Any = importlib.import_module("tensorflow")
    try:
        kind = np.dtype(dtype)
    except TypeError:
        return None
    if not tensorflow.executing_eagerly():
        return None
    found = taken_over(aligned(shape, kind, np.zeros))
    return None if isinstance(found, np.ndarray) else found
