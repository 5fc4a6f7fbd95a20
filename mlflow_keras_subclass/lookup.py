"""Asks an object for an attribute without running its class' ``__getattr__``.

Dicts whose keys are attributes answer everything there: with ``None``, with a dict, or with a ``KeyError``.
"""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["has_attribute"]

_ABSENT = object()


def has_attribute(value: Any, name: str) -> bool:
    """Whether ``value`` itself or its class holds the attribute ``name``."""
    return inspect.getattr_static(value, name, _ABSENT) is not _ABSENT
