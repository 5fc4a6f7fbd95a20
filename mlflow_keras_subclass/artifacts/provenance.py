"""The git commit that made the class, the patch of what was not committed, and each source file compared with it.

Of the repository that holds the class's source file, else of the working directory's. Logging never fails because of
git: what could not be learned is said in ``git.json``. The repository cannot run code in this process's name: hooks,
fsmonitor, external diff, textconv and filters are off. Imports errors, files and manifest; must not import Keras.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from mlflow_keras_subclass.errors import FormatError
from mlflow_keras_subclass.files import ArtifactReader, ArtifactWriter
from mlflow_keras_subclass.manifest import GIT_FILE, PATCH_FILE

__all__ = ["GitRecord", "SourceClaim", "read", "tags", "write"]

_SECONDS = 10.0
_PATCH_BYTES = 2**20
_SCP_URL = re.compile(r"(?P<user>.*@)?(?P<host>[^/@:]+):(?P<path>(?!/{2}).+)", re.DOTALL)
# Of the caller's environment, what would point git at another repository or make it talk to a person.
_NEUTRAL = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
_REDIRECTING = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_EXTERNAL_DIFF")
_SAFE_CONFIG = ("core.fsmonitor=false", "core.hooksPath=/dev/null", "core.quotePath=false", "diff.noprefix=false")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceClaim:
    """One source file compared with the commit: ``identical``, ``modified``, ``untracked`` or ``outside-repository``.

    ``identical-after-filters`` is a file that differs from the commit in its line ends only. ``path`` is relative to
    the repository; ``blob`` is the object ID of the file as it is now.
    """

    path: str
    blob: str | None
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GitRecord:
    """What ``git.json`` holds.

    Attributes:
        status: ``ok``, ``off``, or what could not be learned: ``no-repository``, ``no-commit``, ``git-missing``,
            ``dubious-ownership``, ``timeout``, ``error: …``.
        commit: The commit checked out.
        branch: Its branch; ``None`` if HEAD is detached.
        remote_url: Where the repository comes from, without user, password, query and fragment.
        dirty: Whether a tracked file is changed, or a source file of the class is not tracked.
        repository_of: ``class`` or ``working-directory``.
        patch_file: Name of the patch, if one was written.
        patch_omitted: Why the patch of a dirty repository was left out.
        sources: A claim for each source file of the class.
    """

    status: str
    commit: str | None = None
    branch: str | None = None
    remote_url: str | None = None
    dirty: bool | None = None
    repository_of: str | None = None
    patch_file: str | None = None
    patch_omitted: str | None = None
    sources: tuple[SourceClaim, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of ``git.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> GitRecord:
        """The inverse of ``to_json``; raises ``FormatError``."""
        names = {field.name for field in fields(cls)}
        if not isinstance(value, Mapping) or value.keys() != names:
            raise FormatError(f"{GIT_FILE}: expected the keys {', '.join(sorted(names))}, got {value!r:.200}.")
        try:
            sources = tuple(SourceClaim(**item) for item in value["sources"])
        except TypeError as error:
            raise FormatError(f"{GIT_FILE}: sources: {error}.") from None
        return cls(**{**value, "sources": sources})


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


class _GitFailed(Exception):  # noqa: N818 - an answer, not an error
    """Git could not answer; ``args[0]`` is the status to record."""


def _learn(source_files: Sequence[Path], fallback: Path, provenance: str) -> tuple[GitRecord, bytes]:
    deadline = time.monotonic() + _SECONDS
    record = GitRecord(status="no-repository")
    try:
        repository, found_by = _find(source_files, fallback, deadline)
        if repository is None:
            return record, b""
        record = replace(record, status="ok", repository_of=found_by, **repository.head())
        claims = repository.claims(source_files, committed=record.commit is not None)
        record = replace(record, sources=claims)
        if record.commit is None:
            return replace(record, status="no-commit", dirty=True), b""
        changed = repository.changed()
        untracked = any(claim.status == "untracked" for claim in claims)
        record = replace(record, dirty=changed or untracked)
        if not changed or provenance != "full":
            return record, b""
        patch = repository.patch()
    except _GitFailed as error:
        return replace(record, status=str(error)), b""
    if len(patch) > _PATCH_BYTES:
        return replace(record, patch_omitted=f"the patch is larger than {_PATCH_BYTES} bytes"), b""
    return (record, patch) if patch else (replace(record, patch_omitted="only modes or line ends differ"), b"")


def _find(source_files: Sequence[Path], fallback: Path, deadline: float) -> tuple[_Repository | None, str | None]:
    folders = dict.fromkeys(path.parent for path in source_files if path.is_file())
    for folder, name in [*((folder, "class") for folder in folders), (fallback, "working-directory")]:
        try:
            top = _git(folder, deadline, "rev-parse", "--show-toplevel").decode("utf-8", "surrogateescape").rstrip("\n")
        except _GitFailed as error:
            if str(error) == "no-repository":
                continue
            raise
        return _Repository(Path(top), deadline), name
    return None, None


class _Repository:
    """Questions to one repository, all within one deadline."""

    def __init__(self, top: Path, deadline: float) -> None:
        self._top = top
        self._deadline = deadline

    def head(self) -> dict[str, Any]:
        return {
            "commit": self._optional("rev-parse", "--verify", "--quiet", "HEAD^{commit}"),
            "branch": self._optional("symbolic-ref", "--quiet", "--short", "HEAD"),
            "remote_url": self._remote_url(),
        }

    def changed(self) -> bool:
        return bool(self._run("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty"))

    def patch(self) -> bytes:
        return self._run("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--full-index")

    def claims(self, source_files: Sequence[Path], *, committed: bool) -> tuple[SourceClaim, ...]:
        return tuple(self._claim(path, committed) for path in source_files)

    def _claim(self, path: Path, committed: bool) -> SourceClaim:
        try:
            relative = path.resolve().relative_to(self._top.resolve()).as_posix()
        except ValueError:
            return SourceClaim(path=path.name, blob=None, status="outside-repository")
        data = path.read_bytes()
        listed = self._run("ls-tree", "-z", "HEAD", "--", relative).split(b"\0")[0] if committed else b""
        if not listed:
            return SourceClaim(path=relative, blob=_blob_id(data, "sha1"), status="untracked")
        recorded = listed.split(b"\t")[0].split()[-1].decode("ascii")
        kind = "sha256" if len(recorded) == 64 else "sha1"
        blob = _blob_id(data, kind)
        if blob == recorded:
            return SourceClaim(path=relative, blob=blob, status="identical")
        # What core.autocrlf changes on checkout, without asking git to run the repository's filters.
        same_text = _blob_id(data.replace(b"\r\n", b"\n"), kind) == recorded
        return SourceClaim(path=relative, blob=blob, status="identical-after-filters" if same_text else "modified")

    def _remote_url(self) -> str | None:
        branch = self._optional("symbolic-ref", "--quiet", "--short", "HEAD")
        upstream = self._optional("config", "--get", f"branch.{branch}.remote") if branch else None
        names = [upstream, "origin", *(self._optional("remote") or "").splitlines()]
        for name in dict.fromkeys(name for name in names if name and name != "."):
            # Not `remote get-url`, which expands insteadOf: that may hold a token.
            url = self._optional("config", "--get", f"remote.{name}.url")
            if url:
                return _without_credentials(url)
        return None

    def _optional(self, *arguments: str) -> str | None:
        try:
            return self._run(*arguments).decode("utf-8", "replace").strip() or None
        except _GitFailed as error:
            if str(error) == "timeout":
                raise
            return None

    def _run(self, *arguments: str) -> bytes:
        return _git(self._top, self._deadline, *self._without_filters, *arguments)

    @functools.cached_property
    def _without_filters(self) -> list[str]:
        """Options that switch off every clean, smudge and process filter that the configuration names."""
        pattern = r"^filter\..*\.(clean|smudge|process|required)$"
        try:
            names = _git(self._top, self._deadline, "config", "--name-only", "--get-regexp", pattern)
        except _GitFailed as error:
            if str(error) == "timeout":
                raise
            return []
        options = []
        for name in names.decode("utf-8", "replace").splitlines():
            value = "false" if name.endswith(".required") else ""
            options += ["-c", f"{name}={value}"]
        return options


def _git(folder: Path, deadline: float, *arguments: str) -> bytes:
    """The output of one git command.

    Raises:
        _GitFailed: With the status to record.
    """
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise _GitFailed("timeout")
    options = [item for setting in _SAFE_CONFIG for item in ("-c", setting)]
    with _neutral_environment():
        git = importlib.import_module("git")
        try:
            status, output, error = git.Git(str(folder)).execute(
                ["git", "--no-pager", *options, *arguments],
                with_extended_output=True,
                with_exceptions=False,
                stdout_as_string=False,
                strip_newline_in_stdout=False,
                kill_after_timeout=remaining,
                env=_NEUTRAL,
            )
        except (git.exc.GitCommandNotFound, FileNotFoundError):
            raise _GitFailed("git-missing") from None
    if status != 0:
        raise _GitFailed(_status_of(str(error), timed_out=time.monotonic() >= deadline))
    return bytes(output)


def _status_of(error: str, *, timed_out: bool) -> str:
    if timed_out or "Timeout" in error:
        return "timeout"
    if "dubious ownership" in error:
        return "dubious-ownership"
    if "not a git repository" in error or "must be run in a work tree" in error:
        return "no-repository"
    return f"error: {error.strip().splitlines()[-1] if error.strip() else 'unknown'}"[:200]


@contextmanager
def _neutral_environment() -> Iterator[None]:
    """The environment as GitPython needs it: no complaint where git is missing, no redirected repository."""
    names = ("GIT_PYTHON_REFRESH", *_REDIRECTING)
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ["GIT_PYTHON_REFRESH"] = "quiet"
    try:
        yield
    finally:
        del os.environ["GIT_PYTHON_REFRESH"]
        os.environ.update(before)


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
