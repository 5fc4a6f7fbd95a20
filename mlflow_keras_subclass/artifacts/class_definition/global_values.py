"""What the user's code reads from outside of the model: a layer, an optimizer or a large array in a global variable.

A training step that uses a global ``optimizer``, a ``call`` that uses a global ``data_augmentation``. Such a value is
not in the pickle of the code: a stand-in with its name is, and the value is stored as the arguments of the constructor
and the variables of the model are. Values are recognised by the modules of their classes; Keras is not imported.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

from mlflow_keras_subclass.artifacts.class_definition.origins import is_user_defined

__all__ = ["MAX_BYTES", "GlobalValue", "GlobalValues", "is_carried", "keras_kind", "size_bytes"]

# Of one array in a class definition; a larger one is stored with the model's arrays.
MAX_BYTES = 2**20
# A longer container is data, and is not looked into.
_MAX_ITEMS = 1000
_KERAS = frozenset({"keras", "tf_keras"})


@dataclass(frozen=True, slots=True)
class GlobalValue:
    """Stands in pickled code for the value called ``name``."""

    name: str


class GlobalValues:
    """The values that were met, by name; one value has one name, wherever it is held."""

    def __init__(self) -> None:
        """Start with none."""
        self.values: dict[str, Any] = {}
        self._names: dict[int, str] = {}

    def name(self, value: Any, place: str) -> str:
        """The name of ``value``, after the place where it is first met."""
        if id(value) not in self._names:
            name, number = place, 2
            while name in self.values:
                name, number = f"{place}#{number}", number + 1
            self._names[id(value)] = name
            self.values[name] = value
        return self._names[id(value)]


def is_carried(value: Any) -> bool:
    """Whether ``value``, in a variable, is stored with the model and not in the pickle of the code.

    A list, tuple, dict or object of the user's that holds such values travels as a whole.
    """
    return _holds_state(value, set())


def _holds_state(value: Any, active: set[int]) -> bool:
    if keras_kind(value) is not None or (size_bytes(value) > MAX_BYTES and _has_data_form(value)):
        return True
    items = _held(value)
    if id(value) in active or len(items) > _MAX_ITEMS:
        return False
    active.add(id(value))
    return any(_holds_state(item, active) for item in items)


def _held(value: Any) -> Collection[Any]:
    kind = type(value)
    if kind in (list, tuple):
        return cast("list[Any] | tuple[Any, ...]", value)
    if kind is dict:
        return cast("dict[Any, Any]", value).values()
    is_plain = isinstance(getattr(value, "__dict__", None), dict) and not callable(value)
    return vars(value).values() if is_plain and is_user_defined(kind) else ()


def keras_kind(value: Any) -> str | None:
    """``model``, ``layer``, ``optimizer`` or ``metric`` for instances of these classes of Keras."""
    names = {base.__name__ for base in type(value).__mro__ if _package(base) in _KERAS}
    return next((kind.lower() for kind in ("Model", "Layer", "Optimizer", "Metric") if kind in names), None)


def size_bytes(value: Any) -> int:
    """The size of an array or text; 0 for everything else."""
    if isinstance(value, bytes | bytearray | str):
        return len(value)
    kind = type(value)
    if isinstance(value, type) or not (hasattr(kind, "shape") and hasattr(kind, "dtype")):
        return 0
    try:
        size = getattr(value, "nbytes", None)
        if isinstance(size, int):
            return size
        item = getattr(value.dtype, "size", None) or getattr(value.dtype, "itemsize", None) or 4
        count = int(item)
        for dimension in value.shape:
            count *= int(dimension)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return 0  # A symbolic or unsized array holds no data.
    return count


def _package(kind: type) -> str:
    # Cython's own types have a descriptor there.
    return kind.__module__.partition(".")[0] if isinstance(kind.__module__, str) else ""


def _has_data_form(value: Any) -> bool:
    """Whether it is an array or a constant tensor; a variable of the backend is neither."""
    kind = type(value)
    return _package(kind) in ("numpy", "jaxlib", "jax") or kind.__name__ in ("EagerTensor", "Tensor")
