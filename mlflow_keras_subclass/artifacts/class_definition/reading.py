"""Brings the stored classes and functions back, by the route that the record names.

What is read here is executed: the caller has checked the bytes and the permission. Bytecode of another Python version
is never unpickled, because it does not raise there but crashes the process (findings: 33 of 35 models on 3.12).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import pickle
import types
from collections.abc import Callable, Mapping
from typing import Any

from mlflow_keras_subclass.artifacts.class_definition.imports import Redirect
from mlflow_keras_subclass.artifacts.class_definition.namespace import Namespace
from mlflow_keras_subclass.artifacts.class_definition.records import DefinitionRecord, Definitions
from mlflow_keras_subclass.artifacts.class_definition.runtime import Runtime, restored_class
from mlflow_keras_subclass.artifacts.class_definition.sources import ShippedSources, content_id
from mlflow_keras_subclass.errors import ClassDefinitionError
from mlflow_keras_subclass.files import ArtifactReader
from mlflow_keras_subclass.manifest import CLASS_FILE, OBJECTS_FILE, SOURCE_DIR
from mlflow_keras_subclass.pickles import scan

__all__ = ["choose_route", "read"]

_PYTHONS = {
    "6f0d0d0a": "3.10",
    "a70d0d0a": "3.11",
    "cb0d0d0a": "3.12",
    "f30d0d0a": "3.13",
    "2b0e0d0a": "3.14",
}


def read(record: DefinitionRecord, reader: ArtifactReader) -> Definitions:
    """The definitions and objects of an artifact whose bytes were checked.

    Raises:
        ClassDefinitionError: They cannot be brought back in this process; the text says what is needed.
    """
    route = choose_route(record, {}, reader)
    if route == "import":
        live = {key: _imported(module, name, key) for key, (module, name) in record.definitions.items()}
        return Definitions(definitions=live, objects={}, registrations=record.registrations)
    sources = _sources(record, reader)
    return _from_pickle(record, reader, sources) if route == "cloudpickle" else _from_source(record, reader, sources)


def choose_route(record: DefinitionRecord, proven: Mapping[str, str], reader: ArtifactReader) -> str:
    """The route to take in this process: the one that the record names, or the one that was proven instead.

    Args:
        record: How the definitions were stored.
        proven: For each route that was tried when the model was logged ``""``, or why it did not bring it back;
            empty if nothing was tried.
        reader: The artifact; every route but ``import`` reads its pickled objects, if there are any.

    Raises:
        ClassDefinitionError: No route is open here; the text says what is needed.
    """
    chosen = record.serialization_format
    if chosen == "import":
        return chosen
    if record.python_magic == importlib.util.MAGIC_NUMBER.hex():
        other = "source" if chosen == "cloudpickle" else "cloudpickle"
        return other if proven.get(chosen) and proven.get(other) == "" else chosen
    needed = f"Python {_PYTHONS.get(record.python_magic, 'with bytecode magic ' + record.python_magic)}"
    here = f"Python {_PYTHONS.get(importlib.util.MAGIC_NUMBER.hex(), importlib.util.MAGIC_NUMBER.hex())}"
    if _objects_hold_bytecode(reader):
        raise ClassDefinitionError(
            f"{OBJECTS_FILE} holds bytecode of {needed} and cannot be read in {here}. Load the model with {needed}, or "
            f"log it again after replacing lambdas and closures by named functions."
        )
    if reason := record.routes["source"] or proven.get("source", ""):
        raise ClassDefinitionError(
            f"{CLASS_FILE} holds bytecode of {needed} and cannot be read in {here}; the source text cannot be used "
            f"instead: {reason} Load the model with {needed}, or pass your own class."
        )
    return "source"


def _objects_hold_bytecode(reader: ArtifactReader) -> bool:
    return OBJECTS_FILE in reader.names() and scan(reader.read_bytes(OBJECTS_FILE), OBJECTS_FILE).holds_bytecode


def _sources(record: DefinitionRecord, reader: ArtifactReader) -> ShippedSources:
    texts = {module.name: (reader.read_bytes(module.path), module.is_package) for module in record.modules}
    identity = content_id([(name, data) for name, (data, _) in texts.items()], record.main_lines)
    return ShippedSources(identity, texts)


def _imported(module: str, qualname: str, key: str) -> Any:
    try:
        return functools.reduce(getattr, qualname.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ClassDefinitionError(
            f"{key}: the model was logged with serialization_format='import', and {module}.{qualname} cannot be "
            f"imported here: {error}. Install the package that defines it."
        ) from error


# --- pickle


def _from_pickle(record: DefinitionRecord, reader: ArtifactReader, sources: ShippedSources) -> Definitions:
    redirect = Redirect(sources, lambda name: None)
    runtime = Runtime(redirect)
    payload = _unpickled(CLASS_FILE, reader, _Unpickler.factory(runtime))
    sources.fill_linecache(leave_out=payload["stale"])

    def find_symbol(number: int, _module: str | None, _qualname: str) -> Any:
        return payload["symbols"][number]

    opener = _Unpickler.factory(
        runtime, definitions=payload["definitions"], find_symbol=find_symbol, find_module=redirect.module
    )
    return Definitions(
        definitions=payload["definitions"],
        objects=_objects(reader, opener),
        registrations=record.registrations,
        setters=runtime.setters,
    )


def _objects(reader: ArtifactReader, opener: Callable[[bytes], Any]) -> Mapping[str, Any]:
    if OBJECTS_FILE not in reader.names():
        return {}
    objects: Mapping[str, Any] = _unpickled(OBJECTS_FILE, reader, opener)
    return objects


def _unpickled(name: str, reader: ArtifactReader, opener: Callable[[bytes], Any]) -> Any:
    data = reader.read_bytes(name)
    try:
        return opener(data)
    except Exception as error:  # Unpickling runs the user's code and that of libraries.
        raise ClassDefinitionError(
            f"{name} cannot be read back: {type(error).__name__}: {error}. Check that the libraries in "
            f"requirements.txt are installed in the versions recorded there."
        ) from error


class _Unpickler(pickle.Unpickler):
    """Reads a pickle whose persistent ids name parts of this package or of the class definition."""

    def __init__(self, data: bytes, runtime: Runtime, finders: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(io.BytesIO(data))
        self._finders: dict[str, Callable[..., Any]] = {"runtime": lambda name: getattr(runtime, name), **finders}

    @classmethod
    def factory(
        cls,
        runtime: Runtime,
        *,
        definitions: Mapping[str, Any] | None = None,
        find_symbol: Callable[..., Any] | None = None,
        find_module: Callable[[str], types.ModuleType | None] | None = None,
    ) -> Callable[[bytes], Any]:
        """A function that reads bytes with these finders."""
        finders: dict[str, Callable[..., Any]] = {}
        if definitions is not None and find_symbol is not None and find_module is not None:
            finders = {"definition": definitions.__getitem__, "symbol": find_symbol, "module": find_module}
        return lambda data: cls(data, runtime, finders).load()

    def persistent_load(self, pid: Any) -> Any:
        """What a persistent id names."""
        kind, *rest = pid
        return self._finders[kind](*rest)

    def find_class(self, module: str, name: str) -> Any:
        """As pickle does, with a stand-in for what is not installed."""
        return restored_class(module, name)


# --- source


def _from_source(record: DefinitionRecord, reader: ArtifactReader, sources: ShippedSources) -> Definitions:
    namespace = Namespace(sources, main_lines=record.main_lines, main_package=_main_package(record))
    sources.fill_linecache()

    def find_symbol(_number: int, module: str | None, qualname: str) -> Any:
        return _resolved(namespace, str(module), qualname)

    with namespace.loading():
        definitions = {key: _resolved(namespace, *place) for key, place in record.definitions.items()}
        runtime = Runtime(namespace.redirect)
        opener = _Unpickler.factory(
            runtime, definitions=definitions, find_symbol=find_symbol, find_module=namespace.load
        )
        objects = _objects(reader, opener)
    return Definitions(
        definitions=definitions, objects=objects, registrations=record.registrations, setters=runtime.setters
    )


def _resolved(namespace: Namespace, module: str, qualname: str) -> Any:
    try:
        # A module that was not stored is an installed package's.
        home = namespace.load(module) or importlib.import_module(module)
        return functools.reduce(getattr, qualname.split("."), home)
    except (Exception, SystemExit) as error:  # The user's module is executed here, and may exit like a script.
        raise ClassDefinitionError(
            f"{module}.{qualname} cannot be brought back from the stored source: {type(error).__name__}: {error}."
        ) from error


def _main_package(record: DefinitionRecord) -> str:
    """The package that a script belongs to which was run with ``python -m``."""
    paths = {module.path: module.name for module in record.modules if module.name != "__main__"}
    main = next((module.path for module in record.modules if module.name == "__main__"), f"{SOURCE_DIR}/__main__.py")
    return paths.get(main, "").rpartition(".")[0]
