"""What an object holds and what it is called, without running any of its class.

Dicts whose keys are attributes answer everything in ``__getattr__``: with ``None``, a dict, or a ``KeyError``.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

__all__ = ["has_attribute", "original_name", "private_prefix"]

_PRIVATE_NAME = re.compile(r"(_mks_[0-9a-f]{12})\.(?=.)")
_ABSENT = object()


def has_attribute(value: Any, name: str) -> bool:
    """Whether ``value`` itself or its class holds the attribute ``name``."""
    return inspect.getattr_static(value, name, _ABSENT) is not _ABSENT


def original_name(module: str) -> str:
    """The name of a module without the private prefix that the source route gives it."""
    return _PRIVATE_NAME.sub("", module, count=1) if module.startswith("_mks_") else module


def private_prefix(module: str) -> str:
    """The private prefix of a module's name with its dot, or ``""``."""
    match = _PRIVATE_NAME.match(module)
    return match.group(0) if match else ""
