"""MLflow's verbs against real MLflow on sqlite: what is written where, what comes back, and what is refused."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from stores import local_store

import mlflow_keras_subclass as mks
from mlflow_keras_subclass.serving_options import ServingOptions

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


class Scale(keras.layers.Layer):
    """A layer of the user's own."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def call(self, x: Any) -> Any:
        return x * self.factor


class Net(keras.Model):
    """Two dense layers and a custom one."""

    def __init__(self, units: int, factor: float = 1.0) -> None:
        super().__init__()
        self.hidden = keras.layers.Dense(units, activation="relu")
        self.scale = Scale(factor)
        self.out = keras.layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.out(self.scale(self.hidden(x)))

    def doubled(self, x: Any) -> Any:
        return 2 * self(x)


class Nested(keras.Model):
    """Takes a nested dict."""

    def __init__(self) -> None:
        super().__init__()
        self.out = keras.layers.Dense(1)

    def call(self, inputs: Any) -> Any:
        return self.out(inputs["a"]["b"]) + inputs["c"]


class Text(keras.Model):
    """Takes strings."""

    def __init__(self) -> None:
        super().__init__()
        self.vectorize = keras.layers.TextVectorization(output_sequence_length=3, vocabulary=["good", "bad"])
        self.embed = keras.layers.Embedding(4, 2)

    def call(self, texts: Any) -> Any:
        return keras.ops.mean(self.embed(self.vectorize(texts)), axis=1)


def net(factor: float = 0.5) -> Net:
    keras.utils.set_random_seed(1)
    model = Net(6, factor=factor)
    model(X)
    return model


def values(tensor: Any) -> Any:
    return keras.ops.convert_to_numpy(tensor)


@pytest.fixture(scope="module")
def model() -> Net:
    return net()


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty tracking store and registry for this module; nothing is written elsewhere."""
    with local_store(tmp_path_factory.mktemp("tracking"), "tests") as root:
        yield root


@pytest.fixture(scope="module")
def saved(model: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that no test changes."""
    path = tmp_path_factory.mktemp("saved") / "model"
    mks.save_model(model, path, input_example=X[:2].astype(np.float64))
    return path


def logged_models() -> int:
    experiment = mlflow.get_experiment_by_name("tests")
    return len(mlflow.search_logged_models(experiment_ids=[experiment.experiment_id], output_format="list"))


# --- save and load


def test_save_and_load_give_the_same_model(model: Net, saved: Path) -> None:
    """The class, its attributes and methods, and bit-equal predictions."""
    loaded = mks.load_model(saved)

    assert type(loaded).__qualname__ == "Net"
    assert loaded.scale.factor == 0.5
    assert np.array_equal(values(loaded.doubled(X)), values(model.doubled(X)))
    assert np.array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))


def test_pyfunc_gives_the_same_predictions(model: Net, saved: Path) -> None:
    found = mlflow.pyfunc.load_model(str(saved)).predict(X)

    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, values(model(X)), rtol=1e-6)


def test_every_kind_of_uri(model: Net, saved: Path) -> None:
    """A path, file:, runs:/, models:/m-…, models:/name/version and models:/name@alias name the same model."""
    with mlflow.start_run() as run:
        info = mks.log_model(model, name="uri", registered_model_name="uris")
    mlflow.MlflowClient().set_registered_model_alias("uris", "champion", "1")
    expected = values(model(X))

    for uri in (
        saved,
        str(saved),
        os.path.relpath(saved),
        saved.as_uri(),
        info.model_uri,
        f"runs:/{run.info.run_id}/uri",
        "models:/uris/1",
        "models:/uris@champion",
    ):
        assert np.array_equal(values(mks.load_model(uri)(X)), expected), uri
        np.testing.assert_allclose(mlflow.pyfunc.load_model(str(uri)).predict(X), expected, rtol=1e-6)


def test_dst_path_is_where_the_model_is_downloaded_to(saved: Path, tmp_path: Path) -> None:
    mks.load_model(saved.as_uri(), tmp_path / "here")

    assert len(list((tmp_path / "here").rglob("MLmodel"))) == 1


def test_existing_path_is_refused_if_not_empty(model: Net, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty").mkdir()

    with pytest.raises(MlflowException, match="already exists and is not empty"):
        mks.save_model(model, tmp_path / "full")
    mks.save_model(model, tmp_path / "empty")
    assert (tmp_path / "empty" / "MLmodel").exists()


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither the target nor the staging directory beside it."""
    with pytest.raises(mks.CaptureError):
        mks.save_model(Net(2), tmp_path / "model")
    with pytest.raises(mks.PredictError, match="input_example: The input: expected the shape"):
        mks.save_model(net(), tmp_path / "model", input_example=np.zeros((2, 9)))

    assert list(tmp_path.iterdir()) == []


def test_a_refused_model_creates_nothing_in_the_tracking_store() -> None:
    before = logged_models()
    with pytest.raises(mks.CaptureError):
        mks.log_model(Net(2), name="never")
    with pytest.raises(mks.PredictError):
        mks.log_model(net(), name="never", input_example={"wrong": X, "other": X})

    assert logged_models() == before


def test_saved_directory_has_usual_permissions(saved: Path) -> None:
    """The staging directory of tempfile is for its owner only; a server of another user could not read that."""
    umask = os.umask(0)
    os.umask(umask)

    assert saved.stat().st_mode & 0o777 == 0o777 & ~umask


def test_compiled_state_is_restored_or_left_out(tmp_path: Path) -> None:
    model = net()
    model.compile(optimizer=keras.optimizers.Adam(0.0123), loss="mse", metrics=["mae"])
    model.fit(X, np.zeros((5, 3)), verbose=0)
    mks.save_model(model, tmp_path / "m")

    compiled, plain = mks.load_model(tmp_path / "m"), mks.load_model(tmp_path / "m", compile=False)

    assert compiled.optimizer.name == model.optimizer.name
    assert float(compiled.optimizer.learning_rate) == pytest.approx(0.0123)
    assert int(compiled.optimizer.iterations) == 1
    assert not plain.compiled
    assert np.array_equal(values(plain(X)), values(model(X)))


def test_mixed_precision_keeps_policy_values_and_signature(tmp_path: Path) -> None:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = net()
    finally:
        keras.config.set_dtype_policy(policy)
    mks.save_model(model, tmp_path / "m")
    loaded = mks.load_model(tmp_path / "m")

    assert loaded.hidden.dtype_policy.name == "mixed_float16"
    assert np.array_equal(values(loaded(X)), values(model(X)))
    assert Model.load(str(tmp_path / "m")).signature.inputs.inputs[0].type == np.float32
    assert mlflow.pyfunc.load_model(str(tmp_path / "m")).predict(X).dtype == np.float16


def test_class_defined_in_a_function(tmp_path: Path) -> None:
    class Local(keras.Model):
        def __init__(self, units: int) -> None:
            super().__init__()
            self.out = keras.layers.Dense(units)

        def call(self, x: Any) -> Any:
            return self.out(x)

    model = Local(2)
    model(X)
    mks.save_model(model, tmp_path / "m")

    assert np.array_equal(values(mks.load_model(tmp_path / "m")(X)), values(model(X)))


def test_custom_objects_at_load_win_over_the_stored_class(saved: Path) -> None:
    mine = type("Net", (Net,), {"doubled": lambda self, x: "mine"})

    assert mks.load_model(saved, custom_objects={"Net": mine, "Scale": Scale}).doubled(X) == "mine"


class ByName(keras.Model):
    """Asks Keras for its layer, by a name that nothing but ``custom_objects`` knows."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = keras.saving.get_registered_object(layer)(0.5)

    def call(self, x: Any) -> Any:
        return self.layer(x)


@pytest.fixture
def by_name() -> Any:
    with keras.saving.custom_object_scope({"mine": Scale}):
        model = ByName("mine")
    model(X)
    return model


def test_custom_objects_at_save_are_there_for_both_loaders(by_name: Any, tmp_path: Path) -> None:
    with pytest.raises(mks.KerasSubclassError, match="does not come back"):
        mks.save_model(by_name, tmp_path / "without")
    mks.save_model(by_name, tmp_path / "m", custom_objects={"mine": Scale})

    assert np.array_equal(values(mks.load_model(tmp_path / "m")(X)), X * 0.5)
    assert np.array_equal(mlflow.pyfunc.load_model(str(tmp_path / "m")).predict(X), X * 0.5)
    adding = type("Scale", (Scale,), {"call": lambda self, x: x + self.factor})
    assert np.array_equal(values(mks.load_model(tmp_path / "m", custom_objects={"mine": adding})(X)), X + 0.5)


def test_wrong_custom_objects_at_save_are_refused_or_replaced_at_load(by_name: Any, tmp_path: Path) -> None:
    wrong = {"mine": keras.layers.Dense}
    with pytest.raises(mks.ProofError):
        mks.save_model(by_name, tmp_path / "m", custom_objects=wrong)
    mks.save_model(by_name, tmp_path / "m", custom_objects=wrong, prove=False)

    with pytest.raises(mks.KerasSubclassError):
        mks.load_model(tmp_path / "m")
    assert np.array_equal(values(mks.load_model(tmp_path / "m", custom_objects={"mine": Scale})(X)), X * 0.5)


def test_config_states_the_constructors_arguments(tmp_path: Path, model: Net) -> None:
    mks.save_model(model, tmp_path / "m", config={"units": 6, "factor": 0.5})

    assert np.array_equal(values(mks.load_model(tmp_path / "m")(X)), values(model(X)))


# --- MLmodel and its files


def test_mlmodel_of_both_flavors(saved: Path) -> None:
    """Every fact that MLmodel holds, and that what it points at is there."""
    flavors = Model.load(str(saved)).flavors
    ours, pyfunc = flavors["keras_subclass"], flavors["python_function"]

    assert ours["data"] == pyfunc["data"] == "keras_subclass"
    assert ours["code"] is None
    assert pyfunc["code"] == "code"
    assert ours["model_class"].endswith(":Net")
    assert ours["keras_version"] == keras.__version__
    assert ours["keras_backend"] == keras.backend.backend()
    assert ours["serialization_format"] == "cloudpickle"
    assert ours["format_version"] == 1
    manifest = (saved / "keras_subclass" / "manifest.json").read_bytes()
    assert ours["manifest_sha256"] == hashlib.sha256(manifest).hexdigest()
    assert {"backend_version", "python_version", "cloudpickle_version"} <= ours.keys()
    assert (saved / "code" / pyfunc["loader_module"] / "pyfunc.py").is_file()
    assert pyfunc["config"] == ServingOptions().to_config()
    assert (saved / pyfunc["env"]["conda"]).is_file()
    assert (saved / pyfunc["env"]["virtualenv"]).is_file()


@pytest.mark.parametrize("form", ["cloudpickle", "source", "import"])
def test_serialization_format_is_what_the_files_are(model: Net, tmp_path: Path, form: str) -> None:
    """A class that is imported where the model is loaded has no pickle; its source is there to be read."""
    mks.save_model(model, tmp_path / "m", serialization_format=form, prove=False)

    assert Model.load(str(tmp_path / "m")).flavors["keras_subclass"]["serialization_format"] == form
    data = tmp_path / "m" / "keras_subclass"
    assert (data / "class.cloudpickle").exists() == (form != "import")
    assert (data / "source").is_dir()


def test_model_size_is_that_of_the_files(saved: Path) -> None:
    size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file() and path.name != "MLmodel")

    assert Model.load(str(saved)).model_size_bytes == size


def test_model_card_is_written(saved: Path) -> None:
    text = (saved / "README.md").read_text(encoding="utf-8")

    assert text.startswith("# Net\n\nTwo dense layers and a custom one.")
    assert "| takes | (no name) | `(None, 4)` | float32 |" in text


def test_keys_that_an_old_mlmodel_lacks_are_not_needed(saved: Path, tmp_path: Path, model: Net) -> None:
    """Only the flavor itself must be named; data is at its default place."""
    mks.save_model(model, tmp_path / "m")
    path = tmp_path / "m" / "MLmodel"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["flavors"]["keras_subclass"] = {"format_version": 1}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")

    assert np.array_equal(values(mks.load_model(tmp_path / "m")(X)), values(model(X)))


@pytest.mark.parametrize("load", [mks.load_model, lambda path: mlflow.pyfunc.load_model(str(path))])
def test_manifest_must_be_the_one_that_mlmodel_names(model: Net, tmp_path: Path, load: Any) -> None:
    """A manifest exchanged as a whole is noticed, although it fits the files beside it."""
    mks.save_model(model, tmp_path / "m")
    path = tmp_path / "m" / "keras_subclass" / "manifest.json"
    path.write_bytes(path.read_bytes() + b"\n")

    with pytest.raises(MlflowException, match=hashlib.sha256(path.read_bytes()).hexdigest()):
        load(tmp_path / "m")


def test_policy_may_name_the_manifest(saved: Path) -> None:
    digest = Model.load(str(saved)).flavors["keras_subclass"]["manifest_sha256"]
    mks.load_model(saved, trust_policy=mks.TrustPolicy(manifest_sha256=digest))

    with pytest.raises(mks.IntegrityError, match="0" * 64):
        mks.load_model(saved, trust_policy=mks.TrustPolicy(manifest_sha256="0" * 64))


def test_another_flavor_is_named(tmp_path: Path) -> None:
    Model(flavors={"sklearn": {}, "python_function": {}}).save(str(tmp_path / "MLmodel"))

    with pytest.raises(mks.FormatError, match="expected the flavor 'keras_subclass', got python_function, sklearn"):
        mks.load_model(tmp_path)


def test_a_directory_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(mks.FormatError, match="is not an MLflow model: expected the file MLmodel"):
        mks.load_model(tmp_path)


# --- signature and example


FLOAT64 = X[:2].astype(np.float64)
OWN = ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 4), "mine")]))


@pytest.mark.parametrize("example", [None, FLOAT64], ids=["no example", "example"])
@pytest.mark.parametrize("signature", [None, OWN, False], ids=["inferred", "own", "none"])
def test_signature_and_example(model: Net, tmp_path: Path, signature: Any, example: Any) -> None:
    """The signature is inferred with and without an example, kept as given, or left out; the example reads back."""
    mks.save_model(model, tmp_path / "m", signature=signature, input_example=example)
    found = Model.load(str(tmp_path / "m"))

    inferred = infer_signature(X, values(model(X)))
    assert found.signature == {"None": inferred, "False": None}.get(str(signature), OWN)
    stored = found.load_input_example(str(tmp_path / "m"))
    assert (stored is None) == (example is None)
    if example is not None:
        if signature is OWN:
            stored = stored["mine"]
        np.testing.assert_allclose(stored, example, rtol=1e-6)
        np.testing.assert_allclose(
            mlflow.pyfunc.load_model(str(tmp_path / "m")).predict(stored), values(model(X[:2])), rtol=1e-5
        )


def test_table_example_gives_a_signature_of_columns(model: Net, tmp_path: Path) -> None:
    frame = pd.DataFrame(FLOAT64, columns=list("abcd"))
    mks.save_model(model, tmp_path / "m", input_example=frame)
    found = Model.load(str(tmp_path / "m"))

    assert found.signature.inputs.input_names() == list("abcd")
    pd.testing.assert_frame_equal(found.load_input_example(str(tmp_path / "m")), frame)


def test_nested_example_is_stored_under_flat_names(tmp_path: Path) -> None:
    """MLflow has no nested tensors; what it stores is what predict takes."""
    model = Nested()
    example = {"a": {"b": np.ones((2, 3))}, "c": np.ones((2, 1))}
    model(example)
    mks.save_model(model, tmp_path / "m", input_example=example)
    found = Model.load(str(tmp_path / "m"))
    stored = found.load_input_example(str(tmp_path / "m"))

    assert found.signature.inputs.input_names() == ["a_b", "c"]
    assert stored["a_b"].dtype == np.float32
    np.testing.assert_allclose(
        mlflow.pyfunc.load_model(str(tmp_path / "m")).predict(stored), values(model(example)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("example", "dtype"),
    [(None, object), (np.array(["good", "bad"]), str), (np.array(["good", "bad"], object), object)],
)
def test_string_inputs(tmp_path: Path, example: Any, dtype: type) -> None:
    """Strings are objects unless the example shows numpy text, which MLflow tells apart."""
    model = Text()
    model(keras.ops.convert_to_tensor(["good bad"]))
    mks.save_model(model, tmp_path / "m", input_example=example)

    assert Model.load(str(tmp_path / "m")).signature.inputs.inputs[0].type == np.dtype(dtype)
    if example is not None:
        assert mlflow.pyfunc.load_model(str(tmp_path / "m")).predict(example).shape == (2, 2)


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (1, 4))])), "expected -1, the batch"),
        (
            ModelSignature(
                inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 4))]),
                params=ParamSchema([ParamSpec("temperature", "double", 1.0)]),
            ),
            "predict has no params temperature; it has batch_size",
        ),
        ("columns", "expected a ModelSignature, None or False, got str"),
        (ModelSignature(outputs=Schema([TensorSpec(np.dtype("float32"), (-1, 3))])), "it has no inputs"),
    ],
)
def test_signatures_that_no_call_could_satisfy_are_refused(
    model: Net, tmp_path: Path, signature: Any, message: str
) -> None:
    with pytest.raises(mks.KerasSubclassError, match=message):
        mks.save_model(model, tmp_path / "m", signature=signature)


def test_signature_must_have_the_inputs_of_the_model(tmp_path: Path) -> None:
    model = Nested()
    model({"a": {"b": np.ones((2, 3))}, "c": np.ones((2, 1))})
    signature = ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 3), "a_b")]))

    with pytest.raises(mks.KerasSubclassError, match="takes the inputs a_b, c; the signature lacks c"):
        mks.save_model(model, tmp_path / "m", signature=signature)


def test_signature_of_columns_is_accepted(model: Net, tmp_path: Path) -> None:
    signature = ModelSignature(inputs=Schema([ColSpec("double")] * 4))
    mks.save_model(model, tmp_path / "m", signature=signature)

    assert Model.load(str(tmp_path / "m")).signature == signature


# --- environment


def test_default_environment(saved: Path) -> None:
    requirements = (saved / "requirements.txt").read_text(encoding="utf-8").splitlines()

    assert set(mks.get_default_pip_requirements()) <= set(requirements)
    assert not any(item.startswith("mlflow-keras-subclass") for item in requirements)
    assert mks.get_default_conda_env()["dependencies"][-1]["pip"][-1]


def test_environment_arguments_reach_the_files(model: Net, tmp_path: Path) -> None:
    mks.save_model(model, tmp_path / "own", pip_requirements=["coloredlogs"])
    mks.save_model(model, tmp_path / "more", extra_pip_requirements=["coloredlogs"])
    mks.save_model(model, tmp_path / "conda", conda_env={"dependencies": [{"pip": ["coloredlogs"]}]})
    text = {path.name: (path / "requirements.txt").read_text(encoding="utf-8") for path in tmp_path.iterdir()}

    assert "coloredlogs" in text["own"]
    assert "keras==" not in text["own"]
    assert "keras==" in text["more"]
    assert "coloredlogs" in text["more"]
    assert "coloredlogs" in text["conda"]
    assert "keras==" not in text["conda"]
    with pytest.raises(ValueError, match="Only one of"):
        mks.save_model(model, tmp_path / "both", conda_env={}, pip_requirements=[])


def test_inferred_requirements_are_added(model: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own inference runs on request, loads the model in a process of its own, and does not fall back."""
    package = str(Path(mks.__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("MLFLOW_REQUIREMENTS_INFERENCE_RAISE_ERRORS", "true")
    mks.save_model(model, tmp_path / "m", infer_requirements=True)
    found = (tmp_path / "m" / "requirements.txt").read_text(encoding="utf-8").splitlines()

    assert set(mks.get_default_pip_requirements()) < set(found)
    assert len({item.split("==")[0].lower() for item in found}) == len(found)


# --- code, extra files, configuration


def test_code_paths_are_shipped_and_importable(model: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    package = tmp_path / "helpers_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("VALUE = 7\n", encoding="utf-8")
    (package / "__pycache__").mkdir()
    mks.save_model(model, tmp_path / "m", code_paths=[str(package)])
    flavors = Model.load(str(tmp_path / "m")).flavors

    assert flavors["keras_subclass"]["code"] == flavors["python_function"]["code"] == "code"
    copied = tmp_path / "m" / "code" / "helpers_of_mine"
    assert [path.name for path in copied.iterdir()] == ["__init__.py"]
    manifest = json.loads((tmp_path / "m" / "keras_subclass" / "manifest.json").read_text(encoding="utf-8"))
    assert "code/helpers_of_mine/__init__.py" in [entry["path"] for entry in manifest["files"]]
    mks.load_model(tmp_path / "m")
    assert str(tmp_path / "m" / "code") in sys.path


def test_code_path_that_holds_the_target_is_copied_without_it(model: Net, tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    mks.save_model(model, tmp_path / "m", code_paths=[tmp_path])

    assert [path.name for path in (tmp_path / "m" / "code" / tmp_path.name).iterdir()] == ["mine.py"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"code_paths": "code"}, TypeError, "code_paths: expected a list"),
        ({"code_paths": ["no/such"]}, mks.KerasSubclassError, "code_paths: no/such does not exist"),
        ({"extra_files": "file"}, TypeError, "extra_files: expected a list"),
        ({"model_config": {"devise": "cpu"}}, mks.KerasSubclassError, "unknown devise; expected some of allow_nan"),
        (
            {"model_config": {"batch_size": 0}},
            mks.KerasSubclassError,
            "batch_size must be a whole number from 1.*got 0",
        ),
        ({"model_config": {"jit_compile": "yes"}}, mks.KerasSubclassError, "jit_compile must be true or false"),
        ({"model_config": "no.yaml"}, mks.KerasSubclassError, "no.yaml cannot be read"),
    ],
)
def test_wrong_arguments_are_refused(
    model: Net, tmp_path: Path, arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        mks.save_model(model, tmp_path / "m", **arguments)


def test_extra_files_and_metadata(model: Net, tmp_path: Path) -> None:
    extra = tmp_path / "labels.txt"
    extra.write_text("cat\n", encoding="utf-8")
    mks.save_model(model, tmp_path / "m", extra_files=[extra], metadata={"team": "vision"})
    found = Model.load(str(tmp_path / "m"))

    assert found.flavors["keras_subclass"]["extra_files"] == [{"path": "extra_files/labels.txt"}]
    assert (tmp_path / "m" / "extra_files" / "labels.txt").read_text(encoding="utf-8") == "cat\n"
    assert mlflow.pyfunc.load_model(str(tmp_path / "m")).metadata.metadata == {"team": "vision"}


def test_model_config_from_a_file(model: Net, tmp_path: Path) -> None:
    path = tmp_path / "serving.yaml"
    path.write_text("batch_size: 16\n", encoding="utf-8")
    mks.save_model(model, tmp_path / "m", model_config=path)

    config = Model.load(str(tmp_path / "m")).flavors["python_function"]["config"]
    assert config["batch_size"] == 16
    assert {"device": "auto", "jit_compile": False, "output": "raw"}.items() <= config.items()


# --- log_model


def test_log_with_a_run(model: Net) -> None:
    """Tags, params and metadata are there, the run knows its model and commit, and no run is left open."""
    with mlflow.start_run() as run:
        info = mks.log_model(
            model,
            name="net",
            input_example=X[:1],
            params={"mine": 1, "n_params": "own"},
            tags={"team": "vision"},
            metadata={"a": 1},
        )
        assert mlflow.active_run().info.run_id == run.info.run_id
    logged = mlflow.get_logged_model(info.model_id)

    assert mlflow.active_run() is None
    assert str(logged.status) == "READY"
    assert logged.name == "net"
    assert logged.source_run_id == run.info.run_id
    assert logged.params["model_class"].endswith(":Net")
    assert logged.params["keras_version"] == keras.__version__
    assert (logged.params["mine"], logged.params["n_params"]) == ("1", "own")
    assert logged.tags["team"] == "vision"
    assert logged.tags["mlflow_keras_subclass.manifest_sha256"] == info.flavors["keras_subclass"]["manifest_sha256"]
    assert info.metadata == {"a": 1}
    folder = Path(mlflow.artifacts.download_artifacts(info.model_uri))
    requirements = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert set(mks.get_default_pip_requirements()) <= set(requirements)
    assert [item.model_id for item in mlflow.get_run(run.info.run_id).outputs.model_outputs] == [info.model_id]


def test_one_line_says_where_the_model_is(
    model: Net, tracking: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On standard error, and not where MLflow's own such lines are off."""
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    info = mks.log_model(model, name="told", prove=False)

    line = f"Logged {info.model_uri}: mlflow ui --backend-store-uri sqlite:///{tracking / 'mlflow.db'}"
    assert line in capsys.readouterr().err.splitlines()
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    mks.log_model(model, name="told", prove=False)
    assert "Logged models:/" not in capsys.readouterr().err


def test_log_without_a_run(model: Net) -> None:
    info = mks.log_model(model, name="alone")

    assert mlflow.active_run() is None
    assert mlflow.get_logged_model(info.model_id).source_run_id is None
    assert np.array_equal(values(mks.load_model(info.model_uri)(X)), values(model(X)))


def test_description_is_a_card_with_the_models_uri(model: Net) -> None:
    info = mks.log_model(model, name="described")
    note = mlflow.get_logged_model(info.model_id).tags["mlflow.note.content"]
    card = Path(mlflow.artifacts.download_artifacts(f"{info.model_uri}")) / "README.md"

    assert f'mks.load_model("{info.model_uri}")' in note
    assert f"mlflow models serve -m {info.model_uri}" in note
    assert f'mks.load_model("{info.model_uri}")' in card.read_text(encoding="utf-8")


def test_the_users_description_wins(model: Net) -> None:
    info = mks.log_model(model, name="described", tags={"mlflow.note.content": "mine"})

    assert mlflow.get_logged_model(info.model_id).tags["mlflow.note.content"] == "mine"


def test_commit_of_the_class_is_on_model_and_run(model: Net) -> None:
    """Where the class's source is in a repository, search finds the model by its commit."""
    with mlflow.start_run() as run:
        info = mks.log_model(model, name="net")
    tags = mlflow.get_logged_model(info.model_id).tags
    on_run = mlflow.get_run(run.info.run_id).data.tags
    commit = tags.get("mlflow.source.git.commit")
    if commit is None:
        pytest.skip("this checkout has no commit")

    assert mlflow.get_logged_model(info.model_id).params["git_commit"] == commit
    found = mlflow.search_logged_models(
        filter_string=f"tags.`mlflow.source.git.commit` = '{commit}'", output_format="list"
    )
    assert info.model_id in [item.model_id for item in found]
    assert on_run["mlflow.source.git.commit"] == commit
    assert on_run["mlflow.source.git.dirty"] == tags["mlflow.source.git.dirty"]


def test_commit_of_another_repository_on_the_run_is_left_alone(model: Net) -> None:
    with mlflow.start_run(tags={"mlflow.source.git.commit": "other"}) as run:
        mks.log_model(model, name="net")
    tags = mlflow.get_run(run.info.run_id).data.tags

    assert tags["mlflow.source.git.commit"] == "other"
    assert "mlflow.source.git.dirty" not in tags


def test_existing_logged_model_is_filled(model: Net) -> None:
    created = mlflow.initialize_logged_model(name="early", tags={"team": "mine"})
    info = mks.log_model(model, model_id=created.model_id, tags={"team": "other"})
    logged = mlflow.get_logged_model(created.model_id)

    assert info.model_id == created.model_id
    assert logged.tags["team"] == "mine"
    assert "mlflow_keras_subclass.manifest_sha256" in logged.tags
    assert "mlflow.note.content" in logged.tags
    assert logged.params["model_class"].endswith(":Net")
    assert np.array_equal(values(mks.load_model(info.model_uri)(X)), values(model(X)))


def test_registration(model: Net) -> None:
    info = mks.log_model(model, name="reg", registered_model_name="registered", await_registration_for=0)
    plain = mks.log_model(model, name="reg")

    assert info.registered_model_version == 1
    assert plain.registered_model_version is None
    version = mlflow.MlflowClient().get_model_version("registered", "1")
    assert version.tags["mlflow_keras_subclass.manifest_sha256"]


def test_step_and_type_reach_the_model(model: Net) -> None:
    with mlflow.start_run():
        mlflow.log_metric("loss", 0.5, step=3)
        info = mks.log_model(model, name="ckpt", step=3, model_type="classifier")
    logged = mlflow.get_logged_model(info.model_id)

    assert logged.model_type == "classifier"
    assert [(metric.key, metric.value) for metric in logged.metrics] == [("loss", 0.5)]


def test_artifact_path_is_still_accepted(model: Net) -> None:
    assert mlflow.get_logged_model(mks.log_model(model, "positional").model_id).name == "positional"
    with pytest.raises(MlflowException, match="Both `artifact_path`"):
        mks.log_model(model, "one", name="two")


def test_unknown_arguments_are_refused_before_anything_is_created(model: Net) -> None:
    before = logged_models()
    with pytest.raises(TypeError, match="unexpected keyword arguments: nmae"):
        mks.log_model(model, nmae="typo")

    assert logged_models() == before


def test_module_is_a_flavor_for_model_log(model: Net) -> None:
    """Tools that take a flavor module call Model.log with it."""
    info = Model.log(artifact_path=None, name="generic", flavor=mks, model=model, input_example=X[:2])

    assert info.flavors.keys() == {"keras_subclass", "python_function"}
    assert np.array_equal(values(mks.load_model(info.model_uri)(X)), values(model(X)))


def test_arguments_of_mlflows_flavors_are_all_there() -> None:
    """Whoever changes from mlflow.keras, mlflow.tensorflow or mlflow.sklearn finds the same names."""
    theirs = {"save_exported_model", "save_model_kwargs", "keras_model_kwargs", "saved_model_kwargs"}
    ours = inspect.signature(mks.log_model).parameters.keys()

    for flavor in (mlflow.keras, mlflow.tensorflow):
        names = inspect.signature(flavor.log_model).parameters.keys()
        assert names - theirs - ours <= {"checkpoint", "kwargs"}, flavor.__name__


def test_weights_are_moved_not_copied(model: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """The staged files reach MLflow's directory by rename: a copy would double the time and space of large models."""
    import shutil

    copied: list[str] = []
    original = shutil.copy2

    def noting(source: Any, target: Any, **kwargs: Any) -> Any:
        copied.append(str(source))
        return original(source, target, **kwargs)

    monkeypatch.setattr(shutil, "copy2", noting)
    mks.log_model(model, name="moved")

    assert not [path for path in copied if ".mlflow-keras-subclass-" in path]
