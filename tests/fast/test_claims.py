"""What the README says is what the tables that it cites say, and the script that holds that can fail."""

from __future__ import annotations

import re

import pytest
from claims import ClaimError, claims, page

README = page("README.md")


def test_the_readme_says_what_its_sources_say() -> None:
    assert len(list(claims(README))) > 60


@pytest.mark.parametrize(
    ("true", "false", "claim"),
    [
        (
            r"(own `train_step` \| error when loaded \| )exact",
            r"\1silently wrong",
            "own `train_step`, `mlflow.tensorflow`",
        ),
        (r"80 of 81; 69 of 70", "81 of 81; 69 of 70", "models of published packages"),
        (r"36, 25, 23 times", "36, 25, 24 times", "requests a second"),
        (r"1\.00; `mlflow\.keras` 3\.05", "1.00; `mlflow.keras` 3.15", "memory that loading 1 GiB"),
        (r"^Ten models", "Nine models", "number of models compared"),
        (r"MLflow 3\.3 or newer", "MLflow 3.2 or newer", "oldest MLflow"),
        (r"to 3\.13, MLflow", "to 3.14, MLflow", "every Python in between"),
        (r"Measured with Keras 3\.15\.1", "Measured with Keras 3.15.2", "versions compared"),
        (r"\|reproduce\|sign`", "|reproduce`", "commands"),
        (r"`make comparison`", "`make comparisons`", "make comparisons"),
        (r"`\[serve\]`", "`[server]`", "extras"),
        (r"docs/serving\.md", "docs/nowhere.md", "docs/nowhere.md"),
    ],
)
def test_a_claim_that_is_not_so_is_found(true: str, false: str, claim: str) -> None:
    edited = re.sub(true, false, README, flags=re.MULTILINE)
    assert edited != README

    with pytest.raises(ClaimError, match=re.escape(claim)):
        list(claims(edited))
