"""A bar for what takes long, on a real terminal (a pty) and nowhere else."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import struct
import termios
from collections.abc import Iterator
from typing import TextIO

import pytest

from mlflow_keras_subclass.progress import progress

LARGE = 300 * 2**20


class Terminal:
    """A terminal as standard error, and what was shown on it."""

    def __init__(self) -> None:
        self._screen, line = pty.openpty()
        # A new one has no size, and tqdm draws nothing on it: 24 lines of 80 characters.
        fcntl.ioctl(line, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        self.stream = os.fdopen(line, "w", encoding="utf-8")

    def shown(self) -> str:
        self.stream.write("|end|")
        self.stream.flush()
        text = ""
        while "|end|" not in text:
            text += os.read(self._screen, 4096).decode("utf-8")
        return text.removesuffix("|end|")

    def close(self) -> None:
        self.stream.close()
        os.close(self._screen)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.delenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", raising=False)
    made = Terminal()
    yield made
    made.close()


def write(total: int, stream: TextIO) -> None:
    # In here, and not by a fixture: pytest puts its own stream back between setup and test.
    with contextlib.redirect_stderr(stream), progress(total, "weights") as done:
        done(total // 2)
        done(total - total // 2)


def test_a_terminal_shows_how_far_it_is(terminal: Terminal) -> None:
    write(LARGE, terminal.stream)

    shown = terminal.shown()
    assert "weights: 100%" in shown
    assert "315M/315M" in shown


@pytest.mark.parametrize("value", ["false", "False", "0"])
def test_mlflows_switch_turns_it_off(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", value)
    write(LARGE, terminal.stream)

    assert terminal.shown() == ""


def test_what_is_written_at_once_has_none(terminal: Terminal) -> None:
    write(2**20, terminal.stream)

    assert terminal.shown() == ""


def test_a_log_file_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", raising=False)
    log = io.StringIO()
    write(LARGE, log)

    assert log.getvalue() == ""
