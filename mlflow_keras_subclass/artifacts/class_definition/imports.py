"""Imports inside shipped modules: ``import pkg.layers`` finds the artifact's ``pkg.layers`` and no other.

Each shipped module gets its own ``__builtins__`` with this ``__import__``; nothing is rewritten in the source, and
``sys.path``, ``sys.meta_path`` and the interpreter's own ``__import__`` stay as they are.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from mlflow_keras_subclass.artifacts.class_definition.sources import ShippedSources

__all__ = ["Redirect", "is_importlib", "missing_module", "missing_name"]


class Redirect:
    """The modules of one artifact by their original names, and the import that finds them first."""

    def __init__(self, sources: ShippedSources, load: Callable[[str], types.ModuleType | None]) -> None:
        """Look for modules with ``load``, which returns ``None`` for a name that is not the artifact's."""
        self.sources = sources
        self.importlib = _Importlib(self)
        self._load = load
        self._modules: dict[str, types.ModuleType] = {}
        self._builtins = {**vars(builtins), "__import__": self._import}

    def new_module(self, name: str, *, is_package: bool, shown: str | None = None) -> types.ModuleType:
        """An empty module with the original name ``name``, called ``shown`` where that differs."""
        shown = shown or name
        module = types.ModuleType(shown)
        file = self.sources.file_of(name)
        variables: dict[str, Any] = {"__builtins__": self._builtins, "__loader__": self.sources}
        if name in self.sources.modules:
            variables["__file__"] = file
        if is_package:
            variables["__path__"] = []
        variables["__package__"] = shown if is_package else shown.rpartition(".")[0]
        vars(module).update(variables)
        return module

    def add(self, name: str, module: types.ModuleType) -> None:
        """Make ``module`` what ``name`` imports."""
        self._modules[name] = module

    def module(self, name: str) -> types.ModuleType | None:
        """The artifact's module ``name``, or ``None``."""
        return self._modules.get(name) or self._load(name)

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Iterable[str] | None = (),
        level: int = 0,
    ) -> Any:
        importer = globals or {}
        absolute = _absolute(name, importer, level, self.sources)
        module, head = self.module(absolute), absolute.partition(".")[0]
        if module is None:
            if level == 0 and self._is_foreign(head):
                return self._foreign(name, importer, locals, fromlist)
            raise ModuleNotFoundError(
                f"No module named {absolute!r} was stored with the model. If it is imported by a name made at run "
                f"time, or inside a function that never ran before logging, name it in extra_modules=.",
                name=absolute,
            )
        if not fromlist:
            return self.module(head)
        for item in fromlist:
            submodule = None if item == "*" or hasattr(module, item) else self.module(f"{absolute}.{item}")
            if submodule is not None:
                setattr(module, item, submodule)
        return module

    def _is_foreign(self, head: str) -> bool:
        """Whether names below ``head`` may be installed: it is not ours, or a namespace package shared with others."""
        return self.module(head) is None or head not in self.sources.modules

    def _foreign(
        self, name: str, importer: Mapping[str, Any], local: Mapping[str, Any] | None, fromlist: Iterable[str] | None
    ) -> Any:
        """An installed module; for one that is missing here, a stand-in where the import is unconditional."""
        try:
            found = builtins.__import__(name, None, None, tuple(fromlist or ()), 0)
        except ModuleNotFoundError as error:
            top = name.partition(".")[0]
            in_function = local is None
            if in_function or (error.name or "").partition(".")[0] != top or top in self._optional(importer):
                raise
            return missing_module(name if fromlist else top)
        return self.importlib if found is importlib else found

    def _optional(self, importer: Mapping[str, Any]) -> set[str]:
        """Top-level names that a module imports inside ``try``, so that their absence must stay an error."""
        name = _original(str(importer.get("__name__")), self.sources)
        tree = ast.parse(self.sources.modules[name][0]) if name in self.sources.modules else ast.Module([], [])
        attempts = [node for node in ast.walk(tree) if isinstance(node, ast.Try)]
        return {top for attempt in attempts for node in ast.walk(attempt) for top in _imported_tops(node)}

    def import_module(self, name: str, package: str | None = None) -> types.ModuleType:
        """``importlib.import_module`` that finds the artifact's modules."""
        if name.startswith("."):
            name = importlib.util.resolve_name(name, _original(package or "", self.sources))
        return self.module(name) or importlib.import_module(name)


def _absolute(name: str, importer: Mapping[str, Any], level: int, sources: ShippedSources) -> str:
    package = _original(str(importer.get("__package__") or ""), sources)
    return importlib.util.resolve_name("." * level + name, package) if level else name


def _original(name: str, sources: ShippedSources) -> str:
    return name.removeprefix(f"_mks_{sources.identity}").lstrip(".")


def _imported_tops(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    return [(node.module or "").partition(".")[0]] if isinstance(node, ast.ImportFrom) else []


class _Importlib(types.ModuleType):
    """``importlib`` with an ``import_module`` that finds the artifact's modules."""

    def __init__(self, redirect: Redirect) -> None:
        super().__init__("importlib")
        self.import_module = redirect.import_module

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib, name)


class _Missing(types.ModuleType):
    """Stands for something that is not installed, or not in this version: may be passed around, raises on use."""

    def __getattr__(self, name: str) -> _Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self.__name__}.{name}")

    def _refuse(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        top = self.__name__.partition(".")[0]
        if importlib.util.find_spec(top) is not None:
            raise ModuleNotFoundError(
                f"{top} is installed here in a version without {self.__name__}: install the one that the model's "
                f"requirements.txt names",
                name=self.__name__,
            )
        raise ModuleNotFoundError(
            f"No module named {top!r}: it was not needed to load the model, but is needed now for {self.__name__}: "
            f"install it where the model is loaded",
            name=top,
        )

    __call__ = __iter__ = __len__ = __bool__ = __enter__ = _refuse
    __getitem__ = __contains__ = __instancecheck__ = __subclasscheck__ = __mro_entries__ = _refuse


def missing_module(name: str) -> types.ModuleType:
    """A stand-in for the module ``name``, which is not installed: raises ``ModuleNotFoundError`` on use."""
    return _Missing(name)


def missing_name(module: types.ModuleType) -> str | None:
    """The name of the module that ``module`` is a stand-in for, or ``None`` if it is a real module."""
    return types.ModuleType.__getattribute__(module, "__name__") if type(module) is _Missing else None


def is_importlib(obj: Any) -> bool:
    """Whether ``obj`` is ``importlib`` or its ``import_module``, the real ones or those of a loaded model."""
    if obj is importlib or obj is importlib.import_module or type(obj) is _Importlib:
        return True
    return isinstance(obj, types.MethodType) and isinstance(obj.__self__, Redirect)
