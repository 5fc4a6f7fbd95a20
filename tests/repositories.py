"""Git repositories for tests: the real program."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any


def git(folder: Path, *arguments: str, **options: Any) -> str:
    """What ``git`` prints in ``folder``, which it must end well for."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, **options)
    return str(done.stdout).strip()
