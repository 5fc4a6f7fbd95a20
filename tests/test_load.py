"""Loading: whose class it is, what may run, where it is placed, and that nothing else in the process changes."""

import hashlib
import json
import os
import subprocess
import sys
import threading

import keras
import mlflow
import numpy as np
import pytest
from forgery import edit_json, forged
from mlflow.exceptions import MlflowException

import mlflow_keras_subclass as mks
from mlflow_keras_subclass.differences import compare_models
from mlflow_keras_subclass.model_dir import rebuilding
from mlflow_keras_subclass.model_tree import walk
from mlflow_keras_subclass.trust import PICKLE_VARIABLE

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = np.ones((8, 2), "float32")


class Net(keras.Model):
    """A small net."""

    def __init__(self, units, rate=0.5):
        super().__init__()
        self.hidden = keras.layers.Dense(units)
        self.drop = keras.layers.Dropout(rate)
        self.out = keras.layers.Dense(2)

    def call(self, x, training=False):
        return self.out(self.drop(self.hidden(x), training=training))

    def doubled(self, x):
        return 2 * self(x)


class Wrapping(keras.Model):
    def __init__(self, body, function):
        super().__init__()
        self.body = body
        self.function = function

    def call(self, x):
        return self.function(self.body(x))


class Stack(keras.Model):
    def __init__(self, depth):
        super().__init__()
        self.parts = [keras.layers.Dense(4) for _ in range(depth)]

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x


def trained(epochs=2):
    keras.utils.set_random_seed(3)
    model = Net(5)
    model.compile(keras.optimizers.Adam(0.01), loss="mse", metrics=["mae"])
    model.fit(X, Y, epochs=epochs, verbose=0, shuffle=False)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "net"
    model = trained()
    mks.save_model(model, path)
    return path, np.asarray(model(X))


@pytest.fixture(scope="module")
def wrapping(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "wrapping"
    model = Wrapping(Net(3), lambda x: x + 1)
    model(X)
    mks.save_model(model, path)
    return path


@pytest.mark.parametrize("size", [0, -1.0, "5GB"])
def test_max_shard_size_that_is_none_is_refused(tmp_path, size):
    with pytest.raises(mks.KerasSubclassError, match="max_shard_size: expected a number of gigabytes"):
        mks.save_model(trained(), tmp_path / "m", prove=False, max_shard_size=size)


def test_a_state_in_several_files_loads_as_one(tmp_path):
    """With its optimizer; comparing two models and the report read it too."""
    model = trained()
    mks.save_model(model, tmp_path / "m", max_shard_size=1e-7)
    mks.save_model(model, tmp_path / "one", prove=False, max_shard_size=None)
    loaded = mks.load_model(tmp_path / "m", verify=True)

    names = {path.name for path in (tmp_path / "m" / "keras_subclass").iterdir()}
    assert {"state.safetensors.index.json", "optimizer.safetensors.index.json"} <= names
    assert not {"state.safetensors", "optimizer.safetensors"} & names
    assert "state.safetensors" in {path.name for path in (tmp_path / "one" / "keras_subclass").iterdir()}
    for one in (model, loaded):
        one.fit(X, Y, epochs=1, verbose=0, shuffle=False)
    assert all(np.array_equal(a, b) for a, b in zip(model.weights, loaded.weights, strict=True))
    assert not compare_models(tmp_path / "m", tmp_path / "one").weights
    assert "hidden.kernel" in (tmp_path / "m" / "report.html").read_text()


def test_the_very_subclass_comes_back(saved):
    path, expected = saved

    model = mks.load_model(path)

    assert type(model).__name__ == "Net"
    assert type(model) is not Net
    assert type(model).__doc__ == "A small net."
    np.testing.assert_array_equal(model(X), expected)
    np.testing.assert_array_equal(model.doubled(X), 2 * expected)


def test_walks_of_the_tree_do_not_grow_with_the_layers(tmp_path, monkeypatch):
    """A walk visits all, so that one after each layer takes minutes for a model of two thousand."""
    walks = []
    monkeypatch.setattr(rebuilding, "walk", lambda *args: walks.append(None) or walk(*args))
    counts = []
    for depth in (2, 12):
        model = Stack(depth)
        model(X)
        mks.save_model(model, tmp_path / str(depth), prove=False)
        walks.clear()
        assert np.array_equal(np.asarray(mks.load_model(tmp_path / str(depth))(X)), np.asarray(model(X)))
        counts.append(len(walks))

    assert counts[0] == counts[1]


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    """Two epochs, saved and loaded, two more: bit for bit the weights of four epochs, dropout and Adam included."""
    whole = trained(epochs=4)
    first = trained(epochs=2)
    mks.save_model(first, tmp_path / "m", prove=False)

    again = mks.load_model(tmp_path / "m")
    again.fit(X, Y, epochs=4, initial_epoch=2, verbose=0, shuffle=False)

    for left, right in zip(whole.variables, again.variables, strict=True):
        np.testing.assert_array_equal(left.numpy(), right.numpy())
    for left, right in zip(whole.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(left.numpy(), right.numpy())


def test_compile_false_leaves_it_uncompiled(saved):
    assert mks.load_model(saved[0], compile=False).compiled is False


def test_own_class_wins_and_nothing_is_unpickled(saved, monkeypatch):
    path, expected = saved
    monkeypatch.setenv(PICKLE_VARIABLE, "false")

    model = mks.load_model(path, custom_objects={"Net": Net})

    assert type(model) is Net
    np.testing.assert_array_equal(model(X), expected)


def test_forbidden_pickle_says_how_to_load(saved, monkeypatch):
    monkeypatch.setenv(PICKLE_VARIABLE, "false")

    with pytest.raises(mks.UntrustedCodeError, match=rf"{PICKLE_VARIABLE}.*custom_objects="):
        mks.load_model(saved[0])


def test_policy_of_the_caller_forbids_code(saved):
    with pytest.raises(mks.UntrustedCodeError, match="forbids to run the class definition"):
        mks.load_model(saved[0], trust_policy=mks.TrustPolicy(level="never"))


def test_never_with_own_class_reads_only_json_and_arrays(saved, monkeypatch):
    """Level never with the class brought along: not one byte is unpickled, and nothing is imported from the model."""

    def refuse(*_, **__):
        raise AssertionError("the stored definition was read")

    monkeypatch.setattr("mlflow_keras_subclass.artifacts.class_definition.read", refuse)
    before = list(sys.path)

    model = mks.load_model(saved[0], custom_objects={"Net": Net}, trust_policy=mks.TrustPolicy(level="never"))

    assert sys.path == before
    np.testing.assert_array_equal(model(X), saved[1])


def test_never_names_the_object_that_only_a_pickle_has(wrapping):
    with pytest.raises(mks.ClassDefinitionError, match=r"opaque object .* can only come from objects\.cloudpickle"):
        mks.load_model(
            wrapping,
            custom_objects={"Wrapping": Wrapping, "Net": Net},
            trust_policy=mks.TrustPolicy(level="never"),
        )


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"TRUST": "never"}, "forbids to run the class definition"),
        ({"TRUST": "known"}, "needs something to know the model by"),
        ({"TRUST": "known", "MANIFEST_SHA256": "0" * 64}, "as the trust policy names it"),
        ({"PUBLIC_KEY": "/nowhere.pem"}, r"keras_subclass\.sig\.json is missing"),
        ({"TRUST": "yes"}, "expected one of code, known, never, got 'yes'"),
    ],
)
@pytest.mark.parametrize("door", [mks.load_model, mlflow.pyfunc.load_model])
def test_environment_of_a_server_decides(saved, monkeypatch, variables, text, door):
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_KERAS_SUBCLASS_{name}", value)

    with pytest.raises(MlflowException, match=text):  # raised by the loader in the model, whose classes are others
        door(str(saved[0]))


def test_server_that_knows_the_digest_loads(saved, monkeypatch):
    digest = hashlib.sha256((saved[0] / "keras_subclass/manifest.json").read_bytes()).hexdigest()
    monkeypatch.setenv("MLFLOW_KERAS_SUBCLASS_TRUST", "known")
    monkeypatch.setenv("MLFLOW_KERAS_SUBCLASS_MANIFEST_SHA256", digest)

    np.testing.assert_allclose(mlflow.pyfunc.load_model(str(saved[0])).predict(X), saved[1], rtol=1e-6)


def test_policy_of_the_caller_names_the_manifest(saved):
    with pytest.raises(mks.IntegrityError, match="0000"):
        mks.load_model(saved[0], trust_policy=mks.TrustPolicy(manifest_sha256="0" * 64))


def test_own_class_of_another_shape_is_refused(saved):
    class Other(keras.Model):
        def __init__(self, units):
            super().__init__()
            self.hidden = keras.layers.Dense(units)
            self.drop = keras.layers.Dropout(0.5)
            self.out = keras.layers.Dense(3)

        def call(self, x):
            return self.out(self.drop(self.hidden(x)))

    Other.__name__ = "Net"
    with pytest.raises(mks.RebuildError, match=r"out\.(kernel|bias) is float32 \(.*3.*\), was float32"):
        mks.load_model(saved[0], custom_objects={"Net": Other})


def test_own_class_without_the_layers_is_refused(saved):
    class Fewer(keras.Model):
        def __init__(self, units):
            super().__init__()
            self.hidden = keras.layers.Dense(units)

        def call(self, x):
            return self.hidden(x)

    with pytest.raises(mks.RebuildError, match=r"missing: drop \(Dropout 'dropout.*'\), out \(Dense"):
        mks.load_model(saved[0], custom_objects={"Net": Fewer})


def test_own_class_that_takes_other_arguments_is_refused(saved):
    class NoArguments(keras.Model):
        def __init__(self):
            super().__init__()

    with pytest.raises(mks.RebuildError, match=r"NoArguments raised TypeError .* stored arguments"):
        mks.load_model(saved[0], custom_objects={"Net": NoArguments})


def test_missing_own_class_is_named(wrapping):
    """With the model's class given nothing is unpickled, so the class of its argument must be given too."""
    with pytest.raises(mks.ClassDefinitionError, match=r"definition '.*:Net', which is not at hand"):
        mks.load_model(wrapping, custom_objects={"Wrapping": Wrapping})


def test_changed_weight_is_named(saved, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(saved[0], copy)
    file = copy / "keras_subclass/state.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))

    with pytest.raises(mks.IntegrityError, match=r"changed: keras_subclass/state\.safetensors"):
        mks.load_model(copy)


def test_manifest_replaced_together_with_the_files_is_caught_by_mlmodel(saved, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(saved[0], copy)
    manifest = copy / "keras_subclass/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text())))

    with pytest.raises(mks.IntegrityError, match="expected the manifest with sha256"):
        mks.load_model(copy)


def test_model_built_before_the_import_needs_config(tmp_path):
    code = """
import sys, numpy as np, keras
class Net(keras.Model):
    def __init__(self, units, rate=0.5):
        super().__init__()
        self.dense = keras.layers.Dense(units)
        self.scale = rate
    def call(self, x):
        return self.dense(x) * self.scale
class Keeps(Net):
    def __init__(self, units, rate=0.5, width=1):
        super().__init__(units * width, rate)
        self.units, self.rate = units, rate
class Changes(Net):
    def __init__(self, units):
        super().__init__(units)
        self.units = units * 2
X = np.ones((2, 3), "float32")
net, kept, changed = Net(4, rate=2.0), Keeps(4, rate=2.0), Changes(4)
net(X), kept(X), changed(X)
import mlflow_keras_subclass as mks
try:
    mks.save_model(net, sys.argv[1])
except mks.CaptureError as error:
    print(str(error).replace(chr(10), " "))
for wrong in ({"unit": 4}, {"units": 5}):
    try:
        mks.save_model(net, sys.argv[1], config=wrong, input_example=X)
    except (mks.CaptureError, mks.ProofError) as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
mks.save_model(net, sys.argv[1], config={"units": 4, "rate": 2.0}, input_example=X)
print(np.array_equal(mks.load_model(sys.argv[1])(X), net(X)))
for model in (changed, kept):
    try:
        mks.save_model(model, sys.argv[1] + "-inferred", prove=model is not kept)
    except mks.CaptureError as error:
        print(str(error).replace(chr(10), " "))
mks.save_model(kept, sys.argv[1] + "-inferred")
print(np.array_equal(mks.load_model(sys.argv[1] + "-inferred")(X), kept(X)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")], capture_output=True, text=True, timeout=300, check=True
    )

    first, unbound, unequal, equal, other, unproven, inferred = done.stdout.strip().splitlines()
    assert 'pass config={"units": …, "rate": …}' in first
    assert unbound.startswith("CaptureError")
    assert "does not fit Net(units, rate=0.5)" in unbound
    assert unequal.startswith("ProofError Net was written but does not come back as it is")
    assert "dense.kernel is float32 (3, 5), was float32 (3, 4)" in unequal
    assert equal == "True"
    assert 'pass config={"units": …}' in other
    assert "Attributes of the same names are not what it needs: Changes was written" in other
    assert 'pass config={"units": …, "rate": …, "width": …}' in unproven
    assert inferred == "True"
    assert json.loads((tmp_path / "m-inferred/keras_subclass/config.json").read_text())["constructor"]["inferred"]


def test_nothing_in_the_process_changes(saved, wrapping):
    registry = dict(keras.saving.get_custom_objects())
    path, modules = list(sys.path), set(sys.modules)

    for model in (saved[0], wrapping):
        mks.load_model(model)

    assert keras.saving.get_custom_objects() == registry
    assert sys.path == path
    assert {name for name in set(sys.modules) - modules if "test_load" in name or "zoo" in name} == set()


def test_two_versions_of_a_class_side_by_side(tmp_path):
    def version(factor):
        class Versioned(keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = keras.layers.Dense(1, kernel_initializer="ones")

            def call(self, x):
                return self.dense(x) * factor

        model = Versioned()
        model(X)
        mks.save_model(model, tmp_path / str(factor))
        return np.asarray(model(X))

    expected = {factor: version(factor) for factor in (2.0, 3.0)}
    loaded = {factor: mks.load_model(tmp_path / str(factor)) for factor in (2.0, 3.0)}
    again = mks.load_model(tmp_path / "2.0")

    for factor, model in [*loaded.items(), (2.0, again)]:
        np.testing.assert_array_equal(model(X), expected[factor])


def test_loads_in_threads_do_not_disturb_each_other(saved, wrapping):
    errors, path = [], saved[0]

    def load():
        try:
            np.testing.assert_array_equal(mks.load_model(path)(X), saved[1])
            mks.load_model(wrapping)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []


DEVICES = """
import json, sys, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import mlflow, mlflow_keras_subclass as mks
path, X = sys.argv[1], np.load(sys.argv[2])
found = {}
for device in (None, "auto", "cpu", "cpu:1"):
    model = mks.load_model(path, device=device)
    found[str(device)] = sorted({v.value.device[-5:] for v in model.weights})
for device in ("gpu", "cpu:7", "tpu"):
    try:
        mks.load_model(path, device=device)
    except mks.DeviceError as error:
        found[device] = str(error)
served = mlflow.pyfunc.load_model(path, model_config={"device": "cpu:1"})
found["served"] = sorted({v.value.device[-5:] for v in served.get_raw_model().weights})
found["predicted"] = served.predict(X).tolist()
import os
os.environ["MLFLOW_KERAS_SUBCLASS_DEVICE"] = "cpu:1"
found["environment"] = sorted({v.value.device[-5:] for v in mlflow.pyfunc.load_model(path).get_raw_model().weights})
print(json.dumps(found))
"""


def test_placement_on_the_device_asked_for(saved, tmp_path):
    """On logical CPU devices, since this must hold on machines without a GPU."""
    np.save(tmp_path / "x.npy", X)
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, str(saved[0]), str(tmp_path / "x.npy")],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    found = json.loads(done.stdout.strip().splitlines()[-1])

    assert found["None"] == found["auto"] == found["cpu"] == ["CPU:0"]
    assert found["cpu:1"] == found["served"] == found["environment"] == ["CPU:1"]
    assert "'gpu' is not present in this process; present with the tensorflow backend: cpu:0, cpu:1" in found["gpu"]
    assert "'cpu:7' is not present" in found["cpu:7"]
    assert "expected 'auto', 'cpu', 'gpu' or a numbered one like 'gpu:1', got 'tpu'" in found["tpu"]
    np.testing.assert_allclose(np.array(found["predicted"], "float32"), saved[1], rtol=1e-6)


def logged_with(saved, target, **versions):
    """A copy of the model that says it was logged with other versions."""
    return forged(saved[0], target, edit_json("manifest.json", lambda content: content["versions"].update(versions)))


def test_another_major_keras_is_refused(saved, tmp_path):
    copy = logged_with(saved, tmp_path / "copy", keras="2.15.0")

    with pytest.raises(mks.RebuildError, match=r"logged with Keras 2\.15\.0, and this is Keras 3.*keras==2\.15\.0"):
        mks.load_model(copy)


def test_other_minor_versions_are_told(saved, tmp_path, caplog):
    copy = logged_with(saved, tmp_path / "copy", keras="3.1.0", backend_version="2.1.0")

    assert np.array_equal(mks.load_model(copy)(X), mks.load_model(saved[0])(X))
    assert caplog.text.count("was logged with other versions") == 1
    assert f"Keras 3.1.0, here {keras.__version__}; tensorflow 2.1.0, here" in caplog.text


def test_some_of_the_variables_for_transfer_learning(saved):
    model = mks.load_model(saved[0])
    part = mks.load_model(saved[0], variables="hidden/*")

    assert np.array_equal(part.hidden.kernel, model.hidden.kernel)
    assert np.any(part.out.kernel != model.out.kernel)
    assert np.any(part.out.kernel)
    assert int(model.optimizer.iterations) > int(part.optimizer.iterations) == 0
    part.fit(X, Y, verbose=0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"variables": ["hidden/*", "heads.*"]}, r"got 'heads\.\*', which names none.*such as hidden\.kernel"),
        ({"variables": "hidden/*", "verify": True}, "verify: a model of which only some"),
    ],
)
def test_a_part_that_is_not_there_is_refused(saved, options, text):
    with pytest.raises(mks.KerasSubclassError, match=text):
        mks.load_model(saved[0], **options)


class OnBody(keras.Model):
    def __init__(self, body, head):
        super().__init__()
        self.body = body
        self.head = head

    def call(self, x):
        return self.head(self.body(x))


@pytest.fixture(scope="module")
def on_body(tmp_path_factory):
    inputs = keras.Input((4,))
    model = OnBody(keras.Model(inputs, keras.layers.Dense(3)(inputs)), keras.layers.Dense(2, activation="tanh"))
    path = tmp_path_factory.mktemp("on_body") / "model"
    expected = np.asarray(model(X))
    mks.save_model(model, path)
    return path, expected


def with_argument_of_a_newer_keras(value):
    """An ``edit`` for ``forged``: each Dense is described with one more argument, as another release writes it."""

    def extend(node):
        # Pairs in a graph's description, whose order is kept; a layer's own is a plain object.
        if isinstance(node, list) and ["bias_constraint", None] in node:
            node.append(["of_a_newer_keras", value])
        elif isinstance(node, dict) and "bias_constraint" in node:
            node["of_a_newer_keras"] = value
        for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            extend(item)

    return edit_json("config.json", lambda content: extend(content["constructor"]))


def test_what_a_newer_keras_writes_of_arguments_that_were_left_out_is_passed_over(on_body, tmp_path):
    copy = forged(on_body[0], tmp_path / "copy", with_argument_of_a_newer_keras(None))
    assert (copy / "keras_subclass/config.json").read_text().count("of_a_newer_keras") == 2

    model = mks.load_model(copy)

    np.testing.assert_array_equal(np.asarray(model(X)), on_body[1])


def test_an_argument_of_a_newer_keras_with_a_value_is_refused_with_the_version(on_body, tmp_path):
    def edit(root):
        with_argument_of_a_newer_keras(3)(root)
        edit_json("manifest.json", lambda content: content["versions"].update(keras="3.99.0"))(root)

    copy = forged(on_body[0], tmp_path / "copy", edit)

    with pytest.raises(mks.RebuildError, match=r"of_a_newer_keras(.|\n)*logged with Keras 3\.99\.0, here 3"):
        mks.load_model(copy)


def test_keras_that_is_not_there_is_named_with_its_version(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    copy = logged_with(saved, tmp_path / "copy", keras_distribution="tf_keras", keras="2.21.0")

    for load in (mks.load_model, lambda path: mlflow.pyfunc.load_model(str(path))):
        with pytest.raises(MlflowException, match=r"logged with tf_keras 2\.21\.0(.|\n)*Install tf-keras==2\.21\.0"):
            load(copy)
