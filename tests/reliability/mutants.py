"""Takes each check out of ``trust.py``, one at a time, and runs its tests: every mutant must break one.

``python tests/reliability/mutants.py`` prints the survivors, and exits with 1 if there is one. Mutants: a condition
that is always true or always false, an error that is not raised, a comparison turned around, an ``and`` for an ``or``.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import os
import signal
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlflow_keras_subclass
from mlflow_keras_subclass import signing, trust  # noqa: F401 # imported before the forks

# What signatures are checked with takes a second to import, too.
if importlib.util.find_spec("model_signing") is not None:
    import model_signing.signing
    import model_signing.verifying  # noqa: F401

ROOT = Path(__file__).parents[2]
NAME = "mlflow_keras_subclass.trust"
SOURCE = ROOT / "mlflow_keras_subclass/trust.py"
TIMEOUT_S = 60
TESTS = [str(ROOT / "tests/fast/test_trust.py")]
TURNED = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """What was changed, and the changed source."""
    tree = ast.parse(source)
    for number, node in enumerate(ast.walk(tree)):
        for what, change in changes(node):
            changed = copy.deepcopy(tree)
            change(next(item for place, item in enumerate(ast.walk(changed)) if place == number))
            line = source.splitlines()[getattr(node, "lineno", 1) - 1].strip()
            yield f"line {getattr(node, 'lineno', '?')}: {what}: {line}", ast.unparse(changed)


def changes(node):
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        for value in (True, False):
            yield f"always {value}", lambda item, value=value: setattr(item, "test", ast.Constant(value))
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        turned = TURNED[type(node.ops[0])]()
        yield "turned around", lambda item: setattr(item, "ops", [turned])
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and for or", lambda item: setattr(item, "op", other)
    for name in ("body", "orelse"):
        block = getattr(node, name, None)
        for place, statement in enumerate(block if isinstance(block, list) else []):
            if isinstance(statement, ast.Raise):
                yield (
                    f"not raised ({statement.lineno})",
                    lambda item, name=name, place=place: getattr(item, name).__setitem__(place, ast.Pass()),
                )


def survives(source: str) -> bool:
    """Whether the tests pass with this ``trust.py``; in a fork, since MLflow is imported once for all mutants."""
    child = os.fork()
    if child == 0:
        os._exit(tests_fail_with(source))
    for _ in range(TIMEOUT_S * 50):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def tests_fail_with(source: str) -> int:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    # Plugins that are installed by chance were imported already, of which pytest would warn.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        module = sys.modules[NAME] = types.ModuleType(NAME)
        module.__file__ = str(SOURCE)
        exec(compile(source, SOURCE, "exec", dont_inherit=True), vars(module))
        setattr(mlflow_keras_subclass, NAME.rpartition(".")[2], module)
        options = ["-q", "-x", "-p", "no:cacheprovider", "--capture=no", "-c", str(ROOT / "pyproject.toml")]
        with tempfile.TemporaryDirectory() as folder:
            return int(pytest.main([*options, f"--basetemp={folder}/tests", *TESTS]))
    except BaseException:
        return 1


def main():
    source = SOURCE.read_text(encoding="utf-8")
    assert survives(source), "the tests must pass without a change"
    assert not survives("raise ImportError"), "the tests must import the copy that is changed"
    tried = list(mutants(source))
    survivors = []
    for number, (what, changed) in enumerate(tried, 1):
        if survives(changed):
            survivors.append(what)
            print(f"{number}/{len(tried)} survived: {what}", flush=True)
    print(f"{len(tried)} mutants, {len(survivors)} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main())
