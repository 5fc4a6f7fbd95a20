"""What the documentation tells its reader to run runs, from the top of each page to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pages import pages, steps

HERE = Path(__file__).parent

# Pages with a block that is marked as not run here, and what runs it instead.
NOT_RUN = {
    "docs/how-to/distribute.md": "needs a cluster of workers: `make test-distribute`",
    "docs/how-to/ray.md": "needs Ray: `make test-ray`",
    "docs/how-to/spark.md": "needs workers: `make test-spark-cluster`",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, str(HERE / "docs_runner.py"), str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, str] = json.loads((folder / "outcomes.json").read_text())
    return found


@pytest.mark.parametrize("page", pages())
def test_page_runs_from_top_to_bottom(outcomes: dict[str, str], page: str) -> None:
    assert outcomes[page] == "ran", outcomes[page]


def test_blocks_that_are_not_run_say_why() -> None:
    found = {page: step.reason for page in pages() for step in steps(page) if step.reason is not None}

    assert found == NOT_RUN


def test_the_reader_of_pages_finds_what_there_is() -> None:
    """A page whose fences the reader missed would run to its end as well."""
    shown = [step for page in pages() for step in steps(page) if step.is_shown]

    texts = [(HERE.parent / page).read_text(encoding="utf-8") for page in pages()]
    assert sum(not step.is_command for step in shown) == sum(text.count("\n```py") for text in texts)
    assert sum(step.is_command for step in shown) == sum(text.count("\nmlflow-keras-subclass ") for text in texts)
