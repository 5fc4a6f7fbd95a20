"""What is in a model directory, for a person who decides whether to trust it: nothing is executed or unpickled.

The files are checked first, so that what is shown is what a load would use. Imports the parts, pickles and trust;
must not import Keras.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mlflow_keras_subclass.artifacts import provenance
from mlflow_keras_subclass.artifacts.class_definition import DefinitionRecord
from mlflow_keras_subclass.artifacts.provenance import GitRecord
from mlflow_keras_subclass.errors import FormatError
from mlflow_keras_subclass.files import FileEntry
from mlflow_keras_subclass.manifest import (
    CLASS_FILE,
    CONFIG_FILE,
    MLMODEL_FILE,
    OBJECTS_FILE,
    REQUIREMENTS_FILE,
    SOURCE_DIR,
    STRUCTURE_FILE,
    Manifest,
)
from mlflow_keras_subclass.pickles import PickleContent, scan
from mlflow_keras_subclass.trust import TrustPolicy, VerifiedModel, verify

__all__ = ["Inspection", "SourceText", "inspect_model"]

# MLmodel and requirements.txt are MLflow's and no part of the manifest; more than this is not read of them.
_UNLISTED_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceText:
    """One source file: its path below ``source/``, and its text; bytes that are no UTF-8 are escaped."""

    path: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What ``inspect_model`` found.

    Attributes:
        manifest: Versions, class and the list of files.
        manifest_sha256: The digest to pin: ``TrustPolicy(manifest_sha256=…)``.
        config: ``config.json``: constructor arguments, specs, compile configuration.
        structure: ``structure.json``: layers, build arguments, attributes.
        definitions: The classes and functions that are stored, and by which route they come back.
        sources: The user's source files.
        pickles: What each pickle would import and call.
        git: Commit and claims.
        requirements: Lines of ``requirements.txt``. Not covered by the manifest.
        loader_module: The module that MLflow imports to load the model. Not covered by the manifest.
    """

    manifest: Manifest
    manifest_sha256: str
    config: Mapping[str, Any]
    structure: Mapping[str, Any]
    definitions: DefinitionRecord
    sources: tuple[SourceText, ...]
    pickles: tuple[PickleContent, ...]
    git: GitRecord
    requirements: tuple[str, ...]
    loader_module: str | None

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The files that the manifest lists, sorted by path."""
        return self.manifest.files

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "manifest": asdict(self.manifest),
            "manifest_sha256": self.manifest_sha256,
            "config": dict(self.config),
            "structure": dict(self.structure),
            "definitions": self.definitions.to_json(),
            "sources": [asdict(source) for source in self.sources],
            "pickles": [asdict(content) for content in self.pickles],
            "git": self.git.to_json(),
            "requirements": list(self.requirements),
            "loader_module": self.loader_module,
        }


def inspect_model(root: Path, policy: TrustPolicy | None = None) -> Inspection:
    """What the model directory ``root`` holds.

    Raises:
        IntegrityError: A file was changed, added or removed since the model was logged.
        FormatError: A file does not have the form that its format version promises.
    """
    verified = verify(root, policy or TrustPolicy())
    config = _mapping(verified, CONFIG_FILE)
    names = verified.names()
    return Inspection(
        manifest=verified.manifest,
        manifest_sha256=verified.manifest_sha256,
        config=config,
        structure=_mapping(verified, STRUCTURE_FILE),
        definitions=DefinitionRecord.from_json(config.get("definitions")),
        sources=tuple(_source(verified, name) for name in names if name.startswith(f"{SOURCE_DIR}/")),
        pickles=tuple(scan(verified.read_bytes(name), name) for name in (CLASS_FILE, OBJECTS_FILE) if name in names),
        git=provenance.read(verified),
        requirements=tuple(_unlisted(root / REQUIREMENTS_FILE).splitlines()),
        loader_module=_loader_module(root),
    )


def _mapping(verified: VerifiedModel, name: str) -> Mapping[str, Any]:
    value = verified.read_json(name)
    if not isinstance(value, dict):
        raise FormatError(f"{name}: expected an object, got {type(value).__name__}.")
    return value


def _source(verified: VerifiedModel, name: str) -> SourceText:
    text = verified.read_bytes(name).decode("utf-8", "backslashreplace")
    return SourceText(path=name.removeprefix(f"{SOURCE_DIR}/"), text=text)


def _unlisted(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(_UNLISTED_BYTES).decode("utf-8", "backslashreplace")


def _loader_module(root: Path) -> str | None:
    try:
        described = yaml.safe_load(_unlisted(root / MLMODEL_FILE))
    except yaml.YAMLError as error:
        raise FormatError(f"{MLMODEL_FILE} is not valid YAML: {error}.") from None
    match described:
        case {"flavors": {"python_function": {"loader_module": str(name)}}}:
            return name
    return None
