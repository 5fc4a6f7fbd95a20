"""The process in which ``proof`` rebuilds what was written: reads one request a line, answers one line.

Nothing of the user's is importable here, and no connection can be opened. What the user's code prints goes to the
log, not into the answers. Not for import by other modules.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["main"]


class _Blocked(importlib.abc.MetaPathFinder):
    """Refuses to import modules of the user's, by their top-level names."""

    def __init__(self) -> None:
        self.names: frozenset[str] = frozenset()

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in self.names:
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: it is the user's own and was not shipped with the model", name=fullname
            )
        return None


class _FilesRead:
    """Notes which files of this machine, of no installed package and no system, are read while a model is rebuilt."""

    _SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/lib64", sys.prefix, sys.base_prefix)

    def __init__(self) -> None:
        self._opened: set[str] | None = None

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """See what Python opens; a library that opens files in C is not seen."""
        if event == "open" and self._opened is not None and isinstance(args[0], str | bytes):
            self._opened.add(os.fsdecode(args[0]))

    @contextlib.contextmanager
    def noted(self, *own: Path) -> Iterator[list[str]]:
        """The files outside of ``own`` that were read, in a list that is filled on leaving."""
        found: list[str] = []
        self._opened = set()
        try:
            yield found
        finally:
            opened, self._opened = self._opened, None
            known = [*map(Path, (*self._SYSTEM, *sys.path)), *own]
            paths = sorted(Path(path).absolute() for path in opened)
            paths = [path for path in paths if path.suffix not in (".py", ".pyc") and path.is_file()]
            found.extend(str(path) for path in paths if not _lies_in(path, known))


def _lies_in(path: Path, folders: Iterable[Path]) -> bool:
    """Whether ``path`` lies in one of ``folders``, by its name or in truth."""
    return any(path.is_relative_to(folder) or path.resolve().is_relative_to(folder) for folder in folders)


_FILES_READ = _FilesRead()


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    blocked = _Blocked()
    sys.meta_path.insert(0, blocked)
    sys.addaudithook(_refuse_connections)
    sys.addaudithook(_FILES_READ.hook)
    for line in sys.stdin:
        request = json.loads(line)
        blocked.names = frozenset(request["blocked"])
        answers.write(json.dumps(_answer(request)) + "\n")
        answers.flush()


def _refuse_connections(event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.connect" and not isinstance(args[1], str | bytes):
        raise PermissionError(f"the proof of a model has no network, and something connects to {args[1]}")


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"compared": _compare(request)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "paths": list(getattr(error, "paths", ()))}


def _compare(request: dict[str, Any]) -> dict[str, Any]:
    # Late, so that this module's own import is light and the hooks above are in place first.
    from mlflow_keras_subclass import keras_api, model_dir, trust

    root = Path(request["root"])
    verified = trust.verify(root, trust.TrustPolicy())
    if request.get("graph"):
        return {"graph": model_dir.verify_graph(verified)}
    keras_api.for_versions(verified.manifest.versions)  # Keras reads settings of its own
    with _shipped_code(root / "code"), _FILES_READ.noted(root) as files_read:
        model = model_dir.rebuild(verified, route=request["route"])
    compared = {**model_dir.compare(verified, model), "files_read": files_read}
    return {**compared, "entry_points": model_dir.verify_predictions(verified, model)}


@contextlib.contextmanager
def _shipped_code(folder: Path) -> Iterator[None]:
    """Modules that the user ships as they are (``code_paths``) are importable, as they are when the model is loaded."""
    if not folder.is_dir():
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
