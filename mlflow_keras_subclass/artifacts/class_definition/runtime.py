"""Puts pickled definitions together again: the functions that a stored pickle names, and nothing else.

A pickle names them by a persistent id, not by module: the bundled copy of this package has another name. Imports the
import redirect and the stand-ins only; must not import Keras.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import importlib
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cloudpickle.cloudpickle import _class_setstate

from mlflow_keras_subclass.artifacts.class_definition.global_values import GlobalValue
from mlflow_keras_subclass.artifacts.class_definition.imports import Redirect, missing_module

__all__ = ["Runtime", "restored_class", "runtime_names"]


class Runtime:
    """Builds the modules of one artifact while its pickles are read; every public method is named by pickles."""

    def __init__(self, redirect: Redirect) -> None:
        """Give every function the builtins of ``redirect``, so that imports in functions find shipped modules."""
        self._redirect = redirect
        self.setters: dict[str, list[Callable[[Any], None]]] = {}

    def global_value(self, name: str) -> GlobalValue:
        """The stand-in for a value that is put in its places later, by ``setters``."""
        return GlobalValue(name)

    def _await(self, value: Any, put: Callable[[Any], None]) -> None:
        if isinstance(value, GlobalValue):
            self.setters.setdefault(value.name, []).append(put)

    def _await_each(self, variables: Mapping[str, Any], put: Callable[[str, Any], None]) -> None:
        for name, value in variables.items():
            self._await(value, functools.partial(put, name))

    def make_module(self, name: str, is_package: bool, importable: bool) -> types.ModuleType:
        """An empty module of the user; nothing is put into ``sys.modules``."""
        module = self._redirect.new_module(name, is_package=is_package)
        if importable:
            self._redirect.add(name, module)
        return module

    def fill_module(self, module: types.ModuleType, variables: Mapping[str, Any]) -> None:
        """Give a module the variables that shipped code reads from it."""
        vars(module).update(variables)
        self._await_each(variables, vars(module).__setitem__)

    def fill_modules(self, filled: Iterable[tuple[types.ModuleType, Mapping[str, Any]]], _next: Any) -> None:
        """Variables that were found to be needed after their modules had been stored."""
        for module, variables in filled:
            self.fill_module(module, variables)

    def make_code(self, made_of: tuple[Any, ...], filename: str) -> types.CodeType:
        """Code that says it lies in ``filename``; cloudpickle from 3.1.3 on leaves no name of a file in it."""
        return types.CodeType(*made_of).replace(co_filename=filename)

    def make_function(
        self, code: types.CodeType, module: types.ModuleType, name: str, closure: tuple[Any, ...] | None
    ) -> types.FunctionType:
        """A function whose globals are the module's own; defaults and the rest follow by ``fill_function``."""
        return types.FunctionType(code, vars(module), name, None, closure)

    def fill_function(self, function: Any, state: tuple[Mapping[str, Any], Mapping[str, Any], Any, Any]) -> None:
        """Attributes, ``__dict__`` and the globals that the function reads; the last item keeps modules imported."""
        attributes, dictionary, variables, _imported = state
        function.__globals__.update(variables)
        self._await_each(variables, function.__globals__.__setitem__)
        for name, value in attributes.items():
            setattr(function, name, value)
        vars(function).update(dictionary)

    def make_cell(self) -> types.CellType:
        """An empty closure cell; functions that shared one share it again."""
        return types.CellType()

    def fill_cell(self, cell: types.CellType, state: tuple[Any]) -> None:
        """Put the value into a cell."""
        cell.cell_contents = state[0]
        self._await(state[0], functools.partial(setattr, cell, "cell_contents"))

    def fill_class(self, cls: type, state: tuple[Mapping[str, Any], Any]) -> None:
        """Attributes of a class."""
        _class_setstate(cls, state)
        self._await_each(state[0], functools.partial(setattr, cls))

    def same(self, value: Any) -> Any:
        """The value itself: two live objects that are one after loading."""
        return value

    def import_module(self, name: str) -> types.ModuleType:
        """An installed module; a stand-in that raises on use if it is not installed here."""
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != name.partition(".")[0]:
                raise
            return missing_module(name)

    def import_attribute(self, module: str, name: str) -> Any:
        """An attribute of an installed module that cannot be imported by its own name (a lazily loaded one)."""
        return getattr(importlib.import_module(module), name)

    def importlib_of_user(self, name: str | None) -> Any:
        """``importlib``, or a function of it, that finds the shipped modules too."""
        return getattr(self._redirect.importlib, name) if name else self._redirect.importlib

    def fill_enum(self, cls: type[enum.Enum], state: tuple[Any, Mapping[str, Any]]) -> None:
        """Attributes of an enum, then those that its own ``__init__`` gave to the members."""
        class_state, members = state
        self.fill_class(cls, class_state)
        for name, attributes in members.items():
            vars(cls.__members__[name]).update(attributes)

    def make_lru_cache(self, function: Any, maxsize: int | None, typed: bool, attributes: Mapping[str, Any]) -> Any:
        """The function with an empty cache of the same size."""
        cached = functools.lru_cache(maxsize=maxsize, typed=typed)(function)
        vars(cached).update(attributes)
        return cached

    def make_descriptor(self, base: Any, cls: Any, made_of: tuple[Any, ...], state: Mapping[str, Any]) -> Any:
        """A property, class method or static method of a user's subclass, without the subclass' own constructor."""
        descriptor = base.__new__(cls)
        base.__init__(descriptor, *made_of)
        if state:
            vars(descriptor).update(state)
        return descriptor

    def make_local(self, cls: Callable[[], Any], state: Mapping[str, Any]) -> Any:
        """A thread-local object that holds for this thread what it held when it was stored."""
        local = cls()
        vars(local).update(state)
        return local

    def make_singledispatch(self, function: Any) -> Any:
        """A generic function that knows its default only; ``fill_singledispatch`` adds the rest."""
        return functools.singledispatch(function)

    def fill_singledispatch(self, function: Any, registry: Mapping[type, Callable[..., Any]]) -> None:
        """Register the implementations that the live generic function had."""
        for cls, implementation in registry.items():
            function.register(cls, implementation)

    def new_instance(self, cls: type, state: Any) -> Any:
        """An instance of a user class that calls itself by a global name, rebuilt without its constructor."""
        instance = copyreg.__newobj__(cls)  # type: ignore[attr-defined] # typeshed leaves it out
        vars(instance).update(state)
        return instance


def runtime_names() -> dict[int, str]:
    """``id`` of every function of ``Runtime`` that a pickle may name, to its name."""
    return {id(function): name for name, function in vars(Runtime).items() if not name.startswith("_")}


def restored_class(module: str, name: str) -> Any:
    """What a pickle names in an installed module; a stand-in that raises on use if that is not installed here."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        return getattr(missing_module(module), name)
    return functools.reduce(getattr, name.split("."), sys.modules[module])
