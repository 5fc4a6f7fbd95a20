"""``docs/checklist.md`` names tests that exist, or says why there is none."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "checklist.md"
ROWS = re.findall(r"^\| (\d+) \| (.+?) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def functions_in(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_point_is_there_once() -> None:
    assert [int(number) for number, _, _ in ROWS] == list(range(1, 63))


@pytest.mark.parametrize(("number", "what", "held"), ROWS, ids=[row[0] for row in ROWS])
def test_point_names_tests_that_exist_or_a_reason(number: str, what: str, held: str) -> None:
    named = re.findall(r"`(\S+\.py)::(\w+)`", held)

    assert held.count("::") == len(named)
    assert named or held.startswith(("Does not apply: ", "Not run: "))
    for file, test in named:
        assert test.startswith("test_")
        assert test in functions_in(file), f"{file}::{test}"
