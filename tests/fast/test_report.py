"""The model card and its short form, as pure functions of a record."""

from __future__ import annotations

import dataclasses

import pytest

from mlflow_keras_subclass.artifacts.report import Card, TensorRow, card, note

RECORD = Card(
    uri="models:/m-123",
    model_class="shop.net:TwoTower",
    class_name="TwoTower",
    doc="Scores users against items.",
    inputs=(
        TensorRow(name="user", shape=(None, 8), dtype="float32"),
        TensorRow(name="item", shape=(None,), dtype="string"),
    ),
    outputs=(TensorRow(name=None, shape=(None, 1), dtype="float32"),),
    parameter_count=12345,
    not_finite=(),
    globals={},
    trainable_count=12000,
    commit="0123456789abcdef0123456789abcdef01234567",
    branch="main",
    remote_url="https://example.org/shop.git",
    dirty=True,
    keras_version="3.15.1",
    backend="tensorflow",
    backend_version="2.21.0",
    python_version="3.11.7",
    manifest_sha256="ab" * 32,
    files=(
        "README.md",
        "keras_subclass/config.json",
        "keras_subclass/manifest.json",
        "keras_subclass/source/shop/net.py",
        "keras_subclass/uncommitted.diff.txt",
        "requirements.txt",
    ),
)


@pytest.mark.parametrize(
    "text",
    [
        "# TwoTower\n\nScores users against items.",
        "`shop.net:TwoTower`",
        "12,345 (12,000 trainable, 345 not)",
        "`0123456789abcdef0123456789abcdef01234567` on `main`",
        "with **uncommitted changes**",
        "| takes | `user` | `(None, 8)` | float32 |",
        "| takes | `item` | `(None,)` | string |",
        "| returns | (no name) | `(None, 1)` | float32 |",
        'mks.load_model("models:/m-123")',
        'mlflow.pyfunc.load_model("models:/m-123")',
        "mlflow models serve -m models:/m-123 --env-manager local",
        "git checkout 0123456789abcdef0123456789abcdef01234567",
        "git apply <this model>/keras_subclass/uncommitted.diff.txt",
        "| `keras_subclass/config.json` |",
        "| `keras_subclass/source` |",
        f"`{'ab' * 32}`",
    ],
)
def test_card_says(text: str) -> None:
    assert text in card(RECORD)


def test_card_lists_only_files_that_are_there() -> None:
    assert "optimizer.safetensors" not in card(RECORD)


@pytest.mark.parametrize(
    ("change", "expected", "missing"),
    [
        ({"dirty": False}, "on `main`", "uncommitted changes**"),
        ({"dirty": None}, "not known whether with uncommitted changes", "**uncommitted"),
        ({"commit": None}, "not in a Git repository with a commit", "git checkout"),
        ({"uri": None}, "<path of this directory>", "models:/"),
        ({"inputs": (), "outputs": ()}, "Not recorded", "| takes |"),
        ({"outputs": ()}, "What it returns was not recorded", "| returns |"),
        ({"doc": ""}, "# TwoTower\n\n- class", "Scores"),
        ({"remote_url": None}, "git checkout", "git clone"),
    ],
)
def test_card_says_what_is_not_known(change: dict[str, object], expected: str, missing: str) -> None:
    text = card(dataclasses.replace(RECORD, **change))

    assert expected in text
    assert missing not in text


def test_foreign_text_cannot_break_the_card() -> None:
    """A docstring or an input's name is text, neither markup nor a new table cell."""
    hostile = dataclasses.replace(
        RECORD,
        doc="<script>x</script> | **b**\n# head",
        inputs=(TensorRow(name="a|b", shape=(None,), dtype="int64"),),
    )
    text = card(hostile)

    assert "<script>" not in text
    assert "\n# head" not in text
    assert "| `a\\|b` |" in text


@pytest.mark.parametrize("render", [card, note])
def test_text_ends_in_one_newline(render: object) -> None:
    text = render(RECORD)  # type: ignore[operator]

    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_note_is_short_and_says_how_to_load_and_serve() -> None:
    """It fits the limit of a run tag (8000 characters), which is MLflow's smallest."""
    text = note(RECORD)

    assert len(text) < 1500
    for part in ("TwoTower", "12,345", "0123456789abcdef", 'mks.load_model("models:/m-123")', "mlflow models serve"):
        assert part in text
