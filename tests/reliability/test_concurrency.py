"""Loads at the same time give each its own model and leave the process as it was, however it was started."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from concurrent_loads import ROUTES, VERSIONS


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """For each start method what every process said."""
    folder, script = tmp_path_factory.mktemp("loads"), Path(__file__).with_name("concurrent_loads.py")
    said = {}
    for method in ("fork", "spawn"):
        command = [sys.executable, str(script), str(folder), method]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        said[method] = json.loads(done.stdout.strip().splitlines()[-1])
    return said


@pytest.mark.parametrize(("method", "processes"), [("fork", 2), ("spawn", 1)])
def test_64_loads_in_threads(found, method, processes):
    """Two versions of one package, whose classes have the same names, by both routes, in turn."""
    assert len(found[method]) == processes
    for said in found[method]:
        assert said["wrong"] == []
        assert said["alternately"] == [True] * len(VERSIONS) * len(ROUTES)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_nothing_of_the_process_is_changed(found, method):
    """Search path, both tables of Keras, cloudpickle's; of the source route the modules stay, under private names."""
    for said in found[method]:
        assert said["changed"] == []
        assert said["own"]
        assert not said["user's module"]
        assert said["private modules"] == len(VERSIONS)
