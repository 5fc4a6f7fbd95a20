"""The proof at log time: which routes are tried, what is recorded, what it refuses, and how a load asks again."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from stores import local_store

import mlflow_keras_subclass as mks
from mlflow_keras_subclass import trust
from mlflow_keras_subclass.manifest import DATA_DIR, FINGERPRINT_FILE, PROOF_FILE

X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")

NET = """
import dataclasses
import keras

class Forgetful:
    def __init__(self, value=0.0):
        self.value = value
    def __reduce__(self):
        return Forgetful, ()

FACTOR = Forgetful(5.0)

class Plain(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)
    def call(self, x):
        return self.dense(x)

class Scaled(Plain):
    def call(self, x):
        return self.dense(x) * FACTOR.value

class Open(Plain):
    head = None
    def call(self, x):
        return self.dense(x) if self.head is None else self.head(self.dense(x))

@dataclasses.dataclass(frozen=True)
class Settings:
    factor: float

class Described(Plain):
    def __init__(self, settings):
        super().__init__()
        self.settings = settings
    def call(self, x):
        return self.dense(x) * self.settings.factor

class Reads(Plain):
    def __init__(self, path):
        super().__init__()
        with open(path) as file:
            self.scale = float(file.read())
    def call(self, x):
        return self.dense(x) * self.scale

class Names(Plain):
    def __init__(self):
        super().__init__()
        self.names = keras.layers.StringLookup(vocabulary=["a", "é"], invert=True)
    def call(self, x):
        return self.names(keras.ops.cast(keras.ops.argmax(self.dense(x), axis=-1), "int64"))

class Custom(keras.layers.Layer):
    def __init__(self, make):
        super().__init__()
        self.inner = make()
    def call(self, x):
        return self.inner(x)
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("source")
    (folder / "proof_net.py").write_text(NET)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("proof_net")


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with local_store(tmp_path_factory.mktemp("tracking"), "proof"):
        yield


def called(model: Any) -> Any:
    model(X)
    return model


def not_described(net: Any) -> Any:
    """A layer put on afterwards that takes a lambda, which has no data form."""
    model = net.Open()
    model.head = net.Custom(lambda: keras.layers.Dense(2))
    return called(model)


def read(path: Path, name: str) -> Any:
    return json.loads((path / DATA_DIR / name).read_text())


def test_both_routes_are_proven_and_both_entry_points_compared(net: Any, tmp_path: Path) -> None:
    model = called(net.Plain())
    mks.save_model(model, tmp_path / "m", input_example=X)

    proof = read(tmp_path / "m", PROOF_FILE)
    assert proof["routes"]["cloudpickle"] == proof["routes"]["source"] == ""
    assert proof["entry_points"] == {"call": "exact", "served": "exact"}
    assert (proof["layers"], proof["variables"]) == (2, 2)
    assert proof["files_read"] == []
    assert read(tmp_path / "m", FINGERPRINT_FILE)["probe"] == "input_example"


def test_attributes_of_the_users_own_classes_are_proven_by_both_routes(net: Any, tmp_path: Path) -> None:
    mks.save_model(called(net.Described(net.Settings(3.0))), tmp_path / "m")

    routes = read(tmp_path / "m", PROOF_FILE)["routes"]
    assert routes["cloudpickle"] == routes["source"] == ""


def test_files_that_the_constructor_reads_are_told(net: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scale = tmp_path / "scale.txt"
    scale.write_text("3")
    mks.save_model(called(net.Reads(str(scale))), tmp_path / "m")

    assert f"Reads: its constructor reads {scale}, which must be" in caplog.text
    assert read(tmp_path / "m", PROOF_FILE)["files_read"] == [str(scale)]


def test_a_model_that_returns_strings_is_proven_too(net: Any, tmp_path: Path) -> None:
    """TensorFlow answers in bytes, which are stored as text."""
    model = net.Names()
    model(X)
    mks.save_model(model, tmp_path / "m", export_graph=True)

    proof = read(tmp_path / "m", PROOF_FILE)
    assert (proof["entry_points"], proof["graph"]) == ({"call": "exact", "served": "exact"}, "exact")


def test_the_route_that_brings_the_model_back_is_the_one_that_a_load_takes(net: Any, tmp_path: Path) -> None:
    """The pickle loses the factor, the source does not; nobody had to choose."""
    model = called(net.Scaled())
    mks.save_model(model, tmp_path / "m")

    routes = read(tmp_path / "m", PROOF_FILE)["routes"]
    assert "call: output 0 differs by up to" in routes["cloudpickle"]
    assert routes["source"] == ""
    assert np.array_equal(mks.load_model(tmp_path / "m", verify=True)(X), model(X))


def test_a_forced_route_that_does_not_bring_the_model_back_is_refused(net: Any, tmp_path: Path) -> None:
    with pytest.raises(mks.ProofError, match=r"Scaled was written but does not come back.*\n.*output 0 differs"):
        mks.save_model(called(net.Scaled()), tmp_path / "m", serialization_format="cloudpickle")
    assert list(tmp_path.iterdir()) == []


def test_verify_finds_a_model_that_answers_differently(net: Any, tmp_path: Path) -> None:
    """Not proven, and wrong: the load alone cannot know, asking again tells."""
    mks.save_model(called(net.Scaled()), tmp_path / "m", serialization_format="cloudpickle", prove=False)

    assert not (tmp_path / "m" / DATA_DIR / PROOF_FILE).exists()
    mks.load_model(tmp_path / "m")
    with pytest.raises(mks.RebuildError, match="call: output 0 differs by up to"):
        mks.load_model(tmp_path / "m", verify=True)


def test_answers_from_elsewhere_are_compared_with_a_tolerance(net: Any, tmp_path: Path) -> None:
    """Another processor sums in another order: bits may differ, values may not."""
    mks.save_model(called(net.Plain()), tmp_path / "m", prove=False)
    record = tmp_path / "m" / DATA_DIR / FINGERPRINT_FILE
    record.write_text(record.read_text().replace(read(tmp_path / "m", FINGERPRINT_FILE)["processor"], "another"))
    resealed(tmp_path / "m")

    verified = trust.verify(tmp_path / "m", trust.TrustPolicy())
    model = mks.model_dir.rebuild(verified)
    assert mks.model_dir.verify_predictions(verified, model) == {"call": "close", "served": "close"}
    model.dense.bias.assign_add([0.01, 0.0])
    with pytest.raises(mks.RebuildError, match=r"differs by up to 0\.01"):
        mks.model_dir.verify_predictions(verified, model)


def resealed(path: Path) -> None:
    """Make the manifest fit a file that the test changed."""
    import hashlib

    manifest = path / DATA_DIR / "manifest.json"
    value = json.loads(manifest.read_text())
    for entry in value["files"]:
        data = (path / entry["path"]).read_bytes()
        entry.update(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    manifest.write_text(json.dumps(value))


def test_background_proof_marks_the_logged_model(net: Any) -> None:
    good = mks.log_model(called(net.Plain()), name="good", prove="background")
    bad = mks.log_model(not_described(net), name="bad", prove="background")
    for thread in threading.enumerate():
        if thread.name == "mlflow-keras-subclass-proof":
            thread.join(120)

    client = mlflow.MlflowClient()
    assert client.get_logged_model(good.model_id).tags["mlflow_keras_subclass.proof"] == "proven"
    assert client.get_logged_model(bad.model_id).tags["mlflow_keras_subclass.proof"].startswith("failed: Open was")


def test_tag_says_whether_the_model_was_proven(net: Any) -> None:
    client = mlflow.MlflowClient()
    for prove, expected in ((True, "proven"), (False, "not tried")):
        info = mks.log_model(called(net.Plain()), name="tagged", prove=prove)
        assert client.get_logged_model(info.model_id).tags["mlflow_keras_subclass.proof"] == expected


def test_background_needs_a_logged_model(net: Any, tmp_path: Path) -> None:
    with pytest.raises(mks.KerasSubclassError, match="save_model logs none"):
        mks.save_model(called(net.Plain()), tmp_path / "m", prove="background")
    with pytest.raises(mks.KerasSubclassError, match="prove: expected True, False or 'background', got 'maybe'"):
        mks.save_model(called(net.Plain()), tmp_path / "m", prove="maybe")
