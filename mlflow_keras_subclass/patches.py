"""The patch of what was not committed, without the hunks that hold secrets or that git cannot apply.

What was left out is said, by file and line, never by content. Imports credentials only; must not import Keras.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mlflow_keras_subclass.credentials import lines_with_secrets

__all__ = ["Omission", "cleaned"]

_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Omission:
    """Lines of a file that were left out of the patch, or that a reader should look at; ``reason`` says why.

    Line numbers are those of the file as it is now; 0 stands for the whole file.
    """

    path: str
    first_line: int
    last_line: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Hunk:
    first_line: int
    last_line: int
    lines: list[bytes]

    @property
    def texts(self) -> list[str]:
        """The lines of both sides, without the column that says which."""
        return [line[1:].decode("utf-8", "replace").rstrip("\r") for line in self.lines[1:]]


def cleaned(patch: bytes, deadline: float) -> tuple[bytes, tuple[Omission, ...]]:
    """``patch`` without what must not or cannot be kept, and what that was.

    Sections that are not looked at by ``deadline`` (of ``time.monotonic()``) are left out, too.
    """
    kept: list[bytes] = []
    omissions: list[Omission] = []
    for path, head, hunks in _sections(patch):
        if time.monotonic() >= deadline:
            omissions.append(Omission(path=path, first_line=0, last_line=0, reason="not scanned for secrets in time"))
        elif any(line.startswith((b"Binary files ", b"GIT binary patch")) for line in head):
            omissions.append(Omission(path=path, first_line=0, last_line=0, reason="binary"))
        else:
            found = {number: kind for number, hunk in enumerate(hunks) if (kind := _secret(hunk, path))}
            omissions += [_omission(path, hunks[number], kind) for number, kind in found.items()]
            kept += _without(head, hunks, found)
    return b"\n".join([*kept, b""]) if kept else b"", tuple(omissions)


def _without(head: list[bytes], hunks: list[_Hunk], found: Mapping[int, str]) -> list[bytes]:
    whole = any(line.startswith((b"new file", b"deleted file", b"rename ", b"copy ")) for line in head)
    if found and (whole or len(found) == len(hunks)):
        return []
    return [*head, *(line for number, hunk in enumerate(hunks) if number not in found for line in hunk.lines)]


def _secret(hunk: _Hunk, path: str) -> str:
    return next(iter(lines_with_secrets(hunk.texts, path).values()), "")


def _omission(path: str, hunk: _Hunk, kind: str) -> Omission:
    return Omission(path=path, first_line=hunk.first_line, last_line=hunk.last_line, reason=f"secret: {kind}")


def _sections(patch: bytes) -> Iterator[tuple[str, list[bytes], list[_Hunk]]]:
    """Path, head and hunks of each file; a line of content that looks like a head is counted off by its hunk."""
    head: list[bytes] = []
    hunks: list[_Hunk] = []
    before = after = 0
    for line in patch.removesuffix(b"\n").split(b"\n"):
        if before > 0 or after > 0 or (hunks and line.startswith(b"\\")):
            hunks[-1].lines.append(line)
            before -= line[:1] in (b" ", b"-", b"")
            after -= line[:1] in (b" ", b"+", b"")
        elif match := _HUNK.match(line):
            before, after = int(match[2] or 1), int(match[4] or 1)
            first = int(match[3])
            hunks.append(_Hunk(first, max(first, first + after - 1), [line]))
        else:
            if line.startswith(b"diff --git ") and head:
                yield _path(head), head, hunks
                head, hunks = [], []
            head.append(line)
    if head and patch:
        yield _path(head), head, hunks


def _path(head: list[bytes]) -> str:
    for start in (b"+++ b/", b"--- a/", b"rename to "):
        for line in head:
            if line.startswith(start):
                return line.removeprefix(start).rstrip(b"\t").decode("utf-8", "replace")
    # Without content only: both sides name the same file.
    return head[0].decode("utf-8", "replace").rpartition(" b/")[2]
