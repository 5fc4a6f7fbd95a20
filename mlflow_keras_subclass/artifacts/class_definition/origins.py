"""Whose code is it: the user's, an installed distribution's, Python's own, or a compiled extension of the user.

Looks at files and import specs, and never imports anything. Imports lookup.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sys
import sysconfig
import types
from pathlib import PurePath
from typing import Any

from mlflow_keras_subclass.lookup import has_attribute, original_name, private_prefix

__all__ = [
    "INSTALLED",
    "NATIVE",
    "PRIVATE_DIR",
    "STDLIB",
    "USER",
    "find_spec",
    "is_shipped",
    "is_user_defined",
    "module_name",
    "origin_of",
    "original_name",
    "parents",
    "private_prefix",
]

USER, INSTALLED, STDLIB, NATIVE = "user", "installed", "stdlib", "native"

PRIVATE_DIR = "/_mks/"
_OWN = __name__.partition(".")[0]
_PACKAGE_DIRS = ("site-packages", "dist-packages")


def is_user_defined(obj: object) -> bool:
    """Whether ``obj`` is a class or function of the user's own source.

    Builtins, the standard library and installed distributions are not; editable installs, ``__main__``, notebooks and
    classes made inside functions are.
    """
    if not isinstance(obj, type | types.FunctionType) and not has_attribute(obj, "__wrapped__"):
        return False
    if is_shipped(obj):
        return True
    name = module_name(obj)
    return name is not None and origin_of(name) in (USER, NATIVE)


def is_shipped(obj: object) -> bool:
    """Whether ``obj`` was itself brought back from an artifact by value; its module name may then mean another."""
    values = [obj, *vars(obj).values()] if isinstance(obj, type) else [obj]
    return any(
        isinstance(value, types.FunctionType) and value.__code__.co_filename.startswith(PRIVATE_DIR) for value in values
    )


def module_name(obj: Any) -> str | None:
    """The module that ``obj`` says it is from; for a function without one, the module of its globals."""
    name = getattr(obj, "__module__", None)
    if name is None and isinstance(obj, types.FunctionType):
        name = obj.__globals__.get("__name__")
    return name if isinstance(name, str) else None


def parents(name: str) -> list[str]:
    """The packages that ``name`` lies in, nearest first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def origin_of(name: str) -> str:
    """``USER``, ``INSTALLED``, ``STDLIB`` or ``NATIVE`` for the module called ``name``."""
    if name == "__main__" or private_prefix(name):
        return USER
    # Cython makes a module at run time, of the types that its extension modules share.
    if name.partition(".")[0] == _OWN or name.startswith("_cython_"):
        return INSTALLED
    for candidate in (name, *parents(name)):
        location = _location(candidate)
        if location is not None:
            return _origin_of_location(location)
    return USER  # Made at run time: nothing can import it elsewhere.


def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """The spec of a module, imported or not; unlike ``importlib.util.find_spec`` it never imports the parents."""
    module = sys.modules.get(name)
    if module is not None:
        return getattr(module, "__spec__", None)
    path: list[str] | None = None
    parent = name.rpartition(".")[0]
    if parent:
        path = _search_path(parent)
        if path is None:
            return None
    for finder in list(sys.meta_path):
        try:
            spec = finder.find_spec(name, path, None)
        except (AttributeError, ImportError, KeyError, ValueError):
            # KeyError: a namespace package looks for its parent among the imported modules.
            continue
        if spec is not None:
            return spec
    return None


def _search_path(package: str) -> list[str] | None:
    live = getattr(sys.modules.get(package), "__path__", None)
    if live is not None:
        return list(live)
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return None
    return list(spec.submodule_search_locations)


def _location(name: str) -> str | None:
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        return file
    spec = find_spec(name)
    if spec is not None and spec.origin is not None:
        return spec.origin
    search = getattr(module, "__path__", None) if module is not None else None
    if search is None and spec is not None:
        search = spec.submodule_search_locations
    return next((entry for entry in search or () if isinstance(entry, str)), None)


def _origin_of_location(location: str) -> str:
    if location in ("built-in", "frozen"):
        return STDLIB
    path = PurePath(location)
    if any(part in _PACKAGE_DIRS for part in path.parts) or _below(path, "purelib", "platlib"):
        return INSTALLED
    if _below(path, "stdlib", "platstdlib"):
        return STDLIB
    if path.suffix in (".so", ".pyd"):
        return NATIVE
    return USER


def _below(path: PurePath, *keys: str) -> bool:
    return any(path.is_relative_to(_installation(key)) for key in keys)


@functools.cache  # Asked for every function of a package, and a tenth of a millisecond each time.
def _installation(key: str) -> PurePath:
    return PurePath(sysconfig.get_path(key))
