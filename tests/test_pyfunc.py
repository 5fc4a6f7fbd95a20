"""``predict`` through MLflow and its scoring server: inputs and outputs of every kind, devices, chunks, threads."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import sys
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import request_fuzzing
import tensorflow as tf
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import scoring_server
from mlflow.types.schema import ColSpec, Schema
from servers import Server, python_without_package, serving
from stores import local_store

import mlflow_keras_subclass as mks
from mlflow_keras_subclass.artifacts import loader
from mlflow_keras_subclass.serving_options import DEVICE_VARIABLE

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(5, 4)).astype(np.float32)
IMAGES = RANDOM.integers(0, 255, size=(3, 4, 4, 1)).astype(np.uint8)
TEXTS = np.array(["good film", "bad film", ""], object)
HOUSE = {"age": np.array([[1.0], [2.0]], np.float32), "rooms": np.array([3, 4])}
NESTED = {"a": {"b": X[:2]}, "c": X[:2, :1]}

Codes = namedtuple("Codes", ["mean", "scale"])


class Dense(keras.Model):
    """(None, 4) to (None, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.out = keras.layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.out(x)


class Images(keras.Model):
    """uint8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.out = keras.layers.Flatten(), keras.layers.Dense(2)

    def call(self, images: Any) -> Any:
        return self.out(self.flat(keras.ops.cast(images, "float32") / 255.0))


class Texts(keras.Model):
    """Strings to numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.vectorize = keras.layers.TextVectorization(output_sequence_length=3, vocabulary=["good", "bad"])
        self.embed = keras.layers.Embedding(4, 2)

    def call(self, texts: Any) -> Any:
        return keras.ops.mean(self.embed(self.vectorize(texts)), axis=1)


class Words(keras.Model):
    """Named strings to their places in a vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.look = keras.layers.StringLookup(vocabulary=["good", "bad"])

    def call(self, inputs: Any) -> Any:
        return self.look(inputs["texts"])


class House(keras.Model):
    """Named scalar inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.out = keras.layers.Dense(1)

    def call(self, inputs: Any) -> Any:
        return self.out(inputs["age"]) + keras.ops.cast(inputs["rooms"], "float32")[:, None]


class Towers(keras.Model):
    """Two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = keras.layers.Dense(2), keras.layers.Dense(2)

    def call(self, user: Any, item: Any) -> Any:
        return keras.ops.sum(self.user(user) * self.item(item), axis=-1)


class Nested(keras.Model):
    """A nested dict in, a nested dict out."""

    def call(self, inputs: Any) -> Any:
        return {"sum": inputs["a"]["b"] + inputs["c"], "both": (inputs["a"]["b"], inputs["c"])}


class Frames(keras.Model):
    """Two named inputs, one of rank 3."""

    def call(self, inputs: Any) -> Any:
        return keras.ops.sum(inputs["a"], axis=2) + inputs["b"]


class Pair(keras.Model):
    """A tuple out."""

    def call(self, x: Any) -> Any:
        return x * 2, keras.ops.sum(x, axis=1)


class Named(keras.Model):
    """A named tuple out."""

    def call(self, x: Any) -> Any:
        return Codes(x * 2, x * 3)


class Similarity(keras.Model):
    """Compares every row with every row, so that cutting the input would change the answer."""

    def call(self, x: Any) -> Any:
        return keras.ops.matmul(x, keras.ops.transpose(x))


class Overridden(Dense):
    """A predict of its own."""

    traced: ClassVar[list[Any]] = []

    def call(self, x: Any) -> Any:
        self.traced.append(x.shape[0])
        return super().call(x)

    def predict(self, x: Any, **kwargs: Any) -> Any:
        return super().predict(x, **kwargs) + 100


CASES: dict[str, tuple[type[keras.Model], tuple[Any, ...]]] = {
    "dense": (Dense, (X,)),
    "images": (Images, (IMAGES,)),
    "texts": (Texts, (TEXTS,)),
    "house": (House, (HOUSE,)),
    "towers": (Towers, (X[:2], X[2:4])),
    "nested": (Nested, (NESTED,)),
    "pair": (Pair, (X,)),
    "named": (Named, (X,)),
    "similarity": (Similarity, (X,)),
    "overridden": (Overridden, (X,)),
}


class Saved:
    """A model in memory and where it was saved."""

    def __init__(self, name: str, root: Path) -> None:
        kind, self.inputs = CASES[name]
        keras.utils.set_random_seed(3)
        self.model = kind()
        self.expected = keras.tree.map_structure(keras.ops.convert_to_numpy, self.model(*self._tensors()))
        self.path = root / name
        mks.save_model(self.model, self.path)
        self.pyfunc = mlflow.pyfunc.load_model(str(self.path))

    def _tensors(self) -> Any:
        return keras.tree.map_structure(keras.ops.convert_to_tensor, self.inputs)

    def serve(self, body: Any, content_type: str = "application/json") -> Any:
        """What the scoring server answers; its own code, without the socket."""
        data = json.dumps(body) if content_type == "application/json" else body
        schema = self.pyfunc.metadata.get_input_schema()
        return json.loads(scoring_server.invocations(data, content_type, self.pyfunc, schema).response)["predictions"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each case is saved and loaded once, when a test first asks for it."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def get(name: str) -> Saved:
        if name not in made:
            made[name] = Saved(name, root)
        return made[name]

    return get


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=1e-5, atol=1e-6)


# --- what goes in


@pytest.mark.parametrize("name", ["dense", "images", "texts"])
def test_array_in_array_out(saved: Any, name: str) -> None:
    case = saved(name)
    found = case.pyfunc.predict(case.inputs[0])

    assert isinstance(found, np.ndarray)
    assert found.dtype == case.expected.dtype
    close(found, case.expected)


def test_dict_of_named_arrays(saved: Any) -> None:
    case = saved("house")

    close(case.pyfunc.predict(HOUSE), case.expected)
    close(saved("towers").pyfunc.predict({"user": X[:2], "item": X[2:4]}), saved("towers").expected)


def test_frame_of_scalar_columns(saved: Any) -> None:
    """Named inputs come from the columns of their names, an unnamed one from all columns in order."""
    close(saved("house").pyfunc.predict(pd.DataFrame({"rooms": [3, 4], "age": [1.0, 2.0]})), saved("house").expected)
    close(saved("dense").pyfunc.predict(pd.DataFrame(X)), saved("dense").expected)


def test_frame_of_lists_is_reshaped(saved: Any) -> None:
    flat = pd.DataFrame({"image": [image.ravel().tolist() for image in IMAGES]})

    close(saved("images").pyfunc.predict(flat), saved("images").expected)


@pytest.mark.parametrize("signature", [None, False], ids=["signature", "no signature"])
def test_frame_of_lists_for_several_inputs_of_higher_rank(tmp_path: Path, signature: Any) -> None:
    """A DataFrame comes back as one where no signature says otherwise, an array as an array in any case."""
    model = Frames()
    data = {"a": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "b": np.arange(6, dtype=np.float32).reshape(2, 3)}
    expected = np.asarray(model({key: tf.constant(value) for key, value in data.items()}))
    mks.save_model(model, tmp_path / "m", signature=signature, prove=False)
    served = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    frame = pd.DataFrame({key: [row.ravel().tolist() for row in value] for key, value in data.items()})

    if signature is False:
        frame.index = [7, 9]  # MLflow's check of a signature looks for a row 0

    arrays, table = served.predict(data), served.predict(frame)

    assert isinstance(arrays, np.ndarray)
    close(arrays, expected)
    assert isinstance(table, np.ndarray if signature is None else pd.DataFrame)
    if signature is False:
        assert table.index.tolist() == [7, 9]
    close(table, expected)


def test_without_a_signature_everything_is_taken_too(saved: Any, tmp_path: Path) -> None:
    """float64, lists and nested dicts reach the model; a DataFrame comes back as one with its index."""
    mks.save_model(saved("dense").model, tmp_path / "m", signature=False)
    mks.save_model(saved("nested").model, tmp_path / "n", signature=False)
    served = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    frame = pd.DataFrame(X.astype(np.float64), index=list("abcde"))

    close(served.predict(X.astype(np.float64)), saved("dense").expected)
    close(served.predict(X.tolist()), saved("dense").expected)
    found = served.predict(frame)
    assert isinstance(found, pd.DataFrame)
    assert found.index.tolist() == list("abcde")
    close(found, saved("dense").expected)
    close(mlflow.pyfunc.load_model(str(tmp_path / "n")).predict(NESTED)["sum"], saved("nested").expected["sum"])
    with pytest.raises(MlflowException, match=r"expected the shape \(None, 4\), got \(2, 9\)"):
        served.predict(np.zeros((2, 9)))


@pytest.mark.parametrize("data", ["text", 3, {"x": 1}, pd.DataFrame({"x": ["a"]}), np.zeros((2, 4, 4), np.float32)])
def test_wrong_data_is_a_client_error(saved: Any, data: Any) -> None:
    with pytest.raises(MlflowException):
        saved("dense").pyfunc.predict(data)


def test_empty_batch(saved: Any) -> None:
    assert saved("dense").pyfunc.predict(np.zeros((0, 4), np.float32)).shape == (0, 3)


# --- what comes out


def test_outputs_keep_their_structure(saved: Any) -> None:
    """A tuple is a list of arrays, a named tuple a dict, and nesting is flattened by name."""
    pair, named, nested = (saved(name).pyfunc for name in ("pair", "named", "nested"))

    assert isinstance(pair.predict(X), list)
    for found, expected in zip(pair.predict(X), saved("pair").expected, strict=True):
        close(found, expected)
    close(named.predict(X)["scale"], X * 3)
    found = nested.predict({"a_b": X[:2], "c": X[:2, :1]})
    assert list(found) == ["sum", "both_0", "both_1"] or set(found) == {"sum", "both_0", "both_1"}
    close(found["both_1"], X[:2, :1])


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("dense", [None]),
        ("pair", ["output_0", "output_1"]),
        ("named", ["mean", "scale"]),
        ("nested", ["both_0", "both_1", "sum"]),
    ],
)
def test_signature_names_the_outputs(saved: Any, name: str, outputs: list[str | None]) -> None:
    schema = Model.load(str(saved(name).path)).signature.outputs

    assert sorted([item.name for item in schema.inputs], key=str) == outputs


def test_an_overridden_predict_is_used(saved: Any) -> None:
    close(saved("overridden").pyfunc.predict(X), saved("overridden").expected + 100)


def test_raw_model_is_the_users(saved: Any) -> None:
    raw = saved("dense").pyfunc.get_raw_model()

    assert type(raw).__qualname__ == "Dense"
    close(raw(X), saved("dense").expected)
    assert saved("dense").pyfunc._model_impl.unwrap() is raw


def test_predict_shows_its_signature_to_mlflow(saved: Any) -> None:
    """Without ``params`` in it, MLflow drops them with a warning."""
    signature = inspect.signature(saved("dense").pyfunc._model_impl.predict)

    assert list(signature.parameters) == ["data", "params"]


# --- serving


@pytest.mark.parametrize("key", ["inputs", "instances"])
def test_server_takes_tensors(saved: Any, key: str) -> None:
    close(saved("dense").serve({key: X.tolist()}), saved("dense").expected)
    close(saved("images").serve({key: IMAGES.tolist()}), saved("images").expected)
    close(saved("texts").serve({key: TEXTS.tolist()}), saved("texts").expected)


@pytest.mark.parametrize("name", ["dense", "house"])
def test_server_takes_the_example_that_mlflow_makes_of_the_input_example(saved: Any, tmp_path: Path, name: str) -> None:
    case = saved(name)
    mks.save_model(case.model, tmp_path / "m", input_example=case.inputs[0], prove=False)
    example = Model.load(str(tmp_path / "m")).get_serving_input(str(tmp_path / "m"))

    close(case.serve(json.loads(example)), case.expected)


def test_server_takes_named_tensors(saved: Any) -> None:
    """As columns under ``inputs``, as rows under ``instances``."""
    columns = {"age": [[1.0], [2.0]], "rooms": [3, 4]}
    rows = [{"age": [1.0], "rooms": 3}, {"age": [2.0], "rooms": 4}]

    close(saved("house").serve({"inputs": columns}), saved("house").expected)
    close(saved("house").serve({"instances": rows}), saved("house").expected)


def test_server_takes_named_strings_as_rows(tmp_path: Path) -> None:
    """MLflow makes an array without dimensions of each string; found by ``make test-fuzz-server``."""
    model = Words()
    model({"texts": tf.constant(["good", "x"])})
    mks.save_model(model, tmp_path / "m", prove=False)
    served = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    body = json.dumps({"instances": [{"texts": "bad"}, {"texts": "good"}]})
    result = scoring_server.invocations(body, "application/json", served, served.metadata.get_input_schema())

    assert json.loads(result.response)["predictions"] == [2, 1]


def test_server_takes_frames(saved: Any) -> None:
    frame = pd.DataFrame(X.astype(np.float64), columns=list("abcd"))
    house = pd.DataFrame({"age": [1.0, 2.0], "rooms": [3, 4]})

    for name, data in (("dense", frame), ("house", house)):
        close(saved(name).serve({"dataframe_split": data.to_dict(orient="split")}), saved(name).expected)
        close(saved(name).serve({"dataframe_records": data.to_dict(orient="records")}), saved(name).expected)


def test_server_answers_json_for_every_output(saved: Any) -> None:
    """Strict JSON: no NaN, no numpy."""
    payload = {"inputs": X.tolist()}

    close(saved("pair").serve(payload)[1], saved("pair").expected[1])
    close(saved("named").serve(payload)["mean"], X * 2)
    close(saved("nested").serve({"inputs": {"a_b": X[:2].tolist(), "c": X[:2, :1].tolist()}})["both_0"], X[:2])


def test_numbers_that_json_lacks_are_null_when_serving(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    found = saved("pair").serve({"inputs": [[1e38, 3e38, 3e38, 3e38]]})

    assert found[0][0][1] is None
    assert found[1] == [None]


@pytest.fixture(scope="module")
def table(saved: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The dense model with signatures of columns, named and not."""
    root, model = tmp_path_factory.mktemp("tables"), saved("dense").model
    frame = pd.DataFrame(X.astype(np.float64), columns=list("abcd"))
    mks.save_model(model, root / "named", input_example=frame)
    mks.save_model(model, root / "unnamed", signature=ModelSignature(inputs=Schema([ColSpec("double")] * 4)))
    return {name: mlflow.pyfunc.load_model(str(root / name)) for name in ("named", "unnamed")} | {
        "frame": frame,
        "path": root / "named",
    }


@pytest.mark.parametrize("kind", ["named", "unnamed"])
@pytest.mark.parametrize("form", ["csv", "dataframe_split", "dataframe_records", "inputs", "instances"])
def test_server_with_a_signature_of_columns(saved: Any, table: dict[str, Any], kind: str, form: str) -> None:
    """A DataFrame as the example makes the server take CSV; unnamed columns take every format."""
    frame, served = table["frame"], table[kind]
    if form == "csv":
        body, content_type = frame.to_csv(index=False), "text/csv"
    else:
        orient = {"dataframe_split": "split", "dataframe_records": "records"}.get(form)
        value = frame.to_dict(orient=orient) if orient else frame.to_numpy().tolist()
        if kind == "named" and orient is None:
            value = frame.to_dict(orient="list" if form == "inputs" else "records")
        body, content_type = json.dumps({form: value}), "application/json"
    result = scoring_server.invocations(body, content_type, served, served.metadata.get_input_schema())

    rows = json.loads(result.response)["predictions"]
    close([list(row.values()) for row in rows], saved("dense").expected)


def test_server_refuses_csv_for_tensors_as_mlflow_does(saved: Any) -> None:
    """If this fails, MLflow has learned it, and the documentation should say so."""
    with pytest.raises(MlflowException, match="TensorSpec only supports numpy types"):
        saved("dense").serve("a,b,c,d\n1,2,3,4\n", "text/csv")


def test_signature_of_columns_widens_numbers(table: dict[str, Any]) -> None:
    """With columns of doubles, float64 arrays and DataFrames are taken in process too."""
    close(table["unnamed"].predict(X.astype(np.float64)), table["unnamed"].predict(pd.DataFrame(X)))


# --- options


def test_large_inputs_are_cut_and_give_the_same(saved: Any, tmp_path: Path) -> None:
    mks.save_model(saved("dense").model, tmp_path / "d", model_config={"batch_size": 7})
    mks.save_model(saved("pair").model, tmp_path / "p", model_config={"batch_size": 7})
    data = RANDOM.normal(size=(100, 4)).astype(np.float32)
    cut, pair = (mlflow.pyfunc.load_model(str(tmp_path / name)).predict(data) for name in "dp")

    close(cut, saved("dense").pyfunc.predict(data))
    close(pair[0], data * 2)
    close(pair[1], data.sum(axis=1))


@pytest.mark.parametrize("size", [2, 5, 4])
def test_models_that_compare_rows_are_not_cut(saved: Any, tmp_path: Path, size: int) -> None:
    mks.save_model(saved("similarity").model, tmp_path / "m", model_config={"batch_size": size})
    data = RANDOM.normal(size=(8, 4)).astype(np.float32)

    close(mlflow.pyfunc.load_model(str(tmp_path / "m")).predict(data), data @ data.T)


def test_batch_size_as_a_parameter_of_one_call(saved: Any, tmp_path: Path) -> None:
    mks.save_model(saved("dense").model, tmp_path / "m", input_example=(X, {"batch_size": 2}))
    served = mlflow.pyfunc.load_model(str(tmp_path / "m"))

    close(served.predict(X, params={"batch_size": 3}), saved("dense").expected)
    with pytest.raises(MlflowException, match="batch_size must be a whole number from 1, or null, got -1"):
        served.predict(X, params={"batch_size": -1})


def test_declared_options_can_be_changed_at_load(saved: Any) -> None:
    served = mlflow.pyfunc.load_model(str(saved("dense").path), model_config={"device": "cpu", "jit_compile": True})

    close(served.predict(X), saved("dense").expected)


def test_absent_device_is_an_error_that_names_those_present(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MlflowException, match=r"gpu:7.*cpu:0"):
        mlflow.pyfunc.load_model(str(saved("dense").path), model_config={"device": "gpu:7"})
    monkeypatch.setenv(DEVICE_VARIABLE, "gpu:6")
    with pytest.raises(MlflowException, match=r"gpu:6.*cpu:0"):
        mlflow.pyfunc.load_model(str(saved("dense").path))


def test_pickles_can_be_forbidden_for_a_server(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")

    with pytest.raises(MlflowException, match="custom_objects"):
        mlflow.pyfunc.load_model(str(saved("dense").path))


def test_threads_get_their_own_answers(saved: Any) -> None:
    served = saved("dense").pyfunc
    data = [RANDOM.normal(size=(1 + number % 5, 4)).astype(np.float32) for number in range(200)]
    expected = [served.predict(item) for item in data]

    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(served.predict, data), expected, strict=True):
            close(found, wanted)


def test_batch_sizes_do_not_retrace(saved: Any, tmp_path: Path) -> None:
    """The call is traced once, at load."""

    class Counted(keras.Model):
        calls = 0

        def call(self, x: Any) -> Any:
            type(self).calls += 1
            return x * 2

    model = Counted()
    model(X)
    mks.save_model(model, tmp_path / "m")
    served = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    kind = type(served.get_raw_model())
    before = kind.calls
    for rows in range(1, 40):
        served.predict(np.zeros((rows, 4), np.float32))

    assert kind.calls == before


# --- what is called, and in which form it answers


class Classifier(keras.Model):
    """Logits of three classes, an embedding, and both as methods."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = keras.layers.Dense(2, activation="tanh"), keras.layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.out(self.hidden(x))

    def embed(self, x: Any, training: bool = True) -> Any:
        assert not training
        return {"embedding": self.hidden(x)}

    @tf.function
    def loud(self, x: Any) -> Any:
        return self(x) * 2.0


@pytest.fixture(scope="module")
def classifier() -> Any:
    model = Classifier()
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(X, np.array([0, 1, 2, 0, 1]), verbose=0)
    return model


@pytest.mark.parametrize("name", ["embed", "loud"])
def test_another_method_is_served_and_its_output_is_in_the_signature(
    classifier: Any, tmp_path: Path, name: str
) -> None:
    mks.save_model(classifier, tmp_path / "m", pyfunc_predict_fn=name)
    served = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    found = served.predict(X)

    outputs = Model.load(str(tmp_path / "m")).signature.outputs
    if name == "embed":
        close(found["embedding"], classifier.hidden(X))
        assert outputs.input_names() == ["embedding"]
    else:
        close(found, classifier(X) * 2)


def test_forms_of_a_classifier(classifier: Any, tmp_path: Path) -> None:
    """Declared when it is logged, changed when it is loaded, and changed in one call."""
    logits = np.asarray(classifier(X))
    example = (X, {"output": "class"})
    mks.save_model(classifier, tmp_path / "m", model_config={"output": "class"}, input_example=example)
    signature = Model.load(str(tmp_path / "m")).signature
    served = mlflow.pyfunc.load_model(str(tmp_path / "m"))

    assert served.predict(X).tolist() == logits.argmax(axis=1).tolist()
    assert [(item.type, item.shape) for item in signature.outputs.inputs] == [(np.dtype("int64"), (-1,))]
    close(served.predict(X, params={"output": "raw"}), logits)
    proba = mlflow.pyfunc.load_model(str(tmp_path / "m"), model_config={"output": "proba"})
    close(proba._model_impl.predict(X).sum(axis=1), np.ones(5))


def test_a_classifier_can_be_evaluated_by_mlflow(classifier: Any, tmp_path: Path) -> None:
    # Nearly an odd function: a row and its negative are of two classes, and the evaluation needs two.
    both = np.concatenate([X, -X])
    frame = pd.DataFrame(both.astype(np.float64), columns=list("abcd"))
    mks.save_model(classifier, tmp_path / "m", model_config={"output": "class"}, input_example=frame)
    labels = np.asarray(classifier(both)).argmax(axis=1)
    with local_store(tmp_path, "evaluation"):
        result = mlflow.models.evaluate(
            str(tmp_path / "m"),
            frame.assign(label=labels),
            targets="label",
            model_type="classifier",
            evaluator_config={"log_explainer": False, "log_model_explainability": False},
        )

    assert result.metrics["accuracy_score"] == 1.0
    found = mlflow.pyfunc.load_model(str(tmp_path / "m")).predict(frame.set_index(pd.Index(list("qrstuvwxyz"))))
    assert (found.tolist(), found.index.tolist()) == (labels.tolist(), list("qrstuvwxyz"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pyfunc_predict_fn": "encode"}, "expected the name of a method of Classifier, got 'encode'"),
        ({"pyfunc_predict_fn": "hidden_size"}, "expected the name of a method"),
        ({"pyfunc_predict_fn": "evaluate"}, "Classifier.evaluate raised"),
        (
            {"pyfunc_predict_fn": "embed", "model_config": {"output": "class"}},
            "returns one array of scores, got a dict",
        ),
        ({"pyfunc_predict_fn": "embed", "model_config": {"predict_fn": "loud"}}, "Give one of them"),
    ],
)
def test_what_could_not_be_served_is_refused_when_it_is_logged(
    classifier: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(mks.KerasSubclassError, match=message):
        mks.save_model(classifier, tmp_path / "m", prove=False, **options)
    assert not (tmp_path / "m").exists()


class Counting(keras.Model):
    """State that a call changes, and data that it refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x: Any) -> Any:
        self.calls.assign_add(1.0)
        tf.debugging.assert_less(x, 100.0)
        return x + self.calls


def test_warming_up_leaves_no_trace(tmp_path: Path) -> None:
    model = Counting()
    model(X)
    mks.save_model(model, tmp_path / "m", prove=False)
    served = mlflow.pyfunc.load_model(str(tmp_path / "m"))

    close(served.predict(X), X + 2)


def test_own_predict_is_quiet_and_is_not_generalised_by_warming_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No progress bar for every request; Keras computes with an open batch size only what came in several sizes."""
    model = Overridden()
    model(X)
    mks.save_model(model, tmp_path / "m", prove=False)
    served = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    traced = served.get_raw_model().traced
    traced.clear()
    served.predict(X)

    assert traced == []
    assert capsys.readouterr().out == ""


def test_error_of_the_model_reaches_a_client_without_its_insides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In process it is the model's own error."""
    model = Counting()
    model(X)
    mks.save_model(model, tmp_path / "m", prove=False)
    served = mlflow.pyfunc.load_model(str(tmp_path / "m"))

    with pytest.raises(tf.errors.InvalidArgumentError):
        served.predict(X + 1000)
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    with pytest.raises(MlflowException, match=r"does not take these values \(InvalidArgumentError\)") as caught:
        served.predict(X + 1000)
    assert caught.value.get_http_status_code() == 400
    assert "assert_less" in caplog.text
    monkeypatch.setattr(served._model_impl, "_call", None)
    with pytest.raises(MlflowException, match=r"failed on data that fits its inputs \(TypeError\)") as caught:
        served.predict(X)
    assert caught.value.get_http_status_code() == 500


# --- Spark


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A local session whose Python workers find this package."""
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("Spark needs Java")
    sql = pytest.importorskip("pyspark.sql")
    with pytest.MonkeyPatch.context() as patch:
        package = str(Path(mks.__file__).parent.parent)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])))
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        builder = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
        session = builder.config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("spark"))).getOrCreate()
        yield session
        session.stop()


def test_spark_udf_with_an_array_column_and_with_scalar_columns(saved: Any, table: dict[str, Any], spark: Any) -> None:
    """A tensor signature takes one array column, a signature of columns several scalar ones."""
    rows = [(x.tolist(), *map(float, x)) for x in X]
    frame = spark.createDataFrame(rows, "x array<float>, a double, b double, c double, d double")
    paths = {("x",): saved("dense").path, ("a", "b", "c", "d"): table["path"]}
    for columns, path in paths.items():
        udf = mlflow.pyfunc.spark_udf(spark, str(path), result_type="array<float>", env_manager="local")
        close([row[0] for row in frame.select(udf(*columns)).collect()], saved("dense").expected)


# --- the loader that travels with the model


def loader_of(path: Path) -> str:
    return str(Model.load(str(path)).flavors["python_function"]["loader_module"])


def test_bundled_loader_serves_although_this_package_was_imported_before(saved: Any) -> None:
    """Neither an installed copy takes its place, nor does it note constructions a second time."""
    before = keras.Model.__new__, keras.layers.Layer.__new__
    served, name = saved("dense").pyfunc, loader_of(saved("dense").path)

    assert type(served._model_impl).__module__ == f"{name}.pyfunc"
    assert (saved("dense").path / "code" / name / "pyfunc.py").is_file()
    assert (keras.Model.__new__, keras.layers.Layer.__new__) == before
    assert not any(module.startswith(f"{name}.flavor") for module in sys.modules)


def test_each_model_has_its_own_loader(saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model logged with another release of this package, in one process with one of this release."""
    package = tmp_path / "package"
    shutil.copytree(Path(mks.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    text = (package / "pyfunc.py").read_text(encoding="utf-8")
    (package / "pyfunc.py").write_text(text.replace("return outputs\n", "return outputs + 1000\n"), encoding="utf-8")
    monkeypatch.setattr(loader, "_FOLDER", package)
    loader.bundle.cache_clear()
    try:
        mks.save_model(saved("dense").model, tmp_path / "other")
    finally:
        loader.bundle.cache_clear()
    other = mlflow.pyfunc.load_model(str(tmp_path / "other"))

    assert loader_of(tmp_path / "other") != loader_of(saved("dense").path)
    for _ in range(2):
        close(other.predict(X), saved("dense").expected + 1000)
        close(saved("dense").pyfunc.predict(X), saved("dense").expected)


def test_files_of_the_user_share_the_folder_with_the_loader(saved: Any, tmp_path: Path) -> None:
    (tmp_path / "helper_of_the_user.py").write_text("ANSWER = 42\n", encoding="utf-8")
    mks.save_model(saved("dense").model, tmp_path / "m", code_paths=[str(tmp_path / "helper_of_the_user.py")])

    assert sorted(item.name for item in (tmp_path / "m" / "code").iterdir()) == sorted(
        ["helper_of_the_user.py", loader_of(tmp_path / "m")]
    )
    close(mlflow.pyfunc.load_model(str(tmp_path / "m")).predict(X), saved("dense").expected)
    (tmp_path / "m" / "code" / loader_of(tmp_path / "m") / "outputs.py").write_text("# changed\n", encoding="utf-8")
    with pytest.raises(mks.IntegrityError, match=r"changed: code/_mks_rt_.*/outputs\.py"):
        mks.load_model(tmp_path / "m")


def test_model_of_a_bundled_loader_can_be_saved_again(saved: Any, tmp_path: Path) -> None:
    raw = saved("dense").pyfunc.get_raw_model()
    mks.save_model(raw, tmp_path / "again")

    close(mlflow.pyfunc.load_model(str(tmp_path / "again")).predict(X), saved("dense").expected)


# --- a real server


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_without_package(tmp_path_factory.mktemp("bare") / "venv")


@pytest.fixture(scope="module")
def server(saved: Any, bare_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """``mlflow models serve --env-manager local`` where this package cannot be imported."""
    folder = tmp_path_factory.mktemp("server")
    with serving(saved("house").path, folder, python=bare_python, environment={DEVICE_VARIABLE: "cpu"}) as running:
        yield running


def test_real_server_answers_and_refuses(saved: Any, server: Server) -> None:
    """Over HTTP, in a process that never saw the class; a wrong request is a 400."""
    columns = {"age": [[1.0], [2.0]], "rooms": [3, 4]}
    status, answer = server.ask({"inputs": columns})

    assert status == 200
    close(answer["predictions"], saved("house").expected)
    status, answer = server.ask({"dataframe_records": [{"age": 1.0, "rooms": 3}, {"age": 2.0, "rooms": 4}]})
    assert status == 200
    close(answer["predictions"], saved("house").expected)
    assert server.ask({"inputs": {"age": [[1.0]]}})[0] == 400
    assert server.ask({"inputs": {"age": [[1.0, 2.0]], "rooms": [3]}})[0] == 400


GOOD = {"age": [[1.0]], "rooms": [3]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "valid JSON"),
        (b"{", "valid JSON"),
        (b"\xff", "valid JSON"),
        (b"[1]", "Received a list"),
        ({"inputs": GOOD, "instances": GOOD}, "exactly one of the input fields"),
        ({"inputs": {"age": [[1.0]]}}, "Model is missing inputs ['rooms']"),
        ({"inputs": {**GOOD, "age": [[1.0], [1.0, 2.0]]}}, "inhomogeneous shape"),
        ({"inputs": {**GOOD, "age": [1.0]}}, "Shape of input (1,) does not match expected shape (-1, 1)"),
        ({"inputs": {**GOOD, "age": [[1.0], [2.0]]}}, "expected as many rows in every input, got age 2, rooms 1"),
        ({"inputs": {**GOOD, "age": [[None]]}}, "Input 'age': expected finite numbers, got nan at [0, 0]"),
        ({"inputs": {**GOOD, "age": [[float("nan")]]}}, "Input 'age': expected finite numbers, got nan"),
        ({"inputs": {**GOOD, "age": [[1e39]]}}, "Input 'age': expected finite numbers, got inf"),
        (b'{"inputs": {"age": [[1e400]], "rooms": [3]}}', "Input 'age': expected finite numbers, got inf"),
        ({"inputs": {**GOOD, "rooms": [None]}}, "int()"),
        ({"inputs": {**GOOD, "rooms": [2**70]}}, "too large"),
        ({"inputs": {**GOOD, "age": [["a"]]}}, "could not convert string to float"),
        ({"dataframe_records": [{"age": None, "rooms": 1}]}, "Input 'age': expected finite numbers, got nan"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_real_server_refuses_data_of_a_client_and_says_why(server: Server, body: Any, said: str) -> None:
    status, answer = server.post(body if isinstance(body, bytes) else json.dumps(body).encode())

    assert status == 400
    assert said in json.loads(answer)["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"inputs": {"age": [[' + b"1" * 5000 + b']], "rooms": [3]}}', 500),
        (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 500),
        ({"inputs": {**GOOD, "rooms": [1.5]}}, 200),
        ({"inputs": {**GOOD, "unknown": [1]}}, 200),
        ({"dataframe_split": {"columns": ["age", ["rooms"]], "data": [[1.0, 3]]}}, 500),
        ({"instances": [{"age": [1.0]}, {"rooms": 3}]}, 200),
        ({"dataframe_records": [{"age": 1.0, "rooms": 2**63}]}, 200),
    ],
    ids=[
        "long integer",
        "deep nesting",
        "part of a number",
        "unknown input",
        "list as a name",
        "halves of rows",
        "2**63 in a table",
    ],
)
def test_what_mlflow_decides_before_the_flavor_is_asked(server: Server, body: Any, status: int) -> None:
    """Not as it should be, and out of a flavor's reach (MLflow 3.17.2); docs/serving.md says so.

    If this fails, MLflow has mended it, and the row moves to the test above.
    """
    assert server.post(body if isinstance(body, bytes) else json.dumps(body).encode())[0] == status
    assert server.ask({"inputs": GOOD})[0] == 200


def test_a_body_without_a_type_fails_in_mlflow(server: Server) -> None:
    """As the test above: if this fails, MLflow has mended it."""
    assert server.send(json.dumps({"inputs": GOOD}).encode(), None)[0] == 500


def test_fuzzing_slice_of_a_real_server(saved: Any, server: Server) -> None:
    """200 seeded requests: the right answer or a 4xx; ``make test-fuzz-server`` makes thousands, to three models."""
    target = request_fuzzing.house(*(np.asarray(item, np.float64) for item in saved("house").model.get_weights()))
    before = server.resident_mib()
    counts = request_fuzzing.fuzz(server, target, examples=200)

    assert min(counts["right"], counts["refused"]) > 30
    assert server.resident_mib() < before + 200
