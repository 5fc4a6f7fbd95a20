"""Watches which layers are called while something runs; what runs computes what it would without. For ``KerasApi``."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["is_symbolic_input", "observed_calls", "tensor_key", "tensor_parents"]

_PATCHING = threading.Lock()


@contextlib.contextmanager
def observed_calls(keras: Any, note: Callable[..., Any]) -> Iterator[None]:
    """Inside, every call of a layer in this thread goes through ``note(layer, call, args, kwargs)``."""
    layer, thread = keras.layers.Layer, threading.get_ident()
    with _PATCHING:
        original = layer.__call__

        @functools.wraps(original)
        def watching(self: Any, *args: Any, **kwargs: Any) -> Any:
            call = functools.partial(original, self)
            return note(self, call, args, kwargs) if threading.get_ident() == thread else call(*args, **kwargs)

        layer.__call__ = watching
        try:
            yield
        finally:
            layer.__call__ = original


def tensor_key(tensor: Any) -> Any:
    """What tells a tensor from others: TensorFlow makes new Python objects for one symbolic tensor."""
    operation = _operation(tensor)
    return (id(operation.graph), tensor.name) if operation is not None else id(tensor)


def tensor_parents(tensor: Any) -> tuple[Any, ...]:
    """The tensors that a symbolic tensor is computed from; none where the backend does not tell."""
    operation = _operation(tensor)
    return () if operation is None else tuple(operation.inputs)


def is_symbolic_input(tensor: Any) -> bool:
    """Whether a symbolic tensor stands for what the traced function is given."""
    operation = _operation(tensor)
    return operation is not None and operation.type == "Placeholder"


def _operation(tensor: Any) -> Any:
    # Eager tensors of TensorFlow raise, those of other backends have none.
    try:
        return tensor.op if hasattr(tensor.op, "inputs") else None
    except AttributeError:
        return None
