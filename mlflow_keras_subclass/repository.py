"""Questions to git that end in time, stay small, and let no repository run code or reach the network.

Hooks, fsmonitor, external diff, textconv, filters, lazy fetches and prompts are off; the caller's environment points
git at no other repository. Imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["GitFailed", "GitOutputTooLarge", "Repository", "find", "git"]

_OUTPUT_BYTES = 64 * 2**20
_ERROR_BYTES = 64 * 2**10
# GIT_NO_LAZY_FETCH is git 2.44's word for what protocol.allow=never does in every version.
_NEUTRAL = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1", "LC_ALL": "C"}
_REDIRECTING = (
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_EXTERNAL_DIFF",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_WORK_TREE",
)
_SAFE_CONFIG = (
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.quotePath=false",
    "core.safecrlf=false",
    "diff.noprefix=false",
    "diff.mnemonicPrefix=false",
)
_NO_NETWORK = ("protocol.allow=never",)
# The environment belongs to the process: one thread changes and restores it at a time.
_ENVIRONMENT = threading.Lock()


class GitFailed(Exception):  # noqa: N818 - an answer, not an error
    """Git could not answer; ``args[0]`` is the status to record."""


class GitOutputTooLarge(GitFailed):
    """Git had more to say than was asked for."""


def git(
    folder: Path,
    deadline: float,
    *arguments: str,
    limit_bytes: int = _OUTPUT_BYTES,
    config: Sequence[str] = _NO_NETWORK,
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """The output of one git command, which is killed with all it started when ``time.monotonic()`` is ``deadline``.

    Raises:
        GitOutputTooLarge: There is more than ``limit_bytes``; no more than that was read.
        GitFailed: With the status to record.
    """
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise GitFailed("timeout")
    options = [item for setting in (*_SAFE_CONFIG, *config) for item in ("-c", setting)]
    started = _start(folder, ["git", "--no-pager", *options, *arguments], {**_NEUTRAL, **(environment or {})})
    process = started.proc  # GitPython ends the process when nothing refers to what it returned
    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.append(_drained(process.stderr)), daemon=True)
    timer = threading.Timer(remaining, _kill, (process,))
    timer.daemon = True
    reader.start()
    timer.start()
    try:
        output = process.stdout.read(limit_bytes + 1)
        if len(output) > limit_bytes:
            raise GitOutputTooLarge(f"error: more than {limit_bytes} bytes")
        status = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            _kill(process)
        reader.join(1)
        process.stdout.close()
    if status != 0:
        text = b"".join(errors).decode("utf-8", "replace")
        raise GitFailed(_status_of(text, timed_out=time.monotonic() >= deadline))
    return bytes(output)


def _start(folder: Path, command: list[str], environment: dict[str, str]) -> Any:
    with _ENVIRONMENT, _neutral_environment():
        gitpython = importlib.import_module("git")
        try:
            return gitpython.Git(str(folder)).execute(command, as_process=True, env=environment, start_new_session=True)
        except (gitpython.exc.GitCommandNotFound, FileNotFoundError, NotADirectoryError):
            raise GitFailed("git-missing" if folder.is_dir() else "no-repository") from None


def _drained(stream: Any) -> bytes:
    """The first of ``stream``, all of which is read, so that git never waits for somebody to read it."""
    first: bytes = stream.read(_ERROR_BYTES)
    while stream.read(_ERROR_BYTES):
        pass
    stream.close()
    return first


def _kill(process: Any) -> None:
    # The whole group: what git itself started would otherwise keep the pipe open.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _status_of(error: str, *, timed_out: bool) -> str:
    if timed_out:
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


def find(folder: Path, deadline: float) -> Repository | None:
    """The repository whose working tree holds ``folder``, if there is one.

    Raises:
        GitFailed: Git could not say.
    """
    try:
        top = git(folder, deadline, "rev-parse", "--show-toplevel").decode("utf-8", "surrogateescape").rstrip("\n")
    except GitFailed as error:
        if str(error) == "no-repository":
            return None
        raise
    return Repository(Path(top), deadline)


class Repository:
    """Questions to one repository, all within one deadline."""

    def __init__(self, top: Path, deadline: float) -> None:
        """Ask about the working tree at ``top``; a bare repository can be asked about its commits."""
        self.top = top
        self._deadline = deadline

    def run(self, *arguments: str, **options: Any) -> bytes:
        """The output of a git command with the filters of the configuration off; ``options`` as of ``git``."""
        return git(self.top, self._deadline, *self._without_filters, *arguments, **options)

    def optional(self, *arguments: str) -> str | None:
        """The text that a command prints, ``None`` if it fails or prints nothing."""
        try:
            return self.run(*arguments).decode("utf-8", "replace").strip() or None
        except GitFailed as error:
            if str(error) == "timeout":
                raise
            return None

    @functools.cached_property
    def head(self) -> str | None:
        """The commit that is checked out."""
        return self.optional("rev-parse", "--verify", "--quiet", "HEAD^{commit}")

    def has_commit(self, commit: str) -> bool:
        """Whether ``commit`` and its tree are here."""
        return self.optional("rev-parse", "--verify", "--quiet", f"{commit}^{{tree}}") is not None

    def blob(self, commit: str, path: str) -> str | None:
        """The object ID of the file ``path`` in ``commit``."""
        # --full-tree and :(literal): the path is one from the top, and no pattern.
        listed = self.run("ls-tree", "-z", "--full-tree", commit, "--", f":(literal){path}").split(b"\0")[0]
        return listed.split(b"\t")[0].split()[-1].decode("ascii") if listed else None

    def content(self, blob: str, *, limit_bytes: int) -> bytes | None:
        """The bytes of a blob, ``None`` if they are not here or more than ``limit_bytes``."""
        try:
            return self.run("cat-file", "blob", blob, limit_bytes=limit_bytes)
        except GitFailed:
            return None

    @functools.cached_property
    def _without_filters(self) -> list[str]:
        """Options that switch off every clean, smudge and process filter that the configuration names."""
        pattern = r"^filter\..*\.(clean|smudge|process|required)$"
        try:
            names = git(self.top, self._deadline, "config", "--name-only", "--get-regexp", pattern)
        except GitFailed as error:
            if str(error) == "timeout":
                raise
            return []
        options = []
        for name in names.decode("utf-8", "replace").splitlines():
            value = "false" if name.endswith(".required") else ""
            options += ["-c", f"{name}={value}"]
        return options
