"""What may be loaded: digests, trust policy, and the only way to a ``VerifiedModel``.

Nothing of the artifact is executed or unpickled here. The bytes that were checked are the bytes that are used: small
files are read once and kept, and large ones are read from the file descriptor that was hashed, each array checked
again against its own digest. Imports errors, files, manifest and signing; neither Keras nor anything of the artifact.

Trust comes from the caller or the server's environment, never from the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mlflow_keras_subclass.errors import FormatError, IntegrityError, KerasSubclassError, UntrustedCodeError
from mlflow_keras_subclass.files import FileEntry
from mlflow_keras_subclass.manifest import (
    CODE_DIR,
    DATA_DIR,
    MANIFEST_FILE,
    MAX_JSON_BYTES,
    SIGNATURE_FILE,
    Manifest,
    parse_json,
    parse_manifest,
)
from mlflow_keras_subclass.signing import check_signature, make_signature

__all__ = [
    "LEVELS",
    "MANIFEST_VARIABLE",
    "PICKLE_VARIABLE",
    "PUBLIC_KEY_VARIABLE",
    "TRUST_VARIABLE",
    "TrustPolicy",
    "VerifiedModel",
    "sign",
    "verify",
]

LEVELS = ("code", "known", "never")
TRUST_VARIABLE = "MLFLOW_KERAS_SUBCLASS_TRUST"
MANIFEST_VARIABLE = "MLFLOW_KERAS_SUBCLASS_MANIFEST_SHA256"
PUBLIC_KEY_VARIABLE = "MLFLOW_KERAS_SUBCLASS_PUBLIC_KEY"

# MLflow's own switch (3.17; absent before, so it is read from the environment and not from mlflow).
PICKLE_VARIABLE = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
_CHUNK_BYTES = 2**20
_KEPT_BYTES = 64 * 2**20
_SIGNATURE_BYTES = 2**20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CACHES = "__pycache__"
_VERIFIED = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPolicy:
    """What the caller demands of an artifact, and allows it to do.

    Attributes:
        level: ``code``: the stored class definition may run, as with MLflow's own flavors. ``known``: it may run if
            the model has the manifest digest or the signature that is named below. ``never``: the classes come from
            ``custom_objects``, and only JSON and arrays are read from the model.
        allow_pickle: Pickles may be loaded. ``MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false`` forbids it in any case.
        manifest_sha256: The one manifest digest that is accepted; any if ``None``.
        public_key: A PEM file; only models that the owner of this key signed are accepted. All if ``None``.
    """

    level: str = "code"
    allow_pickle: bool = True
    manifest_sha256: str | None = None
    public_key: str | Path | None = None

    def __post_init__(self) -> None:
        """Refuse what would silently allow more, or nothing at all."""
        if self.level not in LEVELS:
            raise KerasSubclassError(f"trust level: expected one of {', '.join(LEVELS)}, got {self.level!r}.")
        digest = self.manifest_sha256
        if digest is not None and not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
            raise KerasSubclassError(f"manifest_sha256: expected 64 hexadecimal digits, got {digest!r}.")
        if self.level == "known" and digest is None and self.public_key is None:
            raise KerasSubclassError(
                "Trust level 'known' needs something to know the model by: manifest_sha256 or public_key "
                f"({MANIFEST_VARIABLE} or {PUBLIC_KEY_VARIABLE} in the environment)."
            )

    @classmethod
    def from_environment(cls) -> TrustPolicy:
        """The policy of a server: everything allowed but what the environment forbids.

        It reads ``MLFLOW_KERAS_SUBCLASS_TRUST`` (``code``, ``known`` or ``never``),
        ``MLFLOW_KERAS_SUBCLASS_MANIFEST_SHA256`` and ``MLFLOW_KERAS_SUBCLASS_PUBLIC_KEY`` (a path).
        """
        return cls(
            level=_variable(TRUST_VARIABLE, "code").lower(),
            manifest_sha256=_variable(MANIFEST_VARIABLE, "").lower() or None,
            public_key=_variable(PUBLIC_KEY_VARIABLE, "") or None,
        )

    def check_code(self, serialization_format: str, *, pickled: bool) -> None:
        """Raise ``UntrustedCodeError`` unless definitions stored in this form may be loaded."""
        cure = (
            "Load with your own classes, and nothing stored is run: "
            'mlflow_keras_subclass.load_model(uri, custom_objects={"<class name>": <class>}).'
        )
        if self.level == "never":
            # The import route too: a name in a file must not decide what is imported.
            raise UntrustedCodeError(
                "The trust policy forbids to run the class definition of this model or to import what it names "
                f"(level 'never', stored as {serialization_format}). {cure}"
            )
        if pickled and not (self.allow_pickle and _environment_allows_pickle()):
            raise UntrustedCodeError(
                f"This model's class definition is a pickle, and {PICKLE_VARIABLE} or the trust policy forbids to "
                f"load pickles. {cure}"
            )


def _variable(name: str, default: str) -> str:
    return os.environ.get(name, "").strip() or default


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

    def copy(self, name: str, target: Path) -> None:
        """Write the checked bytes of one file to ``target``, for a library that reads by path.

        Raises:
            IntegrityError: The file was changed in place since it was checked.
        """
        checked, digest = self._checked(name), hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.open(name) as (source, _), target.open("xb") as copied:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                copied.write(chunk)
        if digest.hexdigest() != checked.entry.sha256:
            target.unlink()
            raise IntegrityError(f"changed: {checked.entry.path}, while it was read. Download the model again.")

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


def verify(root: Path, policy: TrustPolicy, *, recorded_sha256: str | None = None) -> VerifiedModel:
    """Check every file of ours below ``root`` (a model directory) against its manifest.

    Args:
        root: The model directory.
        policy: What the caller demands.
        recorded_sha256: The manifest's digest as MLmodel records it. It finds accidents; it is the model's own word.

    Raises:
        IntegrityError: A file is missing, unlisted, no regular file or changed, or the manifest is not the one that
            the policy, its key or MLmodel names.
        FormatError: The manifest does not have the promised form.
    """
    data = _read_bounded(root, f"{DATA_DIR}/{MANIFEST_FILE}", MAX_JSON_BYTES, _UNFINISHED)
    digest = hashlib.sha256(data).hexdigest()
    for expected, named_by in ((policy.manifest_sha256, "the trust policy"), (recorded_sha256, "MLmodel")):
        if expected is not None and digest != expected:
            raise IntegrityError(
                f"{root / DATA_DIR / MANIFEST_FILE}: expected the manifest with sha256 {expected}, as {named_by} names "
                f"it, got {digest}. This is not the model that was logged: check the URI, or download it again."
            )
    if policy.public_key is not None:
        signature = _read_bounded(root, SIGNATURE_FILE, _SIGNATURE_BYTES, _UNSIGNED)
        check_signature(data, signature, public_key=Path(policy.public_key))
    manifest = parse_manifest(data)
    _refuse_unlisted(root, manifest)
    files = {entry.path: _check_file(root, entry) for entry in manifest.files}
    return VerifiedModel(_VERIFIED, root, manifest, digest, policy, files)


def sign(path: str | Path, *, private_key: str | Path, password: str | None = None) -> Path:
    """Sign the model directory ``path``, once it was checked; returns the file that holds the signature.

    The signature covers our files and the code beside them, not ``MLmodel``. Needs the extra ``[signing]``.

    Args:
        path: A directory that ``save_model`` wrote or that was downloaded.
        private_key: A PEM file with an elliptic-curve key (P-256, P-384 or P-521).
        password: That of the key, if it has one.

    Raises:
        IntegrityError: A file was changed since the model was saved.
        KerasSubclassError: The key cannot be used, or the extra is not installed.
    """
    root = Path(path)
    verify(root, TrustPolicy())
    data = _read_bounded(root, f"{DATA_DIR}/{MANIFEST_FILE}", MAX_JSON_BYTES, _UNFINISHED)
    signature = make_signature(data, private_key=Path(private_key), password=password)
    target = root / SIGNATURE_FILE
    temporary = target.with_suffix(".tmp")
    temporary.write_bytes(signature)
    temporary.replace(target)
    return target


_UNFINISHED = (
    "the save or the download never finished, or this is no model of the keras_subclass flavor. Log or download the "
    "model again."
)
_UNSIGNED = (
    "the trust policy demands a signature, and this model has none. Sign it with mlflow_keras_subclass.sign(), or load "
    "it without a key."
)


def _read_bounded(root: Path, path: str, limit_bytes: int, if_missing: str) -> bytes:
    if not os.path.lexists(root / path):
        raise IntegrityError(f"{root / path} is missing: {if_missing}")
    descriptor = _open_regular(root, path)
    size = os.fstat(descriptor.number).st_size
    if size > limit_bytes:
        raise FormatError(f"{path} has {size} bytes; expected at most {limit_bytes}.")
    with os.fdopen(os.dup(descriptor.number), "rb") as file:
        return file.read(limit_bytes + 1)


def _refuse_unlisted(root: Path, manifest: Manifest) -> None:
    listed = {entry.path for entry in manifest.files} | {f"{DATA_DIR}/{MANIFEST_FILE}"}
    for path in [*_present(root, DATA_DIR), *_present(root, CODE_DIR)]:
        if path not in listed:
            raise IntegrityError(
                f"{path} is not in {MANIFEST_FILE}: it was added after the model was logged. Remove it, or download "
                "the model again."
            )


def _present(root: Path, top: str) -> Iterator[str]:
    """Files and links below ``root / top``, but for the caches that Python writes beside code that it imports."""
    if (root / top).is_symlink():
        yield top
    for folder, folders, names in os.walk(root / top, followlinks=False):
        if top == CODE_DIR and _CACHES in folders:
            folders.remove(_CACHES)
        for name in [*names, *(item for item in folders if (Path(folder) / item).is_symlink())]:
            yield (Path(folder) / name).relative_to(root).as_posix()


def _open_regular(root: Path, path: str) -> _Descriptor:
    """A descriptor of the regular file ``path``; links anywhere below ``root`` and special files are refused."""
    target = root
    for part in path.split("/"):
        target = target / part
        try:
            seen = target.lstat()
        except OSError:
            raise IntegrityError(f"{path} is missing. Log or download the model again.") from None
        if stat.S_ISLNK(seen.st_mode):
            raise IntegrityError(f"{path}: {target.relative_to(root)} is a symbolic link; expected a regular file.")
    # Before it is opened, since to open a device can do something.
    if not stat.S_ISREG(seen.st_mode):
        raise IntegrityError(f"{path} is no regular file.")
    # O_NONBLOCK: a FIFO put there in the meantime must not block.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = _Descriptor(os.open(target, flags))
    except OSError as error:
        raise IntegrityError(f"{path} cannot be opened: {error.strerror}.") from error
    # The checks above were of a name: it or a folder above it may have become a link to something else since.
    if not os.path.samestat(seen, os.fstat(descriptor.number)):
        raise IntegrityError(f"{path} was replaced while it was opened. Download the model again.")
    return descriptor


def _check_file(root: Path, entry: FileEntry) -> _CheckedFile:
    descriptor = _open_regular(root, entry.path)
    size = os.fstat(descriptor.number).st_size
    if size != entry.size_bytes:
        raise IntegrityError(f"changed: {entry.path} has {size} bytes; expected {entry.size_bytes}.")
    digest, kept = hashlib.sha256(), bytearray() if _is_kept(entry) else None
    with os.fdopen(os.dup(descriptor.number), "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            if kept is not None:
                kept += chunk
    if digest.hexdigest() != entry.sha256:
        raise IntegrityError(
            f"changed: {entry.path} has sha256 {digest.hexdigest()}; expected {entry.sha256}. Download the model "
            "again, or log it again if it was edited."
        )
    return _CheckedFile(entry=entry, descriptor=descriptor, data=None if kept is None else bytes(kept))


def _is_kept(entry: FileEntry) -> bool:
    """Whether the bytes stay in memory; arrays and code are read from the descriptor or not at all."""
    of_ours = not entry.path.startswith(f"{CODE_DIR}/") and not entry.path.endswith(".safetensors")
    return of_ours and entry.size_bytes <= _KEPT_BYTES
