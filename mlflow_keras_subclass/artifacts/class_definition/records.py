"""What is written down about the user's definitions, and what comes back; strict JSON both ways.

Imports errors and the file names only. Must not import Keras or execute anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow_keras_subclass.errors import FormatError
from mlflow_keras_subclass.manifest import SOURCE_DIR

__all__ = ["ROUTES", "DefinitionRecord", "Definitions", "SourceModule", "Written"]

ROUTES = ("cloudpickle", "source", "import")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceModule:
    """One module of the user and where its text is kept.

    ``name`` is the original dotted name; a script run with ``python -m`` has two entries with one ``path``:
    ``__main__`` and its real name.
    """

    name: str
    path: str
    is_package: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DefinitionRecord:
    """How the classes and functions of a model were stored.

    Attributes:
        serialization_format: The route that ``read`` takes: ``"cloudpickle"``, ``"source"`` or ``"import"``.
        routes: For every route ``""`` if nothing speaks against it, else the reason why it cannot be used.
        python_magic: The bytecode magic number that pickled code is bound to, hexadecimal.
        definitions: Key to module and qualified name, as they were in the process that logged.
        registrations: Keras' registered name to the key of a definition; unpickling does not run decorators again.
        modules: The user's modules whose text is stored.
        main_lines: First and last line of the statements of ``__main__`` that the source route runs.
        third_party: Import names of the installed distributions that the user's modules import.
        notes: What a reader should know, one sentence each.
    """

    serialization_format: str
    routes: Mapping[str, str]
    python_magic: str
    definitions: Mapping[str, tuple[str, str]]
    registrations: Mapping[str, str]
    modules: tuple[SourceModule, ...]
    main_lines: tuple[tuple[int, int], ...]
    third_party: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` turns back into an equal record."""
        return {
            "serialization_format": self.serialization_format,
            "routes": dict(self.routes),
            "python_magic": self.python_magic,
            "definitions": {key: list(place) for key, place in self.definitions.items()},
            "registrations": dict(self.registrations),
            "modules": [{"name": m.name, "path": m.path, "is_package": m.is_package} for m in self.modules],
            "main_lines": [list(lines) for lines in self.main_lines],
            "third_party": list(self.third_party),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, value: Any) -> DefinitionRecord:
        """The record in ``value``.

        Raises:
            FormatError: A key is missing, unknown or of the wrong type, or a path leaves the source folder.
        """
        value = _object(value, {item.name for item in fields(cls)}, "the class definition")
        record = cls(
            serialization_format=_text(value["serialization_format"], "serialization_format"),
            routes=_texts(value["routes"], "routes"),
            python_magic=_text(value["python_magic"], "python_magic"),
            definitions={key: _place(place, key) for key, place in _mapping(value["definitions"], "definitions")},
            registrations=_texts(value["registrations"], "registrations"),
            modules=tuple(_module(item) for item in _list(value["modules"], "modules")),
            main_lines=tuple(_lines(item) for item in _list(value["main_lines"], "main_lines")),
            third_party=tuple(_text(item, "third_party") for item in _list(value["third_party"], "third_party")),
            notes=tuple(_text(item, "notes") for item in _list(value["notes"], "notes")),
        )
        _check_names(record)
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The record of what was written, and the user's own files that it came from (for git)."""

    record: DefinitionRecord
    source_files: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Definitions:
    """What came back: classes and functions by key, opaque objects by key, registered names to keys.

    ``setters`` put a value that the code reads from outside of the model in its places, by the value's name.
    ``is_of_caller`` where nothing stored was read: the classes are the caller's own.
    """

    definitions: Mapping[str, Any]
    objects: Mapping[str, Any]
    registrations: Mapping[str, str]
    setters: Mapping[str, Sequence[Callable[[Any], None]]] = field(default_factory=dict)
    is_of_caller: bool = False


def _check_names(record: DefinitionRecord) -> None:
    if record.serialization_format not in ROUTES:
        raise FormatError(f"serialization_format must be one of {ROUTES}, got {record.serialization_format!r}.")
    if set(record.routes) != set(ROUTES):
        raise FormatError(f"routes must name exactly {ROUTES}, got {sorted(record.routes)}.")
    unknown = sorted(set(record.registrations.values()) - set(record.definitions))
    if unknown:
        raise FormatError(f"registrations name definitions that are not listed: {unknown}.")


def _object(value: Any, keys: set[str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{where} must be a JSON object, got {type(value).__name__}.")
    if set(value) != keys:
        raise FormatError(
            f"{where}: missing {sorted(keys - set(value))}, not known {sorted(set(value) - keys, key=str)}."
        )
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise FormatError(f"{where}: expected text, got {value!r}.")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(f"{where}: expected a list, got {value!r}.")
    return value


def _mapping(value: Any, where: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected an object, got {value!r}.")
    return [(_text(key, where), item) for key, item in value.items()]


def _texts(value: Any, where: str) -> dict[str, str]:
    return {key: _text(item, f"{where}.{key}") for key, item in _mapping(value, where)}


def _place(value: Any, key: str) -> tuple[str, str]:
    items = _list(value, f"definitions.{key}")
    if len(items) != 2:
        raise FormatError(f"definitions.{key}: expected module and qualified name, got {value!r}.")
    return _text(items[0], f"definitions.{key}"), _text(items[1], f"definitions.{key}")


def _lines(value: Any) -> tuple[int, int]:
    items = _list(value, "main_lines")
    if len(items) != 2 or any(type(item) is not int or item < 1 for item in items):
        raise FormatError(f"main_lines: expected first and last line, got {value!r}.")
    return items[0], items[1]


def _module(value: Any) -> SourceModule:
    value = _object(value, {item.name for item in fields(SourceModule)}, "modules")
    path = PurePosixPath(_text(value["path"], "modules.path"))
    if path.parts[:1] != (SOURCE_DIR,) or ".." in path.parts or str(path) != value["path"]:
        raise FormatError(f"modules.path must lie below {SOURCE_DIR}/, got {value['path']!r}.")
    if not isinstance(value["is_package"], bool):
        raise FormatError(f"modules.is_package: expected true or false, got {value['is_package']!r}.")
    return SourceModule(name=_text(value["name"], "modules.name"), path=str(path), is_package=value["is_package"])
