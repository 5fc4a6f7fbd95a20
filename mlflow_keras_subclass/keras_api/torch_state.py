"""State and attributes of ``torch.nn.Module``, which every Keras layer is where torch is the backend.

Such a module keeps its submodules, parameters and buffers in dicts of its own and not among its attributes. Part of
the seam; torch is imported when asked for.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["attributes", "buffers", "memory_order", "native_parameters", "set_memory_order"]

# Keras keeps there, once more, what its own variables hold.
_KERAS_NAMES = ("_torch_params",)


def attributes(owner: Any) -> Mapping[str, Any]:
    """The attributes of ``owner`` by name, submodules and parameters among them; buffers are not."""
    if not isinstance(owner, importlib.import_module("torch").nn.Module):
        plain: Mapping[str, Any] = vars(owner)
        return plain
    internal = _internal_names()
    found = {name: value for name, value in vars(owner).items() if name not in internal}
    # Private: torch keeps no other record of the names under which they were set.
    for group in (owner._parameters, owner._modules):
        found.update({name: value for name, value in group.items() if name not in internal})
    return found


def buffers(owner: Any) -> Mapping[str, Any]:
    """The buffers of a module by name: state that is changed in place and not trained."""
    if not isinstance(owner, importlib.import_module("torch").nn.Module):
        return {}
    return {name: value for name, value in owner._buffers.items() if value is not None}


def native_parameters(variables: Iterable[Any]) -> dict[int, Any]:
    """Keras' variables by the identity of the torch parameter whose storage they use."""
    return {id(variable.value): variable for variable in variables}


def memory_order(variable: Any) -> tuple[int, ...] | None:
    """The axes of a variable from the outermost to the innermost in memory; ``None`` if they are in their order."""
    tensor = _tensor(variable)
    order = tuple(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))
    if tensor.is_contiguous() or not tensor.permute(order).is_contiguous():
        return None
    return order


def set_memory_order(variable: Any, order: tuple[int, ...]) -> None:
    """Lay a variable out in memory anew; it has no value then."""
    tensor = _tensor(variable)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    tensor.data = tensor.data.new_empty([tensor.shape[axis] for axis in order]).permute(inverse)


def _tensor(variable: Any) -> Any:
    return variable if isinstance(variable, importlib.import_module("torch").Tensor) else variable.value


@functools.cache
def _internal_names() -> frozenset[str]:
    return frozenset((*vars(importlib.import_module("torch").nn.Module()), *_KERAS_NAMES))
