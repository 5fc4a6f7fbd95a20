"""Pickles the user's classes and functions by value, with everything of the user's modules that they read.

Builds on cloudpickle and differs from it where cloudpickle leaves the artifact tied to the process that wrote it:

* The user's modules travel by value without cloudpickle's registry, which is global and would be changed.
* A module object becomes an empty module first, and then gets only what shipped code reads from it: import cycles
  end, and a lock or a handle that nothing shipped needs is not looked at.
* Functions share their module's variables and their closure cells again after loading.
* Locks and caches come back fresh; ``lru_cache`` and ``singledispatch`` objects of the user travel by value.
* File names in code are replaced: they are paths of one machine, and TensorFlow's autograph would execute whatever
  text lies there. The stored text is found under the new name.
* A live Keras object or a large array in a variable is not pickled: a stand-in with its name is.
* Classes carry no tracker id, by which cloudpickle would overwrite the live class when it is loaded where it was made.

Must not import Keras. Reads cloudpickle's private functions; the requirement is bounded accordingly.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import cloudpickle
from cloudpickle import cloudpickle as private

from mlflow_keras_subclass.artifacts.class_definition.diagnosis import Problem, problem_with
from mlflow_keras_subclass.artifacts.class_definition.global_values import GlobalValue, is_carried
from mlflow_keras_subclass.artifacts.class_definition.imports import is_importlib, missing_name
from mlflow_keras_subclass.artifacts.class_definition.origins import (
    INSTALLED,
    NATIVE,
    PRIVATE_DIR,
    USER,
    is_shipped,
    module_name,
    origin_of,
    original_name,
)
from mlflow_keras_subclass.artifacts.class_definition.runtime import Runtime, runtime_names
from mlflow_keras_subclass.artifacts.class_definition.sources import ShippedSources, private_file
from mlflow_keras_subclass.artifacts.class_definition.spaces import (
    CodeNames,
    Space,
    Spaces,
    code_names,
    imported_modules,
)

__all__ = ["DefinitionPickler", "LastVariables"]

_ATTRIBUTES = ("__name__", "__qualname__", "__annotations__", "__kwdefaults__", "__defaults__", "__doc__")
_SINGLETONS = {
    id(dataclasses.MISSING): (dataclasses, "MISSING"),
    id(dataclasses.KW_ONLY): (dataclasses, "KW_ONLY"),
    id(dataclasses._HAS_DEFAULT_FACTORY): (dataclasses, "_HAS_DEFAULT_FACTORY"),  # type: ignore[attr-defined]
}
_FRESH: dict[type, Callable[[], Any]] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
    threading.local: threading.local,
}
_WEAK = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary)
_DESCRIPTORS = (property, classmethod, staticmethod)
_NAMED_TYPES = tuple(
    kind for name in ("ParamSpec", "TypeVarTuple") if isinstance(kind := getattr(typing, name, None), type)
)


class LastVariables:
    """Pickled last: the variables that were found to be needed after their module had been pickled."""


class DefinitionPickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no types
    """Pickles by value; with ``problems`` it notes what cannot be pickled there and goes on without it."""

    def __init__(
        self,
        file: BinaryIO,
        spaces: Spaces,
        *,
        identity: str,
        files: Mapping[str, tuple[str, int]],
        problems: list[Problem] | None = None,
        is_size_limited: bool = True,
    ) -> None:
        """Pickle to ``file``; ``files`` maps file names in live code to module and number of lines to add."""
        super().__init__(file)
        self.spaces = spaces
        self.functions: list[types.FunctionType] = []
        self.classes: list[type] = []
        self.unimported: set[tuple[str, str]] = set()
        self._identity = identity
        self._files = files
        self._problems = problems
        self._is_size_limited = is_size_limited
        self._sent: list[Space] = []
        self._names: set[str] = set()
        self._runtime = runtime_names()
        self._origins: dict[str, str] = {}
        self._below: dict[tuple[str, int], list[tuple[set[str], types.ModuleType]]] = {}

    def persistent_id(self, obj: Any) -> Any:
        """Name the functions of ``Runtime``; all else is pickled."""
        name = self._runtime.get(id(obj))
        return ("runtime", name) if name is not None else None

    def reducer_override(self, obj: Any) -> Any:
        """How to rebuild ``obj``; ``NotImplemented`` where pickle's own way is right."""
        kind = type(obj)
        if kind is Space:
            return self._reduce_space(obj)
        if kind is LastVariables:
            return self._reduce_last_variables()
        if kind is GlobalValue:
            return Runtime.global_value, (obj.name,)
        if kind is types.CodeType:
            return self._reduce_code(obj)
        if kind is types.CellType:
            return self._reduce_cell(obj)
        if is_importlib(obj):
            return Runtime.importlib_of_user, ("import_module" if callable(obj) else None,)
        if issubclass(kind, types.ModuleType):
            return self._reduce_module(obj)
        if issubclass(kind, type):
            return self._reduce_class(obj)
        if kind is types.FunctionType:
            return self._reduce_function(obj)
        return self._reduce_instance(obj)

    def _origin(self, obj: Any) -> str:
        if is_shipped(obj):
            return USER
        name = module_name(obj)
        if name is None:
            # On Python 3.10 Cython's types have a descriptor there; a function without a module is the user's.
            return INSTALLED if isinstance(obj, type) else USER
        if name not in self._origins:
            self._origins[name] = origin_of(name)
        return self._origins[name]

    def _is_by_value(self, obj: Any) -> bool:
        return self._origin(obj) == USER or not private._should_pickle_by_reference(obj)

    # --- modules and their variables

    def _reduce_space(self, space: Space) -> Any:
        self._sent.append(space)
        args = (space.name, space.is_package, space.is_importable)
        return Runtime.make_module, args, self._pending(space) or None, None, None, Runtime.fill_module

    def _reduce_last_variables(self) -> Any:
        filled = []
        for space in list(self._sent):
            if space.is_loose:
                space.wanted |= self._names
            variables = self._pending(space)
            if variables:
                filled.append((space, variables))
        return Runtime.fill_modules, (filled, LastVariables() if filled else None)

    def _pending(self, space: Space) -> dict[str, Any]:
        """The wanted variables of a module that were not stored so far; what is wanted of a module is of its own."""
        wanted = space.wanted | {"__getattr__"} if space.wanted else set()
        names = {name for name in wanted & space.variables.keys() if not _is_of_module(name)}
        new = sorted(names - space.stored)
        space.stored.update(new)
        self._want(space.wanted, [space.variables[name] for name in new])
        return {name: self._held(space.variables[name], f"{space.name}.{name}") for name in new}

    def _want(self, names: set[str] | frozenset[str], values: list[Any]) -> None:
        for value in values:
            if isinstance(value, types.ModuleType) and self._is_user_module(value):
                self.spaces.of(vars(value)).wanted.update(names)

    def _is_user_module(self, module: types.ModuleType) -> bool:
        variables = vars(module)
        if isinstance(variables.get("__loader__"), ShippedSources):
            return True
        name = variables.get("__name__")
        if missing_name(module) or not isinstance(name, str):
            return False
        if sys.modules.get(name) is not module:
            return type(module) is types.ModuleType and origin_of(name) == USER
        return origin_of(name) == USER

    def _reduce_module(self, module: types.ModuleType) -> Any:
        if self._is_user_module(module):
            space = self.spaces.of(vars(module))
            space.is_loose = space.is_loose or not space.wanted
            return Runtime.same, (space,)
        name = missing_name(module) or str(vars(module).get("__name__"))
        if self._problems is not None and origin_of(name) == NATIVE:
            return self._refused(module, f"is the compiled module {name} of yours, which cannot be stored")
        if sys.modules.get(name) is not module:
            place = _place_of_lazy_module(module)
            if place is not None:
                return Runtime.import_attribute, place
        return Runtime.import_module, (name,)

    def _held(self, value: Any, place: str) -> Any:
        """``value``, or the stand-in for one that is stored with the model."""
        return GlobalValue(self.spaces.global_values.name(value, place)) if is_carried(value) else value

    # --- functions

    def _reduce_function(self, function: types.FunctionType) -> Any:
        registry = _singledispatch_registry(function)
        if registry is not None and self._origin(registry[object]) == USER:
            rest = {cls: implementation for cls, implementation in registry.items() if cls is not object}
            args = (registry[object],)
            return Runtime.make_singledispatch, args, rest or None, None, None, Runtime.fill_singledispatch
        if not self._is_by_value(function):
            return NotImplemented
        home = self._home(function)
        for name, value in _cell_contents(function):
            self._held(value, f"{original_name(function.__module__ or '')}.{function.__qualname__}({name})")
        names = code_names(function.__code__)
        variables = self._variables(function, home, names) if isinstance(home, Space) else {}
        made_of = (function.__code__, home, function.__name__, function.__closure__)
        state = self._function_state(function, names, variables, self._stored_with_function(home, variables))
        return Runtime.make_function, made_of, state, None, None, Runtime.fill_function

    def _home(self, function: types.FunctionType) -> Any:
        """The space of the function's globals, or the module itself if that is installed where the model is loaded."""
        variables = function.__globals__
        module = sys.modules.get(str(variables.get("__name__")))
        if isinstance(module, types.ModuleType) and vars(module) is variables and not self._is_user_module(module):
            return module
        return self.spaces.of(variables)

    def _variables(self, function: types.FunctionType, space: Space, names: CodeNames) -> dict[str, Any]:
        self.functions.append(function)
        space.filenames.add(function.__code__.co_filename)
        used = {name for name in names.variables & space.variables.keys() if not _is_of_module(name)}
        space.used |= used
        held = {name: self._held(space.variables[name], f"{space.name}.{name}") for name in sorted(used)}
        variables = {name: self._checked(value) for name, value in held.items()}
        self._want(names.any_names, list(variables.values()))
        return variables

    def _stored_with_function(self, _home: Any, variables: dict[str, Any]) -> dict[str, Any]:
        """The variables that travel with the function that reads them."""
        return variables

    def _function_state(
        self, function: types.FunctionType, names: CodeNames, variables: dict[str, Any], stored: dict[str, Any]
    ) -> Any:
        self._names |= names.any_names
        modules, absent = imported_modules(names.imports, function.__globals__)
        self.unimported |= {(function.__qualname__, name) for name in absent}
        users = [module for module in modules if self._is_user_module(module)]
        enclosed = [value for _, value in _cell_contents(function)]
        values = [*variables.values(), *enclosed]
        self._want(names.any_names, [*enclosed, *users])
        attributes = {name: getattr(function, name) for name in _ATTRIBUTES}
        attributes["__module__"] = original_name(function.__module__) if function.__module__ else None
        attributes |= {name: value for name in ("__type_params__",) if (value := getattr(function, name, ()))}
        return attributes, dict(vars(function)), stored, (*users, *self._submodules(values, names))

    def _submodules(self, values: list[Any], names: CodeNames) -> list[types.ModuleType]:
        """Installed submodules that code reaches as attributes of packages, and that must be imported for that."""
        found = []
        for package in values:
            if not isinstance(package, types.ModuleType) or "__path__" not in vars(package):
                continue
            if self._is_user_module(package):
                continue
            found += [module for path, module in self._modules_below(package.__name__) if path <= names.any_names]
        return found

    def _modules_below(self, package: str) -> list[tuple[set[str], types.ModuleType]]:
        """The modules imported so far from a package, with the names that lead to each."""
        key = package, len(sys.modules)
        if key not in self._below:
            self._below[key] = [
                (set(name[len(package) + 1 :].split(".")), module)
                for name, module in list(sys.modules.items())
                if name.startswith(f"{package}.") and isinstance(module, types.ModuleType)
            ]
        return self._below[key]

    def _reduce_cell(self, cell: types.CellType) -> Any:
        try:
            state = (self._held(cell.cell_contents, "closure"),)
        except ValueError:
            return Runtime.make_cell, ()
        return Runtime.make_cell, (), state, None, None, Runtime.fill_cell

    def _reduce_code(self, code: types.CodeType) -> Any:
        name, offset = self._files.get(code.co_filename, (None, 0))
        if name is not None:
            file = private_file(self._identity, name)
        else:
            file = f"{PRIVATE_DIR}{self._identity}/other/{code.co_filename.replace(chr(92), '/').rpartition('/')[2]}"
        _, made_of = private._code_reduce(code.replace(co_firstlineno=code.co_firstlineno + offset))
        return Runtime.make_code, (made_of, file)

    # --- classes

    def _reduce_class(self, cls: type) -> Any:
        if cls in (type(None), type(Ellipsis), type(NotImplemented)) or cls in private._BUILTIN_TYPE_NAMES:
            return private._class_reduce(cls)
        if self._problems is not None and self._origin(cls) == NATIVE:
            return self._refused(cls, f"is from the compiled module {cls.__module__} of yours, which cannot be stored")
        if not self._is_by_value(cls):
            return NotImplemented
        self.classes.append(cls)
        return self._reduce_enum(cls) if issubclass(cls, enum.Enum) else self._reduce_plain_class(cls)

    def _reduce_plain_class(self, cls: type) -> Any:
        keywords = {"__module__": original_name(cls.__module__), "__qualname__": cls.__qualname__}
        keywords |= {name: vars(cls)[name] for name in ("__slots__",) if name in vars(cls)}
        if isinstance(vars(cls).get("__dict__"), property):
            keywords["__dict__"] = vars(cls)["__dict__"]
        state, slots = private._class_getstate(cls)
        state = {name: value for name, value in state.items() if type(value) is not types.MemberDescriptorType}
        args = (type(cls), cls.__name__, _bases(cls), keywords, None, None)
        placed = self._placed(state, cls)
        return private._make_skeleton_class, args, (placed, slots), None, None, Runtime.fill_class

    def _reduce_enum(self, cls: type[enum.Enum]) -> Any:
        members = {name: member.value for name, member in cls.__members__.items()}
        state, slots = private._enum_getstate(cls)
        state = {name: value for name, value in state.items() if name not in members}
        extra = {member.name: _own_attributes(member) for member in cls if _own_attributes(member)}
        args = (cls.__bases__, cls.__name__, cls.__qualname__, members, original_name(cls.__module__), None, None)
        return (
            private._make_skeleton_enum,
            args,
            ((self._placed(state, cls), slots), extra),
            None,
            None,
            Runtime.fill_enum,
        )

    def _placed(self, state: dict[str, Any], cls: type) -> dict[str, Any]:
        module = original_name(cls.__module__)
        held = {name: self._held(value, f"{module}.{cls.__qualname__}.{name}") for name, value in state.items()}
        for value in held.values():
            self._checked(value)
        return held | {"__module__": module}

    # --- everything else

    def _reduce_instance(self, obj: Any) -> Any:
        kind = type(obj)
        singleton = _SINGLETONS.get(id(obj))
        if singleton is not None:
            return getattr, singleton
        if kind in _FRESH:
            return _FRESH[kind], ()
        if kind is functools._lru_cache_wrapper and self._origin(obj) == USER:
            return self._reduce_lru_cache(obj)
        if kind in _WEAK:
            return kind, (dict(obj),)
        if isinstance(obj, _DESCRIPTORS) and kind not in _DESCRIPTORS:
            return self._reduce_descriptor(obj)
        if isinstance(obj, threading.local) and _takes_nothing(kind):
            return Runtime.make_local, (kind, dict(vars(obj)))
        if kind is typing.TypeVar and self._origin(obj) == USER:
            bounds = (obj.__bound__, obj.__constraints__, obj.__covariant__, obj.__contravariant__)
            return private._make_typevar, (obj.__name__, *bounds, None)
        if kind is typing.NewType and self._origin(obj) == USER:
            return typing.NewType, (obj.__name__, obj.__supertype__)
        if kind in _NAMED_TYPES and self._origin(obj) == USER:
            return kind, (obj.__name__,)
        if self._problems is None:
            return self._reduce_sentinel(obj)
        reason = problem_with(obj, is_size_limited=self._is_size_limited)
        return self._refused(obj, reason) if reason is not None else self._reduce_or_refuse(obj)

    def _reduce_sentinel(self, obj: Any) -> Any:
        """Instances of user classes whose reduction is a global name, which would mean the user's module."""
        if self._origin(type(obj)) != USER or not isinstance(obj.__reduce_ex__(self.proto), str):
            return NotImplemented
        return Runtime.new_instance, (type(obj), dict(vars(obj)))

    def _reduce_descriptor(self, obj: Any) -> Any:
        """Instances of subclasses of ``property`` and the like, which pickle cannot take apart."""
        if isinstance(obj, property):
            made_of: tuple[Any, ...] = (obj.fget, obj.fset, obj.fdel, obj.__doc__)
        else:
            made_of = (obj.__func__,)
        state = dict(getattr(obj, "__dict__", {}))
        return Runtime.make_descriptor, (_builtin_base(type(obj)), type(obj), made_of, state)

    def _reduce_lru_cache(self, obj: Any) -> Any:
        parameters = obj.cache_parameters()
        attributes = {
            name: value for name, value in vars(obj).items() if name not in ("__wrapped__", "cache_parameters")
        }
        return Runtime.make_lru_cache, (obj.__wrapped__, parameters["maxsize"], parameters["typed"], attributes)

    # --- what cannot be pickled

    def _checked(self, value: Any) -> Any:
        """``value``; notes it as a problem if it must not be pickled."""
        if self._problems is not None:
            reason = problem_with(value, is_size_limited=self._is_size_limited)
            if reason is not None:
                self._refused(value, reason)
        return value

    def _reduce_or_refuse(self, obj: Any) -> Any:
        """What pickle would do with ``obj``; whatever goes wrong there is noted."""
        reducer = self.dispatch_table.get(type(obj))
        try:
            reduced = reducer(obj) if reducer is not None else self._reduce_sentinel(obj)
            if reduced is NotImplemented:
                reduced = obj.__reduce_ex__(self.proto)
        except Exception as error:  # The code of any library runs here, and its failure is the finding.
            return self._refused(obj, f"cannot be pickled: {error}")
        if isinstance(obj, types.BuiltinFunctionType) and self._origin(obj) == NATIVE:
            return self._refused(obj, f"is from the compiled module {obj.__module__} of yours, which cannot be stored")
        return NotImplemented if isinstance(reduced, str) else reduced

    def _refused(self, obj: Any, reason: str) -> Any:
        assert self._problems is not None
        if not any(problem.value is obj for problem in self._problems):
            self._problems.append(Problem(obj, reason))
        return str, ()


def _is_of_module(name: str) -> bool:
    """Variables that every module gets of its own when it is made."""
    return name in (
        "__builtins__",
        "__name__",
        "__file__",
        "__loader__",
        "__spec__",
        "__package__",
        "__path__",
        "__cached__",
    )


def _cell_contents(function: types.FunctionType) -> list[tuple[str, Any]]:
    """The free variables of a function that have a value."""
    found = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found.append((name, cell.cell_contents))
        except ValueError:
            continue
    return found


def _builtin_base(kind: type) -> type:
    return next(base for base in _DESCRIPTORS if issubclass(kind, base))


def _takes_nothing(kind: type) -> bool:
    """Whether the constructor can be called without arguments, as it is in every other thread."""
    try:
        inspect.signature(kind).bind()
    except (TypeError, ValueError):
        return False
    return True


def _singledispatch_registry(function: types.FunctionType) -> Mapping[Any, Any] | None:
    registry = vars(function).get("registry")
    is_generic = isinstance(registry, types.MappingProxyType) and "dispatch" in vars(function)
    return registry if is_generic and registry is not None and object in registry else None


def _bases(cls: type) -> tuple[Any, ...]:
    """Generic bases with their arguments where making the class from them gives the same bases (not a NamedTuple)."""
    original = vars(cls).get("__orig_bases__", cls.__bases__)
    # Of typing and of typing_extensions: it adds dict, and refuses it as a base.
    if type(cls).__name__ == "_TypedDictMeta":
        return tuple(base for base in original if typing.get_origin(base) is typing.Generic)
    return tuple(original) if types.resolve_bases(original) == cls.__bases__ else cls.__bases__


def _own_attributes(member: enum.Enum) -> dict[str, Any]:
    """What the enum's own ``__init__`` put on a member; cloudpickle makes members without calling it."""
    return {name: value for name, value in vars(member).items() if not name.startswith("_")}


def _place_of_lazy_module(module: types.ModuleType) -> tuple[str, str] | None:
    """The module and attribute where a lazily loaded module is found, as ``tensorflow.keras`` is."""
    for name, parent in list(sys.modules.items()):
        if "." in name or not isinstance(parent, types.ModuleType):
            continue
        for attribute, value in list(vars(parent).items()):
            if value is module and origin_of(name) != USER:
                return name, attribute
    return None
