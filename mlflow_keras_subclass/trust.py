"""What may be loaded: digests, trust policy, and the only way to a ``VerifiedModel``.

Nothing of the artifact is executed or unpickled here. The bytes that were checked are the bytes that are used: small
files are read once and kept, and large ones are read from the file descriptor that was hashed, each array checked
again against its own digest. Imports errors, files and manifest; neither Keras nor anything of the artifact.

Trust comes from the caller or the server's environment, never from the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mlflow_keras_subclass.errors import FormatError, IntegrityError, UntrustedCodeError
from mlflow_keras_subclass.files import FileEntry
from mlflow_keras_subclass.manifest import (
    CODE_DIR,
    DATA_DIR,
    MANIFEST_FILE,
    MAX_JSON_BYTES,
    Manifest,
    parse_json,
    parse_manifest,
)

__all__ = ["PICKLE_VARIABLE", "TrustPolicy", "VerifiedModel", "verify"]

# MLflow's own switch (3.17; absent before, so it is read from the environment and not from mlflow).
PICKLE_VARIABLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
_CHUNK_BYTES = 2**20
_KEPT_BYTES = 64 * 2**20
_VERIFIED = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPolicy:
    """What the caller allows an artifact to do.

    Attributes:
        allow_code: The stored class definition may run. If not, the classes come from ``custom_objects``.
        allow_pickle: Pickles may be loaded. ``MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false`` forbids it in any case.
        manifest_sha256: The one manifest digest that is accepted; any if ``None``.
    """

    allow_code: bool = True
    allow_pickle: bool = True
    manifest_sha256: str | None = None

    @classmethod
    def from_environment(cls) -> TrustPolicy:
        """The policy of a server: everything allowed but what the environment forbids."""
        return cls(allow_pickle=_environment_allows_pickle())

    def check_code(self, serialization_format: str, *, pickled: bool) -> None:
        """Raise ``UntrustedCodeError`` unless code stored in this form may be loaded."""
        cure = (
            "Load with your own classes, and nothing stored is run: "
            'mlflow_keras_subclass.load_model(uri, custom_objects={"<class name>": <class>}).'
        )
        if not self.allow_code and serialization_format != "import":
            raise UntrustedCodeError(f"The trust policy forbids to run the class definition of this model. {cure}")
        if pickled and not (self.allow_pickle and _environment_allows_pickle()):
            raise UntrustedCodeError(
                f"This model's class definition is a pickle, and {PICKLE_VARIABLE} or the trust policy forbids to "
                f"load pickles. {cure}"
            )


def _environment_allows_pickle() -> bool:
    return os.environ.get(PICKLE_VARIABLE, "true").strip().lower() not in ("false", "0")


class VerifiedModel:
    """An artifact whose files were all checked against its manifest. Only ``verify`` makes one."""

    def __init__(
        self,
        token: object,
        root: Path,
        manifest: Manifest,
        manifest_sha256: str,
        policy: TrustPolicy,
        files: Mapping[str, _CheckedFile],
    ) -> None:
        """Not for callers: use ``verify``."""
        if token is not _VERIFIED:
            raise TypeError("a VerifiedModel comes from mlflow_keras_subclass.trust.verify() only")
        self.root = root
        self.manifest = manifest
        self.manifest_sha256 = manifest_sha256
        self.policy = policy
        self._files = files

    def names(self) -> tuple[str, ...]:
        """Paths of the files below ``keras_subclass/``, sorted."""
        prefix = f"{DATA_DIR}/"
        return tuple(sorted(path.removeprefix(prefix) for path in self._files if path.startswith(prefix)))

    def read_bytes(self, name: str) -> bytes:
        """The checked bytes of one file below ``keras_subclass/``."""
        checked = self._checked(name)
        if checked.data is None:
            raise FormatError(f"{name} has {checked.entry.size_bytes} bytes; expected at most {_KEPT_BYTES}.")
        return checked.data

    def read_json(self, name: str) -> Any:
        """The checked content of one JSON file below ``keras_subclass/``."""
        return parse_json(self.read_bytes(name), name)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        """The file that was hashed, open for reading, and its size in bytes."""
        checked = self._checked(name)
        with os.fdopen(os.dup(checked.descriptor.number), "rb") as file:
            # The position is shared with the descriptor, which stands at the end after hashing.
            file.seek(0)
            yield file, checked.entry.size_bytes

    def _checked(self, name: str) -> _CheckedFile:
        path = f"{DATA_DIR}/{name}"
        if path not in self._files:
            raise FormatError(f"{path} is not in {MANIFEST_FILE}; a model of this format has it. Log the model again.")
        return self._files[path]


class _Descriptor:
    """An open file descriptor that closes when nothing refers to it any more."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class _CheckedFile:
    entry: FileEntry
    descriptor: _Descriptor
    data: bytes | None


def verify(root: Path, policy: TrustPolicy) -> VerifiedModel:
    """Check every file of ours below ``root`` (a model directory) against its manifest.

    Raises:
        IntegrityError: A file is missing, unlisted, no regular file or changed, or the manifest is not the one that
            the policy names.
        FormatError: The manifest does not have the promised form.
    """
    data = _read_manifest(root)
    digest = hashlib.sha256(data).hexdigest()
    if policy.manifest_sha256 is not None and digest != policy.manifest_sha256:
        raise IntegrityError(
            f"{root / DATA_DIR / MANIFEST_FILE}: expected the manifest with sha256 {policy.manifest_sha256}, got "
            f"{digest}. This is not the model that was logged: download it again."
        )
    manifest = parse_manifest(data)
    _refuse_unlisted(root, manifest)
    files = {entry.path: _check_file(root, entry) for entry in manifest.files}
    return VerifiedModel(_VERIFIED, root, manifest, digest, policy, files)


def _read_manifest(root: Path) -> bytes:
    path = f"{DATA_DIR}/{MANIFEST_FILE}"
    if not (root / path).exists():
        raise IntegrityError(
            f"{root / path} is missing: the save or the download never finished, or this is no model of the "
            "keras_subclass flavor. Log or download the model again."
        )
    descriptor = _open_regular(root, path)
    size = os.fstat(descriptor.number).st_size
    if size > MAX_JSON_BYTES:
        raise FormatError(f"{path} has {size} bytes; expected at most {MAX_JSON_BYTES}.")
    with os.fdopen(os.dup(descriptor.number), "rb") as file:
        return file.read(MAX_JSON_BYTES + 1)


def _refuse_unlisted(root: Path, manifest: Manifest) -> None:
    listed = {entry.path for entry in manifest.files} | {f"{DATA_DIR}/{MANIFEST_FILE}"}
    for folder, folders, names in os.walk(root / DATA_DIR, followlinks=False):
        for name in [*names, *(item for item in folders if (Path(folder) / item).is_symlink())]:
            path = (Path(folder) / name).relative_to(root).as_posix()
            if path not in listed:
                raise IntegrityError(
                    f"{path} is not in {MANIFEST_FILE}: it was added after the model was logged. Remove it, or "
                    "download the model again."
                )


def _open_regular(root: Path, path: str) -> _Descriptor:
    """A descriptor of the regular file ``path``; links anywhere below ``root`` and special files are refused."""
    target = root
    for part in path.split("/"):
        target = target / part
        try:
            mode = target.lstat().st_mode
        except OSError:
            raise IntegrityError(f"{path} is missing. Log or download the model again.") from None
        if stat.S_ISLNK(mode):
            raise IntegrityError(f"{path}: {target.relative_to(root)} is a symbolic link; expected a regular file.")
    if not stat.S_ISREG(mode):
        raise IntegrityError(f"{path} is no regular file.")
    # O_NONBLOCK: a FIFO put there in the meantime must not block.
    descriptor = _Descriptor(os.open(target, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)))
    if not stat.S_ISREG(os.fstat(descriptor.number).st_mode):
        raise IntegrityError(f"{path} is no regular file.")
    return descriptor


def _check_file(root: Path, entry: FileEntry) -> _CheckedFile:
    descriptor = _open_regular(root, entry.path)
    size = os.fstat(descriptor.number).st_size
    if size != entry.size_bytes:
        raise IntegrityError(f"changed: {entry.path} has {size} bytes; expected {entry.size_bytes}.")
    keep = entry.size_bytes <= _KEPT_BYTES and not entry.path.endswith(".safetensors")
    keep = keep and not entry.path.startswith(f"{CODE_DIR}/")
    digest, kept = hashlib.sha256(), bytearray()
    with os.fdopen(os.dup(descriptor.number), "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            if keep:
                kept += chunk
    if digest.hexdigest() != entry.sha256:
        raise IntegrityError(
            f"changed: {entry.path} has sha256 {digest.hexdigest()}; expected {entry.sha256}. Download the model "
            "again, or log it again if it was edited."
        )
    return _CheckedFile(entry=entry, descriptor=descriptor, data=bytes(kept) if keep else None)
