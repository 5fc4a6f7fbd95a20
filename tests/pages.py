"""Reads what a page of the documentation tells its reader to run.

A page may hold two kinds of HTML comments for the tests, which its reader does not see::

    <!-- run:
    uri = …          # Python: what the blocks of the page take as given, or a look at what they made
    -->

    <!-- not run: why the block below cannot run here -->
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = "mlflow-keras-subclass "

_PYTHON = ("py", "python")
_SHELL = ("sh", "bash")
_PART = re.compile(
    r"^```(?P<language>\w+)\n(?P<block>.*?)^```$|^<!-- run:\n(?P<hidden>.*?)^-->$|^<!-- not run: (?P<reason>.*?) -->$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Python code, or one command line of this package, and the line of the page it is on."""

    line: int
    code: str
    is_command: bool
    is_shown: bool
    reason: str | None


def pages() -> list[str]:
    """The pages whose code is run, relative to the root of the repository."""
    found = [ROOT / "README.md", ROOT / "docs/index.md", ROOT / "docs/serving.md", *ROOT.glob("docs/how-to/*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def steps(page: str) -> list[Step]:
    """Everything on ``page`` that could run, in its order."""
    return list(_steps((ROOT / page).read_text(encoding="utf-8")))


def _steps(text: str) -> Iterator[Step]:
    reason: str | None = None
    for part in _PART.finditer(text):
        if part["reason"] is not None:
            reason = " ".join(part["reason"].split())
            continue
        shown = part["block"] is not None
        code = part["block"] if shown else part["hidden"]
        line = text.count("\n", 0, part.start("block" if shown else "hidden")) + 1
        if not shown or part["language"] in _PYTHON:
            yield Step(line=line, code=code, is_command=False, is_shown=shown, reason=reason)
        elif part["language"] in _SHELL:
            for number, command in enumerate(code.splitlines()):
                if command.startswith(COMMAND):
                    yield Step(line=line + number, code=command, is_command=True, is_shown=True, reason=reason)
        reason = None
