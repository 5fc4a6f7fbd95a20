"""Reading and writing the files of one artifact: every byte written or read is hashed on its way.

Imports errors only. Knows nothing of Keras or MLflow.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

__all__ = ["ArtifactReader", "ArtifactWriter", "FileEntry", "HashingFile", "folder_entries", "link_or_copy", "to_json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of the artifact: its path below the model directory, its size and its digest."""

    path: str
    size_bytes: int
    sha256: str


class ArtifactReader(Protocol):
    """What a part of the artifact needs for reading; only checked bytes come out of it."""

    def names(self) -> tuple[str, ...]:
        """Paths of the files present, below ``keras_subclass/``, sorted."""

    def read_bytes(self, name: str) -> bytes:
        """The checked bytes of one file."""

    def read_json(self, name: str) -> Any:
        """The checked content of one JSON file."""


class HashingFile:
    """A binary file that hashes what is written to it."""

    def __init__(self, raw: BinaryIO) -> None:
        """Write to ``raw`` from its current position, which must be its start."""
        self._raw = raw
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        """Write all of ``data``; returns its length in bytes."""
        self._raw.write(data)
        self._digest.update(data)
        self.size_bytes += memoryview(data).nbytes
        return memoryview(data).nbytes

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of everything written so far."""
        return self._digest.hexdigest()


class ArtifactWriter:
    """Writes files below ``root / prefix`` and keeps an entry of each, in the order written."""

    def __init__(self, root: Path, prefix: str) -> None:
        """Use ``root`` as the model directory and ``prefix`` as the folder in it that is ours."""
        self._root = root
        self._prefix = prefix
        self._entries: dict[str, FileEntry] = {}

    @property
    def directory(self) -> Path:
        """The folder that holds our files."""
        return self._root / self._prefix

    @property
    def entries(self) -> tuple[FileEntry, ...]:
        """An entry for every file written, sorted by path."""
        return tuple(self._entries[path] for path in sorted(self._entries))

    @contextmanager
    def open(self, name: str) -> Iterator[HashingFile]:
        """Create the file ``name`` (a path below our folder) for writing."""
        path = str(PurePosixPath(self._prefix) / name)
        if path in self._entries:
            raise FileExistsError(f"{path} was written already in this save")
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as raw:
            hashing = HashingFile(raw)
            yield hashing
        self._entries[path] = FileEntry(path=path, size_bytes=hashing.size_bytes, sha256=hashing.sha256)

    def add_folder(self, name: str) -> None:
        """Take in the files of a folder below ours that another library wrote there."""
        self._entries |= {entry.path: entry for entry in folder_entries(self._root, f"{self._prefix}/{name}")}

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write one binary file."""
        with self.open(name) as file:
            file.write(data)

    def write_text(self, name: str, text: str) -> None:
        """Write one text file as UTF-8 with LF line ends and a final newline."""
        self.write_bytes(name, (text if text.endswith("\n") else text + "\n").encode("utf-8"))

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one JSON file for people and programs: indented, sorted keys, no NaN."""
        self.write_text(name, to_json(value))


def folder_entries(root: Path, name: str) -> list[FileEntry]:
    """An entry for every file in the folder ``name`` below ``root``, but for compiled Python."""
    files = [path for path in (root / name).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [
        FileEntry(path=path.relative_to(root).as_posix(), size_bytes=path.stat().st_size, sha256=_sha256(path))
        for path in sorted(files)
    ]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def to_json(value: Mapping[str, Any]) -> str:
    """``value`` as the JSON text that this package writes: indented, sorted keys, UTF-8 kept, NaN refused."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)


def link_or_copy(source: str, target: str) -> None:
    """One more name for a file, or a copy where links cannot be made: on another file system, say."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
