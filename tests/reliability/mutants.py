"""Mutation testing of trust.py: every condition is made false or true, every raise is removed; a test must fail.

``python mutants.py`` prints its counts and the mutants that survived (``make test-mutants``). It works on a copy of
the package, and runs the tests of trust.py in forked processes, so that all is imported once.
"""

import ast
import copy
import json
import os
import sys
import types
from pathlib import Path

import pytest

import mlflow_keras_subclass.trust as target

HERE = Path(__file__).resolve().parent
TESTS = [str(HERE.parent / "fast/test_trust.py"), str(HERE / "test_damage.py")]
# Equal to the original in what anybody can observe, with the reason.
EQUIVALENT = {
    "raise in _open_regular": "a race that the test above it cannot win: the file changes between lstat and open",
}


class _Mutator(ast.NodeTransformer):
    """Makes the change with the number asked for; counts the others."""

    def __init__(self, at):
        self.at, self.count, self.what, self.where = at, 0, "", ""

    def _is_it(self, what, node):
        self.count += 1
        if self.count - 1 != self.at:
            return False
        self.what = f"{what} in {self.where}, line {node.lineno}"
        return True

    def visit_FunctionDef(self, node):
        before, self.where = self.where, node.name
        self.generic_visit(node)
        self.where = before
        return node

    def visit_If(self, node):
        self.generic_visit(node)
        for value in (False, True):
            if self._is_it(f"if {value}", node):
                node.test = ast.copy_location(ast.Constant(value), node.test)
        return node

    def visit_Raise(self, node):
        self.generic_visit(node)
        return ast.copy_location(ast.Pass(), node) if self._is_it("raise removed", node) else node

    def visit_BoolOp(self, node):
        self.generic_visit(node)
        if self._is_it("and/or exchanged", node):
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return node

    def visit_Compare(self, node):
        self.generic_visit(node)
        swap = {ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Gt: ast.GtE, ast.In: ast.NotIn, ast.NotIn: ast.In}
        other = swap.get(type(node.ops[0]))
        if other is not None and self._is_it("comparison turned", node):
            node.ops[0] = other()
        return node


def mutants():
    """What each mutant changes, and its syntax tree."""
    tree = ast.parse(Path(target.__file__).read_text(encoding="utf-8"))
    number = 0
    while True:
        mutator = _Mutator(number)
        changed = ast.fix_missing_locations(mutator.visit(copy.deepcopy(tree)))
        if not mutator.what:
            return
        yield mutator.what, changed
        number += 1


def noticed(tree):
    """Whether a test fails with the mutant in the place of trust.py."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            module = types.ModuleType(target.__name__)
            module.__file__ = target.__file__
            sys.modules[target.__name__] = module
            exec(compile(tree, target.__file__, "exec"), vars(module))
            for name in [name for name in sys.modules if name == "fuzzing"]:
                del sys.modules[name]
            arguments = ["-x", "-q", "-p", "no:cacheprovider", "-k", "not fuzzing and not single_bits"]
            os._exit(int(pytest.main([*TESTS, *arguments]) != 0))
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def main():
    if noticed(ast.parse(Path(target.__file__).read_text(encoding="utf-8"))):
        sys.exit("the tests fail without any mutation")
    total, survived = 0, []
    for what, tree in mutants():
        total += 1
        if not noticed(tree):
            survived.append(what)
            print("survived:", what, flush=True)
    print(json.dumps({"mutants": total, "noticed": total - len(survived), "survived": survived}, indent=1))


if __name__ == "__main__":
    main()
