"""The git commit that made the class, the patch of what was not committed, and each source file compared with it.

Of the repository that holds the class's source file, else of the working directory's; files from other repositories
are compared with theirs. Logging never fails because of git: what could not be learned is said in ``git.json``.
Imports repository, credentials, patches, errors, files and manifest; must not import Keras.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from mlflow_keras_subclass.credentials import lines_with_secrets
from mlflow_keras_subclass.errors import FormatError
from mlflow_keras_subclass.files import ArtifactReader, ArtifactWriter
from mlflow_keras_subclass.manifest import GIT_FILE, PATCH_FILE
from mlflow_keras_subclass.patches import Omission, cleaned
from mlflow_keras_subclass.repository import GitFailed, GitOutputTooLarge, Repository, find

__all__ = ["ClaimCheck", "GitRecord", "OtherRepository", "SourceClaim", "blob_ids", "check", "read", "tags", "write"]

_SECONDS = 10.0
_PATCH_BYTES = 2**20
_POINTER_BYTES = 1024
_SCP_URL = re.compile(r"(?P<user>.*@)?(?P<host>[^/@:]+):(?P<path>(?!/{2}).+)", re.DOTALL)
_POINTER = re.compile(rb"version https://git-lfs[^\n]*\noid sha256:(?P<digest>[0-9a-f]{64})\n")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceClaim:
    """One source file compared with the commit: ``identical``, ``modified``, ``untracked`` or ``outside-repository``.

    ``identical-after-filters`` is a file that differs from the commit in its line ends only, or that git LFS keeps
    elsewhere under the file's own digest. ``path`` is relative to the repository; ``repository`` is 0 for the one that
    the record describes and the place in ``others`` from 1; ``blob`` is the object ID of the file as it is now.
    """

    path: str
    blob: str | None
    status: str
    repository: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherRepository:
    """A second repository that holds source files of the class."""

    commit: str | None
    remote_url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimCheck:
    """A claim compared with a clone: ``confirmed``, ``refuted`` or ``not-checkable``, and what was found there."""

    path: str
    status: str
    result: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GitRecord:
    """What ``git.json`` holds.

    Attributes:
        status: ``ok``, ``off``, or what could not be learned: ``no-repository``, ``no-commit``, ``git-missing``,
            ``dubious-ownership``, ``timeout``, ``error: …``.
        commit: The commit checked out.
        branch: Its branch; ``None`` if HEAD is detached.
        tag: A tag on that very commit.
        remote_url: Where the repository comes from, without user, password, query and fragment.
        dirty: Whether a tracked file is changed, or a source file of the class is not tracked.
        repository_of: ``class`` or ``working-directory``.
        patch_file: Name of the patch, if one was written.
        patch_omitted: Why the patch of a dirty repository was left out.
        omissions: Hunks and files that were left out of the patch.
        sources: A claim for each source file of the class.
        others: Further repositories that hold source files of the class.
        secrets: Lines of stored source files that seem to hold a secret. They are stored all the same: a class comes
            back from the bytes it was written in.
    """

    status: str
    commit: str | None = None
    branch: str | None = None
    tag: str | None = None
    remote_url: str | None = None
    dirty: bool | None = None
    repository_of: str | None = None
    patch_file: str | None = None
    patch_omitted: str | None = None
    omissions: tuple[Omission, ...] = ()
    sources: tuple[SourceClaim, ...] = ()
    others: tuple[OtherRepository, ...] = ()
    secrets: tuple[Omission, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of ``git.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> GitRecord:
        """The inverse of ``to_json``; raises ``FormatError``."""
        names = {field.name for field in fields(cls)}
        if not isinstance(value, Mapping) or value.keys() != names:
            raise FormatError(f"{GIT_FILE}: expected the keys {', '.join(sorted(names))}, got {value!r:.200}.")
        kinds = {"sources": SourceClaim, "others": OtherRepository, "omissions": Omission, "secrets": Omission}
        try:
            lists = {key: tuple(kind(**item) for item in value[key]) for key, kind in kinds.items()}
        except TypeError as error:
            raise FormatError(f"{GIT_FILE}: {error}.") from None
        return cls(**{**value, **lists})


def write(
    writer: ArtifactWriter, source_files: Sequence[Path], *, fallback: Path, provenance: str = "full"
) -> GitRecord:
    """Write ``git.json``, and ``uncommitted.diff.txt`` where there is something to say in it.

    Args:
        writer: Of the artifact.
        source_files: The user's files that hold the class; the first that is in a repository decides which.
        fallback: A folder whose repository is taken where no source file is in one.
        provenance: ``full``, ``commit`` (no patch) or ``off`` (git is not asked).
    """
    record, patch = (
        (GitRecord(status="off"), b"") if provenance == "off" else _learn(source_files, fallback, provenance)
    )
    record = replace(record, secrets=_secrets(source_files))
    if patch:
        record = replace(record, patch_file=PATCH_FILE)
        writer.write_bytes(PATCH_FILE, patch)
    writer.write_json(GIT_FILE, record.to_json())
    return record


def read(reader: ArtifactReader) -> GitRecord:
    """The record in ``git.json``."""
    return GitRecord.from_json(reader.read_json(GIT_FILE))


def tags(record: GitRecord) -> dict[str, str]:
    """MLflow's own tags for what is known, by which its UI shows a commit and searches find it."""
    known = {
        "mlflow.source.git.commit": record.commit,
        "mlflow.source.git.branch": record.branch,
        "mlflow.source.git.repoURL": record.remote_url,
        "mlflow.source.git.dirty": None if record.dirty is None else str(record.dirty).lower(),
    }
    return {key: value for key, value in known.items() if value is not None}


def check(record: GitRecord, clone: Path, *, timeout_s: float = 60.0) -> tuple[ClaimCheck, ...]:
    """Compare the claims of ``record`` with ``clone``, any clone of the repository, bare or not.

    Nothing is taken from the working tree of ``clone``, only from the recorded commit.
    """
    repository = Repository(clone, time.monotonic() + timeout_s)
    if record.commit is None or not repository.has_commit(record.commit):
        found = "no commit was recorded" if record.commit is None else f"commit {record.commit} is not in {clone}"
        return tuple(_result(claim, "not-checkable", found) for claim in record.sources)
    return tuple(_check(repository, record.commit, claim) for claim in record.sources)


def _check(repository: Repository, commit: str, claim: SourceClaim) -> ClaimCheck:
    if claim.repository != 0:
        where = "outside any repository" if claim.repository is None else "in another repository"
        return _result(claim, "not-checkable", where)
    committed = repository.blob(commit, claim.path)
    holds = {
        "identical": committed == claim.blob,
        "untracked": committed is None,
        "modified": committed not in (None, claim.blob),
        "identical-after-filters": committed not in (None, claim.blob),
    }
    return _result(claim, "confirmed" if holds.get(claim.status) else "refuted", committed or "not in the commit")


def _result(claim: SourceClaim, result: str, found: str) -> ClaimCheck:
    return ClaimCheck(path=claim.path, status=claim.status, result=result, found=found)


def blob_ids(data: bytes) -> frozenset[str]:
    """The object IDs that git gives to a file with this content."""
    return frozenset(_blob_id(data, kind) for kind in ("sha1", "sha256"))


def _secrets(source_files: Sequence[Path]) -> tuple[Omission, ...]:
    found = []
    for path in dict.fromkeys(source_files):
        if not path.is_file():
            continue
        lines = path.read_bytes().decode("utf-8", "replace").splitlines()
        for line, kind in lines_with_secrets(lines, path.name).items():
            _logger.warning(
                "%s, line %d, seems to hold a secret (%s), and the file is stored with the model. Read the secret from "
                "the environment instead, or mark the line with '# pragma: allowlist secret' if it is none.",
                path.name,
                line,
                kind,
            )
            found.append(Omission(path=path.name, first_line=line, last_line=line, reason=f"secret: {kind}"))
    return tuple(sorted(found, key=lambda item: (item.path, item.first_line)))


def _learn(source_files: Sequence[Path], fallback: Path, provenance: str) -> tuple[GitRecord, bytes]:
    deadline = time.monotonic() + _SECONDS
    record = GitRecord(status="no-repository")
    try:
        found = _Found(deadline)
        main, found_by = found.main(source_files, fallback)
        if main is None:
            return record, b""
        record = replace(record, status="ok", repository_of=found_by, **_head(main))
        record = replace(record, sources=found.claims(source_files), others=found.others())
        if record.commit is None:
            return replace(record, status="no-commit", dirty=True), b""
        changed = bool(main.run("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty"))
        untracked = any(claim.status == "untracked" for claim in record.sources)
        record = replace(record, dirty=changed or untracked)
        return _with_patch(record, main, deadline) if changed and provenance == "full" else (record, b"")
    except GitFailed as error:
        return replace(record, status=str(error)), b""


def _with_patch(record: GitRecord, main: Repository, deadline: float) -> tuple[GitRecord, bytes]:
    options = ("--no-color", "--no-ext-diff", "--no-textconv", "--full-index", "--ignore-submodules=dirty")
    try:
        patch = main.run("diff", "HEAD", *options, limit_bytes=_PATCH_BYTES)
    except GitOutputTooLarge:
        return replace(record, patch_omitted=f"the patch is larger than {_PATCH_BYTES} bytes"), b""
    if not patch:
        return replace(record, patch_omitted="only modes or line ends differ"), b""
    kept, omissions = cleaned(patch, deadline)
    reason = None if kept else "nothing of it could be kept"
    return replace(record, omissions=omissions, patch_omitted=reason), kept


def _head(repository: Repository) -> dict[str, Any]:
    return {
        "commit": repository.head,
        "branch": repository.optional("symbolic-ref", "--quiet", "--short", "HEAD"),
        "tag": repository.optional("describe", "--exact-match", "--tags", "HEAD"),
        "remote_url": _remote_url(repository),
    }


class _Found:
    """The repositories that hold source files; the first is the one that the record describes."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._repositories: list[Repository] = []
        self._by_folder: dict[Path, Repository | None] = {}

    def main(self, source_files: Sequence[Path], fallback: Path) -> tuple[Repository | None, str | None]:
        folders = dict.fromkeys(path.parent for path in source_files if path.is_file())
        for folder in folders:
            if self._at(folder) is not None:
                return self._repositories[0], "class"
        return self._at(fallback), "working-directory"

    def _at(self, folder: Path) -> Repository | None:
        if folder not in self._by_folder:
            found = find(folder, self._deadline)
            known = next((item for item in self._repositories if found and item.top == found.top), None)
            self._by_folder[folder] = known or found
            if found is not None and known is None:
                self._repositories.append(found)
        return self._by_folder[folder]

    def claims(self, source_files: Sequence[Path]) -> tuple[SourceClaim, ...]:
        return tuple(self._claim(path) for path in source_files)

    def _claim(self, path: Path) -> SourceClaim:
        repository = self._at(path.parent) if path.is_file() else None
        if repository is None:
            return SourceClaim(path=path.name, blob=None, status="outside-repository", repository=None)
        try:
            relative = path.resolve().relative_to(repository.top.resolve()).as_posix()
        except ValueError:
            # A link to a file elsewhere.
            return SourceClaim(path=path.name, blob=None, status="outside-repository", repository=None)
        blob, status = _compared(repository, relative, path.read_bytes())
        number = self._repositories.index(repository)
        return SourceClaim(path=relative, blob=blob, status=status, repository=number)

    def others(self) -> tuple[OtherRepository, ...]:
        return tuple(OtherRepository(commit=item.head, remote_url=_remote_url(item)) for item in self._repositories[1:])


def _compared(repository: Repository, path: str, data: bytes) -> tuple[str, str]:
    """The object ID of ``data`` and how it stands to the commit."""
    head = repository.head
    recorded = repository.blob(head, path) if head is not None else None
    kind = "sha256" if len(recorded or head or "") == 64 else "sha1"
    blob = _blob_id(data, kind)
    if recorded is None:
        return blob, "untracked"
    if blob == recorded:
        return blob, "identical"
    # What core.autocrlf changes on checkout, without asking git to run the repository's filters.
    if _blob_id(data.replace(b"\r\n", b"\n"), kind) == recorded:
        return blob, "identical-after-filters"
    pointer = _POINTER.match(repository.content(recorded, limit_bytes=_POINTER_BYTES) or b"")
    kept_by_lfs = pointer is not None and pointer["digest"].decode() == hashlib.sha256(data).hexdigest()
    return blob, "identical-after-filters" if kept_by_lfs else "modified"


def _remote_url(repository: Repository) -> str | None:
    branch = repository.optional("symbolic-ref", "--quiet", "--short", "HEAD")
    upstream = repository.optional("config", "--get", f"branch.{branch}.remote") if branch else None
    names = [upstream, "origin", *(repository.optional("remote") or "").splitlines()]
    for name in dict.fromkeys(name for name in names if name and name != "."):
        # Not `remote get-url`, which expands insteadOf: that may hold a token.
        url = repository.optional("config", "--get", f"remote.{name}.url")
        if url:
            return _without_credentials(url)
    return None


def _blob_id(data: bytes, kind: str) -> str:
    return hashlib.new(kind, b"blob %d\0" % len(data) + data).hexdigest()


def _without_credentials(url: str) -> str | None:
    """``url`` without user, password, query and fragment; ``None`` for a path on this machine."""
    if "://" in url:
        parts = urlsplit(url)
        if parts.scheme == "file" or not parts.hostname:
            return None
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", ""))
    match = _SCP_URL.fullmatch(url)
    if match is None or len(match["host"]) == 1:
        return None
    # The plain user `git` is part of how the host is addressed, not a secret.
    user = "git@" if match["user"] == "git@" else ""
    return f"{user}{match['host']}:{match['path'].split('?')[0].split('#')[0]}"
