"""Every model of the zoo comes back exactly in a process without its source, or was refused when it was logged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from zoo import names_of_cases

HERE = Path(__file__).parent
LEGACY = os.environ.get("TF_USE_LEGACY_KERAS") == "1"
BACKEND = "tf_keras" if LEGACY else os.environ.get("KERAS_BACKEND", "tensorflow")


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    results = tmp_path_factory.mktemp("results")
    for arguments in (("log", folder, "cloudpickle"), ("load", results, folder)):
        command = [sys.executable, "-I", HERE / "zoo_runner.py", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-4000:]
    files = {"log": folder / "log.json", "load": results / f"{folder.name}.json"}
    return {mode: json.loads(file.read_text()) for mode, file in files.items()}


@pytest.mark.parametrize(("name", "refused"), names_of_cases(BACKEND))
def test_comes_back_exactly_or_is_refused(verdicts, name, refused):
    """State, trainable flags, and predictions natively and through the pyfunc are bit for bit those of the original."""
    if refused:
        assert verdicts["log"][name] == "refused"
    else:
        assert verdicts["log"][name] == "logged", verdicts["log"][name]
        assert verdicts["load"][name] == "exact", verdicts["load"][name]
