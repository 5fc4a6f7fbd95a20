"""The process in which ``proof`` rebuilds what was written: reads one request a line, answers one line.

Nothing of the user's is importable here, and no connection can be opened. What the user's code prints goes to the
log, not into the answers. Not for import by other modules.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
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


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    blocked = _Blocked()
    sys.meta_path.insert(0, blocked)
    sys.addaudithook(_refuse_connections)
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
        return {"error": f"{type(error).__name__}: {error}"}


def _compare(request: dict[str, Any]) -> dict[str, int]:
    # Late, so that this module's own import is light and the hooks above are in place first.
    from mlflow_keras_subclass import keras_api, model_dir, trust
    from mlflow_keras_subclass.proof import outputs_of, read_arrays

    root = Path(request["root"])
    verified = trust.verify(root, trust.TrustPolicy())
    with _shipped_code(root / "code"):
        model = model_dir.rebuild(verified)
    compared = model_dir.compare(verified, model)
    outputs: Sequence[Any] = ()
    if request["probe"] is not None:
        api = keras_api.for_runtime()
        spec, _ = model_dir.read_specs(verified)
        assert spec is not None
        inputs = read_arrays(Path(request["probe"], "inputs.npz"))
        expected = read_arrays(Path(request["probe"], "outputs.npz"))
        outputs = outputs_of(api, model, spec, dict(zip(spec.leaves(), inputs, strict=True)))
        _compare_outputs(expected, outputs, exact=request["exact"])
    return {**compared, "outputs": len(outputs)}


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


def _compare_outputs(expected: Sequence[Any], got: Sequence[Any], *, exact: bool) -> None:
    import numpy as np

    if len(expected) != len(got):
        raise ValueError(f"the rebuilt model returns {len(got)} outputs, the live one {len(expected)}")
    for number, (left, right) in enumerate(zip(expected, got, strict=True)):
        right = right.view(np.uint16) if right.dtype.name == "bfloat16" else right
        right = right.astype(str).astype(object) if right.dtype == object else right
        if left.shape != right.shape or left.dtype != right.dtype:
            raise ValueError(
                f"output {number} is {right.dtype} {right.shape}, of the live model {left.dtype} {left.shape}"
            )
        same = hashlib.sha256(left.tobytes()).digest() == hashlib.sha256(right.tobytes()).digest()
        if left.dtype == object:
            same = bool((left == right).all())
        # Another device sums in another order.
        if not same and (exact or left.dtype.kind != "f" or not np.allclose(left, right, rtol=1e-3, atol=1e-5)):
            size = np.nanmax(np.abs(left.astype("float64") - right)) if left.dtype.kind in "fiu" else "not numbers"
            raise ValueError(
                f"output {number} differs by up to {size} on the same input. Something that the model computes with is "
                "not part of it: a global that changed, a random value drawn outside the constructor, state in a C "
                "extension. Make it an attribute or an argument of the model."
            )
