"""A save ends with the whole model or none, whatever fails; an upload, with the path of the local copy.

``MKS_FAULTS=all`` tries every write (``make test-faults``); without it a sample is taken.
"""

import errno
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from faults import Faults, numbers
from mlflow.exceptions import MlflowException
from sqlalchemy import event
from sqlalchemy.engine import Engine

import mlflow_keras_subclass as mks
from mlflow_keras_subclass.trust import TrustPolicy, verify

X = np.ones((2, 3), "float32")
EVERY = os.environ.get("MKS_FAULTS") == "all"


class Net(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.dense = keras.layers.Dense(units)

    def call(self, x):
        return self.dense(x)


@pytest.fixture(scope="module")
def faults():
    return Faults()


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(1)
    model = Net(2)
    model(X)
    return model


@pytest.fixture(scope="module")
def writes(model, faults, tmp_path_factory):
    """How many writes a save makes."""
    folder = tmp_path_factory.mktemp("count")
    faults.arm(folder, -1, None)
    mks.save_model(model, folder / "m", prove=False)
    count = faults.disarm()
    assert count > 15
    return count


def check_whole_or_absent(target):
    if target.exists():
        verify(target, TrustPolicy())
        assert (target / "MLmodel").is_file()
    return target.exists()


def test_error_at_the_nth_write_surfaces_and_leaves_nothing(model, faults, writes, tmp_path):
    def fail():
        raise OSError(errno.EIO, "Input/output error")

    for number in numbers(writes, every=EVERY):
        folder = tmp_path / str(number)
        folder.mkdir()
        faults.arm(folder, number, fail)
        said = ""
        try:
            mks.save_model(model, folder / "m", prove=False)
        except (OSError, MlflowException) as error:
            said = str(error)
        finally:
            faults.disarm()
        # To make a folder that exists may fail without harm; then the save is whole.
        assert check_whole_or_absent(folder / "m") == (said == ""), number
        assert said == "" or "Input/output error" in said, number
        assert [path.name for path in folder.iterdir()] == ([] if said else ["m"]), number
    (tmp_path / "again").mkdir()
    mks.save_model(model, tmp_path / "again/m", prove=False)


def test_killed_at_the_nth_write(tmp_path):
    """The target is absent or whole, and the next save to it works; a file that outgrows its limit leaves nothing."""
    script = Path(__file__).with_name("killed_saves.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "every" if EVERY else "sample"],
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    # The last number lies beyond the last write.
    assert [item["ended"] for item in found["killed"]] == ["killed"] * (len(found["killed"]) - 1) + ["finished"]
    assert len(found["killed"]) > 7
    for item in found["killed"]:
        assert item["left"] in (["whole"] if item["ended"] == "finished" else ["absent"], ["whole"]), item
    assert found["again"] == "whole"
    assert found["limited"] == {"ended": "OSError", "left": []}


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """What each ``log_model`` left behind that was killed, or failed, at its N-th write."""
    folder, script = tmp_path_factory.mktemp("logs"), Path(__file__).with_name("killed_logs.py")
    command = [sys.executable, str(script), str(folder), "every" if EVERY else "sample"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=4 * 3600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_log_model_killed_at_the_nth_write(logs):
    """No model is marked ready that is not whole, and there is never a second one."""
    found = logs["killed"]
    # The last number lies beyond the last write.
    assert [item["ended"] for item in found] == ["killed"] * (len(found) - 1) + ["finished"]
    assert len(found) >= 7
    for item in found:
        assert item["models"] in ([], [["PENDING", False]], [["PENDING", True]], [["READY", True]]), item
    assert found[0]["models"] == []
    assert found[-1]["models"] == [["READY", True]]


def test_log_model_that_fails_at_the_nth_write(logs):
    """Either nothing was created, or the model is marked failed and a whole copy is named, or it is there."""
    found = logs["failing"]
    for item in found:
        if item["error"] is None or item["models"] == [["READY", True]]:
            assert item["models"] == [["READY", True]], item
        else:
            assert "Input/output error" in item["error"], item
            assert item["models"] == [] or (item["models"][0][0] == "FAILED" and item["copy"]), item
            assert item["copy"] in (None, True), item
    assert {bool(item["copy"]) for item in found} == {True, False}


@pytest.mark.parametrize("options", ["size=40k", "ro"])
def test_disk_that_is_full_or_read_only(model, tmp_path, options):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("this process may not mount a small disk; the limit on file sizes is tried above")
    try:
        with pytest.raises(OSError, match=r"No space left|Read-only file system"):
            mks.save_model(model, disk / "m", prove=False)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_two_writers_to_one_path(model, tmp_path):
    """One wins whole, the other is told that the path is occupied."""
    results, barrier = [], threading.Barrier(2)

    def save():
        barrier.wait()
        try:
            mks.save_model(model, tmp_path / "m", prove=False)
        except MlflowException as error:
            results.append(str(error))
        else:
            results.append("")

    threads = [threading.Thread(target=save) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(map(bool, results)) == [False, True], results
    assert "already exists and is not empty" in max(results)
    assert check_whole_or_absent(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


class Store(http.server.BaseHTTPRequestHandler):
    """Where artifacts are uploaded to, with a will of its own."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        server = self.server
        server.puts += 1
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        mode = server.mode
        if mode == "hangs":
            time.sleep(4)
        if mode == "resets" and server.puts > 3:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
            return
        if mode == "resets twice" and server.puts in (4, 5):
            # While the body is on its way.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
            return
        if mode == "goes away" and server.puts > 3:
            server.socket.close()
            self.connection.close()
            return
        code = {"500": 500, "413": 413, "401": 401, "500 twice": 500 if server.puts <= 2 else 200}.get(mode, 200)
        if code == 200:
            path = server.folder / self.path.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def store(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store)
    server.handle_error = lambda *_: None
    server.folder, server.puts, server.mode = tmp_path / "store", 0, ""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db")
    yield
    mlflow.set_tracking_uri(before)


@pytest.fixture
def experiment(tracking, store, monkeypatch, request):
    for name, value in {"MAX_RETRIES": "2", "BACKOFF_FACTOR": "0", "BACKOFF_JITTER": "0", "TIMEOUT": "1"}.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    location = f"http://someone:hunter2@127.0.0.1:{store.server_address[1]}/artifacts"  # pragma: allowlist secret
    return mlflow.create_experiment(request.node.name, artifact_location=location)


@pytest.mark.parametrize("mode", ["500", "413", "401", "resets", "goes away", "hangs"])
def test_upload_that_fails(model, store, experiment, mode, caplog):
    """No model is marked ready, and the one on this machine is whole; no password is printed by us."""
    store.mode = mode
    with mlflow.start_run(experiment_id=experiment), pytest.raises(Exception, match=r"."):
        mks.log_model(model, name="net", prove=False)

    found = mlflow.search_logged_models(experiment_ids=[experiment], output_format="list")
    assert [item.status.name for item in found] == ["FAILED"]
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("mlflow_keras_subclass")]
    kept = Path(re.search(r"It is complete in (\S+);", "\n".join(ours))[1])
    assert "hunter2" not in "\n".join(ours)
    np.testing.assert_array_equal(mks.load_model(kept)(X), model(X))


def test_model_that_was_created_although_the_answer_was_an_error(model, experiment, caplog):
    """Nobody was told its ID."""
    seen = []

    def statement(_connection, _cursor, text, *_):
        if text.startswith("INSERT INTO logged_models "):
            seen.append("created")

    def commit(_connection):
        if seen == ["created", "committed"]:
            seen.append("failed")
            raise OSError(errno.EIO, "Input/output error")
        if seen == ["created"]:
            seen.append("committed")

    listeners = [(Engine, "before_cursor_execute", statement), (Engine, "commit", commit)]
    for listener in listeners:
        event.listen(*listener)
    try:
        with mlflow.start_run(experiment_id=experiment), pytest.raises(MlflowException, match="Input/output error"):
            mks.log_model(model, name="net", prove=False)
    finally:
        for listener in listeners:
            event.remove(*listener)

    found = mlflow.search_logged_models(experiment_ids=[experiment], output_format="list")
    assert [item.status.name for item in found] == ["FAILED"]
    assert "It is complete in" in caplog.text


@pytest.mark.parametrize("mode", ["500 twice", "resets twice"])
def test_upload_that_fails_twice_is_tried_again(model, store, experiment, mode):
    store.mode = mode
    with mlflow.start_run(experiment_id=experiment):
        info = mks.log_model(model, name="net", prove=False)

    assert mlflow.get_logged_model(info.model_id).status.name == "READY"
    folder = next(store.folder.rglob("MLmodel")).parent
    np.testing.assert_array_equal(mks.load_model(folder)(X), model(X))
