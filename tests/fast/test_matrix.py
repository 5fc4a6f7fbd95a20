"""The page of the version matrix says of every verdict what it is, and hides none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from matrix import table
from matrix.__main__ import is_current

NAMES = ["a", "b", "c"]
BYTECODE = (
    "load: Traceback (most recent call last):\n  File …\nmlflow_keras_subclass.errors.ClassDefinitionError: "
    "objects.cloudpickle holds bytecode of Python 3.10 and cannot be read in Python 3.13."
)
UNEXPLAINED = "load: Traceback (most recent call last):\n  File …\nTypeError: unknown keyword"


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        ("exact", "exact"),
        ("outputs 0, 2 differ by at most 1.2e-07", "close"),
        ("pyfunc: outputs 0 differ by at most 9.9e-06", "close"),
        ("outputs 0 differ by at most 1.1e-05", "wrong"),
        ("outputs 0 differ", "wrong"),
        ("2 outputs became 1", "wrong"),
        (BYTECODE, "refused"),
        ("load: …\nX: It was logged with Keras 3.15.1, here 3.12.4: install it.", "refused"),
        ("load: …\nX: Load it with KERAS_BACKEND=jax, or write these lines anew.", "refused"),
        (UNEXPLAINED, "wrong"),
        (BYTECODE.removeprefix("load: "), "wrong"),
    ],
)
def test_kind_of_a_verdict(verdict: str, kind: str) -> None:
    assert table.kind_of(verdict) == kind


def test_refusals_are_told_without_what_differs_from_pair_to_pair() -> None:
    assert table.summary("load: …\n/tmp/x/matrix/case: Net was logged with Keras 3.15.1.") == (
        "case: Net was logged with Keras x."
    )


def test_pairs_are_grouped_by_where_they_go() -> None:
    pairs = [("a", "b"), ("b", "a"), ("a", "c"), ("c", "b"), ("c", "c")]

    assert table.places(pairs, NAMES) == "a, c → b, c; b → a"


def test_page_counts_every_cell_and_names_every_one_that_is_not_exact() -> None:
    verdicts = {(home, away): {"one": "exact", "two": "exact"} for home in NAMES for away in NAMES}
    verdicts["a", "b"] = {"one": "exact", "two": "outputs 0 differ by at most 1.0e-07"}
    verdicts["a", "c"] = verdicts["b", "c"] = {"one": BYTECODE, "two": BYTECODE}
    logged = {name: {"one": "logged", "two": "logged"} for name in NAMES}

    text, is_fine = table.page({name: ["3.10", "k", "t", "m", "c", "n"] for name in NAMES}, logged, verdicts)

    assert is_fine
    assert "In sum: 13 exact, 1 close, 4 refused, 0 wrong." in text
    assert "| a | 2 exact | 1 exact, 1 close | 2 refused |" in text
    assert "- `two` (a → b): by at most 1.0e-07" in text
    assert "- `one`, `two` (a, b → c): ClassDefinitionError: objects.cloudpickle holds bytecode of Python x" in text


@pytest.mark.parametrize("where", ["logged", "loaded"])
def test_what_is_wrong_fails_the_run_and_is_named(where: str) -> None:
    logged = {"a": {"one": "log: Traceback\nValueError: no" if where == "logged" else "logged"}}
    loaded = {("a", "a"): {"one": UNEXPLAINED if where == "loaded" else "exact"}}

    text, is_fine = table.page({"a": ["3.10", "k", "t", "m", "c", "n"]}, logged, loaded)

    assert not is_fine
    named = {"logged": "`one`, logged in a: ValueError: no", "loaded": "`one` (a → a): TypeError: unknown keyword"}
    assert f"## Wrong\n\n- {named[where]}" in text


def test_what_was_found_holds_until_what_it_was_found_from_changes(tmp_path: Path) -> None:
    file, first, second = (tmp_path / name for name in ("file", "first", "second"))
    for time, path in enumerate((first, second, file)):
        path.touch()
        os.utime(path, (time, time))

    assert is_current(file, first, second)
    os.utime(second, (3, 3))
    assert not is_current(file, first, second)
    second.unlink()
    assert not is_current(file, first, second)
    assert not is_current(tmp_path / "other", first)
