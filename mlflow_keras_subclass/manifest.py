"""The disk format: file names, JSON keys and versions are spelled here and nowhere else.

Imports errors and files. A change of the format means a new ``FORMAT_VERSION``, a reader for the old one and a golden
directory in the tests. Must not import Keras.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mlflow_keras_subclass.errors import FormatError
from mlflow_keras_subclass.files import FileEntry, to_json

__all__ = [
    "ARRAYS_FILE",
    "BUNDLE_PREFIX",
    "CLASS_FILE",
    "CODE_DIR",
    "CONFIG_FILE",
    "DATA_DIR",
    "FINGERPRINT_ARRAYS_FILE",
    "FINGERPRINT_FILE",
    "FORMAT_VERSION",
    "GIT_FILE",
    "GRAPH_DIR",
    "GRAPH_FILE",
    "MANIFEST_FILE",
    "MAX_JSON_BYTES",
    "MLMODEL_FILE",
    "OBJECTS_FILE",
    "OPTIMIZER_FILE",
    "PAGE_FILE",
    "PATCH_FILE",
    "PROOF_FILE",
    "REQUIREMENTS_FILE",
    "SIGNATURE_FILE",
    "SOURCE_DIR",
    "STATE_FILE",
    "STRUCTURE_FILE",
    "SUMMARY_FILE",
    "VOCABULARIES_DIR",
    "WEIGHTS_TABLE_FILE",
    "Manifest",
    "Versions",
    "parse_json",
    "parse_manifest",
    "write_manifest",
]

FORMAT_VERSION = 1

DATA_DIR = "keras_subclass"
CODE_DIR = "code"
MLMODEL_FILE = "MLmodel"
REQUIREMENTS_FILE = "requirements.txt"
PAGE_FILE = "report.html"
BUNDLE_PREFIX = "_mks_rt_"
# Beside our folder, since a signature cannot cover itself.
SIGNATURE_FILE = "keras_subclass.sig.json"

MANIFEST_FILE = "manifest.json"
CONFIG_FILE = "config.json"
STRUCTURE_FILE = "structure.json"
STATE_FILE = "state.safetensors"
WEIGHTS_TABLE_FILE = "weights.csv"
ARRAYS_FILE = "arrays.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
VOCABULARIES_DIR = "vocabularies"
CLASS_FILE = "class.cloudpickle"
OBJECTS_FILE = "objects.cloudpickle"
SOURCE_DIR = "source"
GIT_FILE = "git.json"
PATCH_FILE = "uncommitted.diff.txt"
FINGERPRINT_FILE = "fingerprint.json"
FINGERPRINT_ARRAYS_FILE = "fingerprint.safetensors"
GRAPH_FILE = "graph.json"
GRAPH_DIR = "graph"
PROOF_FILE = "proof.json"
SUMMARY_FILE = "model_summary.txt"

MAX_JSON_BYTES = 64 * 2**20
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Versions of what wrote the artifact; ``python_magic`` is the hexadecimal bytecode magic number.

    ``keras_distribution`` is the package that the model is made of: ``keras`` or ``tf_keras``.
    """

    python: str
    python_magic: str
    keras: str
    keras_distribution: str
    backend: str
    backend_version: str
    numpy: str
    cloudpickle: str
    mlflow: str
    mlflow_keras_subclass: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The list of all files of the artifact, with what made them. Written last: without it no save ever finished."""

    format_version: int
    created_at: str
    model_class: str
    versions: Versions
    files: tuple[FileEntry, ...]

    def to_bytes(self) -> bytes:
        """The exact bytes of ``manifest.json``."""
        return (to_json(asdict(self)) + "\n").encode("utf-8")


def write_manifest(directory: Path, manifest: Manifest) -> str:
    """Write ``manifest.json`` by rename after its bytes are on disk; returns its sha256."""
    data = manifest.to_bytes()
    temporary = directory / (MANIFEST_FILE + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / MANIFEST_FILE)
    return hashlib.sha256(data).hexdigest()


def parse_manifest(data: bytes) -> Manifest:
    """The manifest in ``data``.

    Raises:
        FormatError: Not JSON, a key missing or of the wrong type, a newer format, or an entry listed twice.
    """
    value = _record(parse_json(data, MANIFEST_FILE), Manifest, MANIFEST_FILE, known_only=False)
    version = value["format_version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise FormatError(f"{MANIFEST_FILE}: format_version must be a whole number from 1, got {version!r}.")
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{MANIFEST_FILE} has format_version {version}; this release of mlflow-keras-subclass reads up to "
            f"{FORMAT_VERSION}. Install a newer release of mlflow-keras-subclass to load this model."
        )
    for key in ("created_at", "model_class"):
        _require_text(value[key], f"{MANIFEST_FILE}: {key}")
    stated = value["versions"]
    if isinstance(stated, dict):
        # Artifacts that do not say it are of Keras 3: the first ones could be of nothing else.
        stated = {"keras_distribution": "keras", **stated}
    versions = _record(stated, Versions, f"{MANIFEST_FILE}: versions", known_only=False)
    for key, text in versions.items():
        _require_text(text, f"{MANIFEST_FILE}: versions.{key}")
    return Manifest(
        format_version=version,
        created_at=value["created_at"],
        model_class=value["model_class"],
        versions=Versions(**versions),
        files=_file_entries(value["files"]),
    )


def parse_json(data: bytes, name: str) -> Any:
    """The JSON value in ``data``; duplicate keys, NaN, bad UTF-8 and absurd depth or size are refused by name."""
    if len(data) > MAX_JSON_BYTES:
        raise FormatError(f"{name} has {len(data)} bytes; a JSON file of this format has at most {MAX_JSON_BYTES}.")
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite
        )
    except RecursionError:
        raise FormatError(f"{name} is nested too deeply to be read.") from None
    except ValueError as error:
        raise FormatError(f"{name} is not valid JSON: {error}.") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return value


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text} is out of range")
    return number


def _record(value: Any, record: type, where: str, *, known_only: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected an object, got {type(value).__name__}.")
    names = {field.name for field in fields(record)}
    if missing := sorted(names - value.keys()):
        raise FormatError(f"{where}: missing {', '.join(missing)}.")
    if known_only and (unknown := sorted(value.keys() - names)):
        raise FormatError(f"{where}: unknown {', '.join(unknown)}.")
    return {name: value[name] for name in names}


def _require_text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise FormatError(f"{where}: expected a string, got {value!r}.")


def _file_entries(value: Any) -> tuple[FileEntry, ...]:
    if not isinstance(value, list):
        raise FormatError(f"{MANIFEST_FILE}: files must be a list, got {type(value).__name__}.")
    entries = tuple(_file_entry(item) for item in value)
    counts = Counter(entry.path.casefold() for entry in entries)
    for path, count in counts.items():
        if count > 1:
            raise FormatError(
                f"{MANIFEST_FILE}: {path} is listed {count} times (names that differ only in case count)."
            )
    return entries


def _file_entry(item: Any) -> FileEntry:
    where = f"{MANIFEST_FILE}: files"
    value = _record(item, FileEntry, where, known_only=True)
    _require_text(value["path"], f"{where}.path")
    _check_path(value["path"])
    size = value["size_bytes"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise FormatError(f"{where}: {value['path']}: size_bytes must be a whole number from 0, got {size!r}.")
    if not isinstance(value["sha256"], str) or not _DIGEST.fullmatch(value["sha256"]):
        raise FormatError(f"{where}: {value['path']}: sha256 must be 64 hexadecimal digits, got {value['sha256']!r}.")
    return FileEntry(**value)


def _check_path(path: str) -> None:
    parts = path.split("/")
    if parts[0] not in (DATA_DIR, CODE_DIR) or len(parts) < 2:
        raise FormatError(f"{MANIFEST_FILE}: {path!r} is not below {DATA_DIR}/ or {CODE_DIR}/.")
    if any(part in ("", ".", "..") for part in parts) or "\\" in path or ":" in path or not path.isprintable():
        raise FormatError(f"{MANIFEST_FILE}: {path!r} is not a plain relative path.")
