"""The graph sidecar: a SavedModel beside the class, proven equal to it, and served without the class."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from mlflow.exceptions import MlflowException
from servers import python_without_package, serving
from stores import local_store

import mlflow_keras_subclass as mks
from mlflow_keras_subclass.manifest import DATA_DIR, GRAPH_DIR, GRAPH_FILE, PROOF_FILE
from mlflow_keras_subclass.trust import PICKLE_VARIABLE, TRUST_VARIABLE

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(5, 4)).astype(np.float32)
IMAGES = RANDOM.normal(size=(3, 12, 12, 3)).astype(np.float32)
TEXTS = np.array(["good film", "bad film", ""], object)
GRAPH = {"engine": "graph"}


class Dense(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.out = keras.layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.out(x)


class Images(keras.Model):
    """Batch statistics, and a dropout that must not be active."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.BatchNormalization()]
        self.ends = [keras.layers.Flatten(), keras.layers.Dropout(0.5), keras.layers.Dense(5)]

    def call(self, images: Any) -> Any:
        for layer in [*self.parts, *self.ends]:
            images = layer(images)
        return images


class Texts(keras.Model):
    """A vocabulary of Keras, and a lookup table and a variable that Keras does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.vectorize = {"words": keras.layers.TextVectorization(output_sequence_length=3, vocabulary=["good", "bad"])}
        self.embed = keras.layers.Embedding(4, 2)
        self.scale = tf.Variable([3.0])

    def call(self, texts: Any) -> Any:
        return keras.ops.mean(self.embed(self.vectorize["words"](texts)), axis=1) * self.scale


class Towers(keras.Model):
    """Two arguments in; a nested dict out, the keys of which are not in alphabetical order."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = keras.layers.Dense(2), keras.layers.Dense(2)

    def call(self, user: Any, item: Any) -> Any:
        users, items = self.user(user), self.item(item)
        return {"score": keras.ops.sum(users * items, axis=-1), "both": (users, items)}


class Ragged(keras.Model):
    def call(self, x: Any) -> Any:
        return tf.RaggedTensor.from_row_lengths(tf.reshape(x, [-1]), tf.fill([tf.shape(x)[0]], 4)), x[:, 0]


class Counting(keras.Model):
    """State that a call changes, and data that it refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x: Any) -> Any:
        self.calls.assign_add(1.0)
        tf.debugging.assert_less(x, 100.0)
        return x + self.calls


class Stepping(Dense):
    def predict_step(self, data: Any) -> Any:
        return self(data[0], training=False) + 10.0


INPUTS: dict[type[keras.Model], tuple[Any, ...]] = {
    Dense: (X,),
    Images: (IMAGES,),
    Texts: (TEXTS,),
    Towers: (X, X[:, ::-1].copy()),
    Ragged: (X,),
    Counting: (X,),
    Stepping: (X,),
}


def named(kind: type[keras.Model]) -> Any:
    return {"user": INPUTS[kind][0], "item": INPUTS[kind][1]} if kind is Towers else INPUTS[kind][0]


def called(kind: type[keras.Model]) -> Any:
    keras.utils.set_random_seed(7)
    model = kind()
    model(*(keras.ops.convert_to_tensor(item) if item.dtype != object else tf.constant(item) for item in INPUTS[kind]))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model, saved with its graph."""
    root = tmp_path_factory.mktemp("graphs")
    for kind in INPUTS:
        mks.save_model(called(kind), root / kind.__name__, export_graph=True)
    return root


def loaded(folder: Path, kind: type[keras.Model], **options: Any) -> Any:
    return mlflow.pyfunc.load_model(str(folder / kind.__name__), model_config=options or None)


def same(found: Any, expected: Any) -> None:
    """Form, dtypes and bits."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    pairs = [item if isinstance(item, list) else [item] for item in (found, expected)]
    for left, right in zip(*pairs, strict=True):
        assert left.dtype == right.dtype
        assert left.tolist() == right.tolist()


# --- without the class


FRESH = """
import json, os, sys
sys.modules["keras"] = None  # whoever imports it fails
unpickled = []
sys.addaudithook(lambda event, args: unpickled.append(args) if event == "pickle.find_class" else None)
import mlflow, numpy as np
folder, names = sys.argv[1], json.loads(sys.argv[2])
with np.load(folder + "/inputs.npz") as stored:
    inputs = {name: stored[name] for name in stored}
unpickled.clear()
for name in names:
    served = mlflow.pyfunc.load_model(f"{folder}/{name}", model_config={"engine": "graph"})
    data = {"user": inputs["Towers_0"], "item": inputs["Towers_1"]} if name == "Towers" else inputs[name + "_0"]
    found = served.predict(data.astype(object) if name == "Texts" else data)
    found = list(found.values()) if isinstance(found, dict) else found if isinstance(found, list) else [found]
    np.savez(f"{folder}/{name}.npz", *[item for item in found if item.dtype != object])
assert not unpickled, unpickled
assert "test_graph" not in sys.modules
"""


def test_graph_is_served_without_the_class_without_keras_and_under_the_strictest_policy(folder: Path) -> None:
    """In a process that may neither unpickle nor run what is stored; bit for bit what the class answers."""
    stored = {f"{kind.__name__}_{number}": item for kind in INPUTS for number, item in enumerate(INPUTS[kind])}
    np.savez(folder / "inputs.npz", **{k: v.astype(str) if v.dtype == object else v for k, v in stored.items()})
    names = json.dumps([kind.__name__ for kind in INPUTS])
    environment = {**os.environ, TRUST_VARIABLE: "never", PICKLE_VARIABLE: "false"}
    command = [sys.executable, "-I", "-c", FRESH, str(folder), names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, done.stderr[-4000:]
    for kind in INPUTS:
        expected = loaded(folder, kind).predict(named(kind))
        expected = list(expected.values()) if isinstance(expected, dict) else expected
        expected = [item for item in (expected if isinstance(expected, list) else [expected]) if item.dtype != object]
        with np.load(folder / f"{kind.__name__}.npz") as found:
            same([found[name] for name in found.files], expected)


@pytest.mark.parametrize("kind", list(INPUTS), ids=lambda kind: kind.__name__)
def test_graph_answers_as_the_class_and_that_is_proven(folder: Path, kind: type[keras.Model]) -> None:
    proof = json.loads((folder / kind.__name__ / DATA_DIR / PROOF_FILE).read_text())

    assert proof["graph"] == "exact"
    same(loaded(folder, kind, **GRAPH).predict(named(kind)), loaded(folder, kind).predict(named(kind)))
    assert "asked by" in (page := (folder / kind.__name__ / "report.html").read_text())
    assert "graph</td>" in page


def test_graph_takes_what_the_class_takes(folder: Path) -> None:
    """Other batch sizes, none, chunks, dtypes; and refuses in the same words."""
    served, graph = (loaded(folder, Dense, **{**options, "batch_size": 3}) for options in ({}, GRAPH))
    for data in (X[:1], X[:0], np.concatenate([X, X])):
        same(graph.predict(data), served.predict(data))
    for data in (np.zeros((2, 9), np.float32), "text", {"x": 1}):
        with pytest.raises(MlflowException) as refused:
            served.predict(data)
        with pytest.raises(MlflowException) as again:
            graph.predict(data)
        assert again.value.message == refused.value.message
    towers = loaded(folder, Towers, **GRAPH)._model_impl
    with pytest.raises(MlflowException, match="missing: item"):
        towers.predict({"user": X})
    same(loaded(folder, Dense, **GRAPH, jit_compile=True, device="cpu").predict(X), served.predict(X))
    with pytest.raises(MlflowException, match=r"gpu:7.*cpu:0"):
        loaded(folder, Dense, **GRAPH, device="gpu:7")


def test_graph_has_the_output_forms_of_a_classifier(tmp_path: Path) -> None:
    model = called(Dense)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    mks.save_model(model, tmp_path / "m", export_graph=True, model_config={**GRAPH, "output": "class"}, prove=False)

    served = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    assert served.predict(X).tolist() == np.asarray(model(X)).argmax(axis=1).tolist()
    assert callable(served.get_raw_model().serve)
    assert not isinstance(served.get_raw_model(), keras.Model)


def test_state_of_the_graph_is_put_back_after_warming_up_and_kept_between_calls(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the class; and an error of the model is a client's or the server's, as with the class."""
    graph = loaded(folder, Counting, **GRAPH)

    np.testing.assert_array_equal(graph.predict(X), X + 2)
    np.testing.assert_array_equal(graph.predict(X), X + 3)
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    with pytest.raises(MlflowException, match=r"does not take these values \(InvalidArgumentError\)") as caught:
        graph.predict(X + 1000)
    assert caught.value.get_http_status_code() == 400


def test_tensorflow_itself_loads_the_graph(folder: Path) -> None:
    """Its signature, which TensorFlow Serving answers by, has the names of the inputs and outputs."""
    towers = tf.saved_model.load(str(folder / "Towers" / DATA_DIR / GRAPH_DIR))
    signature = towers.signatures["serving_default"]
    expected = loaded(folder, Towers).predict(named(Towers))

    assert sorted(signature.structured_input_signature[1]) == ["item", "user"]
    found = signature(user=tf.constant(named(Towers)["user"]), item=tf.constant(named(Towers)["item"]))
    assert sorted(found) == sorted(expected)
    for name in expected:
        assert found[name].numpy().tolist() == expected[name].tolist()
    assert towers.serve(*map(tf.constant, INPUTS[Towers]))["score"].numpy().tolist() == expected["score"].tolist()
    ragged = tf.saved_model.load(str(folder / "Ragged" / DATA_DIR / GRAPH_DIR)).signatures["serving_default"]
    assert sorted(ragged.structured_outputs) == ["output_0_0", "output_0_1", "output_1"]
    assert list(ragged.structured_input_signature[1]) == ["x"]


def test_files_of_the_graph_are_verified(folder: Path, tmp_path: Path) -> None:
    for change in ("changed", "added"):
        shutil.copytree(folder / "Dense", tmp_path / change)
        graph = tmp_path / change / DATA_DIR / GRAPH_DIR
        if change == "added":
            (graph / "assets").mkdir(exist_ok=True)
            (graph / "assets" / "evil.txt").write_text("x")
        else:
            data = bytearray((graph / "saved_model.pb").read_bytes())
            data[100] ^= 1
            (graph / "saved_model.pb").write_bytes(data)
        with pytest.raises(MlflowException, match=rf"{change}.*keras_subclass/graph/|keras_subclass/graph/.*{change}"):
            mlflow.pyfunc.load_model(str(tmp_path / change), model_config=GRAPH)


# --- refused


class Overridden(Dense):
    def predict(self, x: Any, **kwargs: Any) -> Any:
        return super().predict(x, **kwargs) + 100


class Python(Dense):
    def call(self, x: Any) -> Any:
        return tf.numpy_function(lambda value: value * 2, [x], tf.float32)


class Concrete(Dense):
    def call(self, x: Any) -> Any:
        return x * float(tf.reduce_sum(x))


class Methods(Dense):
    def embed(self, x: Any) -> Any:
        return self.out(x) * 2


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Overridden, {"export_graph": True}, "Overridden overrides predict"),
        (Python, {"export_graph": True}, r"runs Python \(tf.py_function or tf.numpy_function\)"),
        (Concrete, {"export_graph": True}, "the call of Concrete cannot be written as a graph with an open batch"),
        (Methods, {"export_graph": True, "pyfunc_predict_fn": "embed"}, "expected predict_fn 'call'.*got 'embed'"),
        (Dense, {"model_config": GRAPH}, "engine 'graph' needs the graph that export_graph=True stores"),
    ],
)
def test_what_has_no_graph_is_refused_when_it_is_logged(
    tmp_path: Path, kind: type[keras.Model], options: dict[str, Any], message: str
) -> None:
    model = kind()
    model(X)

    with pytest.raises(mks.GraphError, match=message):
        mks.save_model(model, tmp_path / "m", prove=False, **options)
    assert not (tmp_path / "m").exists()


def test_graph_of_a_model_that_was_never_called_is_refused(tmp_path: Path) -> None:
    model = Dense()
    model.out.build((None, 4))
    model.built = True

    with pytest.raises(mks.GraphError, match="it is not known what Dense takes"):
        mks.save_model(model, tmp_path / "m", prove=False, export_graph=True)


def test_graph_is_asked_for_where_there_is_none(tmp_path: Path) -> None:
    model = Methods()
    model(X)
    mks.save_model(model, tmp_path / "m", prove=False)

    with pytest.raises(MlflowException, match=r"this model was logged without one\. Log it with export_graph=True"):
        mlflow.pyfunc.load_model(str(tmp_path / "m"), model_config=GRAPH)
    with pytest.raises(MlflowException, match="expected predict_fn 'call' for engine 'graph', got 'embed'"):
        mlflow.pyfunc.load_model(str(tmp_path / "m"), model_config={**GRAPH, "predict_fn": "embed"})


class Drifting(Dense):
    """Reads what is no part of it when it is traced: the graph is not what the class was."""

    def call(self, x: Any) -> Any:
        if not tf.executing_eagerly():
            sys.traces = getattr(sys, "traces", 0) + 1
        return self.out(x) + float(getattr(sys, "traces", 0) == getattr(sys, "drifts_at", -1))


@pytest.mark.parametrize("prove", [True, False, "background"])
def test_graph_that_answers_otherwise_is_not_logged(tmp_path: Path, prove: Any) -> None:
    with local_store(tmp_path, "drifting"), pytest.MonkeyPatch.context() as patch:
        model = Drifting()
        model(X)
        patch.setattr(sys, "traces", 0, raising=False)
        mks.log_model(model, name="counted", export_graph=True, prove=False)
        patch.setattr(sys, "drifts_at", sys.traces, raising=False)  # type: ignore[attr-defined]
        patch.setattr(sys, "traces", 0, raising=False)

        with pytest.raises(mks.ProofError, match=r"Drifting: the graph.*\n.*graph: output 0 differs by up to 1"):
            mks.log_model(model, name="drifting", export_graph=True, prove=prove)
        assert [item.name for item in mlflow.search_logged_models(output_format="list")] == ["counted"]


# --- a real server


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A logged model that says itself that its graph is served."""
    with local_store(tmp_path_factory.mktemp("store"), "graphs"):
        info = mks.log_model(called(Towers), name="towers", export_graph=True, model_config=GRAPH)
        yield mlflow.artifacts.download_artifacts(info.model_uri)


def test_server_answers_by_the_graph_under_the_strictest_policy(logged: str, tmp_path: Path, folder: Path) -> None:
    python = python_without_package(tmp_path / "venv")
    environment = {TRUST_VARIABLE: "never", PICKLE_VARIABLE: "false"}
    with serving(logged, tmp_path, python=python, environment=environment) as server:
        status, answer = server.ask({"inputs": {name: item.tolist() for name, item in named(Towers).items()}})
        assert status == 200
        expected = loaded(folder, Towers).predict(named(Towers))
        for name, item in expected.items():
            np.testing.assert_array_equal(np.asarray(answer["predictions"][name], np.float32), item)
        status, answer = server.ask({"inputs": {"user": X.tolist()}})
        assert (status, answer["message"][:40]) == (400, "Failed to predict data '{'user': array([")
        assert "Model is missing inputs ['item']" in answer["message"]


def test_card_lists_the_graph(logged: str) -> None:
    card = Path(logged, "README.md").read_text()

    assert f"`{DATA_DIR}/{GRAPH_DIR}`" in card
    assert f"`{DATA_DIR}/{GRAPH_FILE}`" in card
