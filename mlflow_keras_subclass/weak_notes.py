"""Notes about objects that may be unhashable, or call all instances equal: kept by identity, as long as they live."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

__all__ = ["WeakNotes"]

T = TypeVar("T")


class WeakNotes(Generic[T]):
    """A mapping from objects, by identity and held weakly, to notes about them."""

    def __init__(self) -> None:
        """Start with none."""
        self._notes: dict[int, tuple[weakref.ref[Any], T]] = {}

    def put(self, instance: Any, note: T) -> None:
        """Keep ``note`` until ``instance`` is gone, in place of an earlier one."""
        key = id(instance)
        notes = self._notes
        notes[key] = (weakref.ref(instance, lambda _: notes.pop(key, None)), note)

    def get(self, instance: Any) -> T | None:
        """The note about ``instance``, or ``None``."""
        reference, note = self._notes.get(id(instance), (None, None))
        return note if reference is not None and reference() is instance else None
