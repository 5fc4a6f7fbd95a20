"""Every private name of Keras and its backends that the seam uses: a failure here says what a new release moved."""

import threading

import keras
import numpy as np
import pytest

from mlflow_keras_subclass.keras_api import for_runtime

API = for_runtime()


@pytest.fixture
def layer():
    class Both(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = keras.layers.Dense(2)
            self.drop = keras.layers.Dropout(0.5)
            self.w = self.add_weight(shape=(1,), trainable=True)
            self.c = self.add_weight(shape=(2,), trainable=False)

        def call(self, x):
            return self.drop(self.inner(x))

    made = Both()
    made(np.zeros((1, 3), "float32"))
    return made


def test_own_variables_and_sublayers(layer):
    assert [v.shape for v in API.own_variables(layer)] == [(1,), (2,)]
    assert API.sublayers(layer) == [layer.inner, layer.drop]
    assert API.seed_generators(layer.drop) == [layer.drop.seed_generator]


def test_build_arguments_and_default_build(layer):
    assert API.build_arguments(layer.inner) == {"input_shape": (1, 3)}
    assert API.has_default_build(layer)
    assert not API.has_default_build(layer.inner)
    assert API.build_arguments(keras.layers.Dense(1)) is None


def test_a_built_layer_takes_new_state_inside_only(layer):
    with API.unlocked([layer]):
        layer.late = keras.metrics.Mean()

    with pytest.raises(ValueError, match="already built"):
        layer.later = keras.metrics.Mean()


def test_internal_attributes_are_those_of_keras_alone(layer):
    names = API.internal_attributes

    assert {"_layers", "_tracker", "_losses", "built", "_compile_config", "train_function", "_functional"} <= names
    assert names.isdisjoint({"inner", "drop", "w", "c"})


def test_asking_for_internal_attributes_takes_no_automatic_names():
    first = keras.layers.Dense(1).name
    for_runtime().internal_attributes  # noqa: B018 - the first access makes layers
    second = keras.layers.Dense(1).name

    number = int(first.rpartition("_")[2]) if "_" in first else 0
    assert second == f"dense_{number + 1}"


def test_random_initial_values_are_not_drawn_during_construction_and_only_then():
    policy = {"dtype_policy": "float32", "floatx": "float32", "custom_objects": {}}
    with API.construction(**policy):
        dense = keras.layers.Dense(2, bias_initializer="ones")
        dense.build((None, 3))
    after = keras.layers.Dense(2)
    after.build((None, 3))

    assert not dense.kernel.numpy().any()
    assert dense.bias.numpy().all()
    assert after.kernel.numpy().any()


def test_construction_fetches_no_pretrained_weights_and_other_threads_go_on_as_before():
    policy = {"dtype_policy": "float32", "floatx": "float32", "custom_objects": {}}
    options = {"include_top": False, "input_shape": (96, 96, 3), "pooling": "avg"}
    elsewhere = {}

    def in_another_thread():
        elsewhere["dense"] = keras.layers.Dense(2)
        elsewhere["dense"].build((None, 3))
        try:
            keras.applications.MobileNetV2(weights="no such file", **options)
        except ValueError as error:
            elsewhere["error"] = str(error)

    with API.construction(**policy):
        fetched = keras.applications.MobileNetV2(weights="imagenet", **options)
        of_file = keras.applications.VGG16(weights="no such file.h5", **options)
        of_file.load_weights("nor this.weights.h5")
        thread = threading.Thread(target=in_another_thread)
        thread.start()
        thread.join()

    assert not any(np.any(item.numpy()) for item in fetched.weights if item.name == "kernel")
    assert not any(np.any(item.numpy()) for item in of_file.weights)
    assert np.all(elsewhere["dense"].kernel.numpy())
    assert "weights" in elsewhere["error"]
    with pytest.raises(ValueError, match="path to the weights file"):
        keras.applications.VGG16(weights="no such file.h5", **options)
    with pytest.raises(FileNotFoundError):
        of_file.load_weights("nor this.weights.h5")


def test_construction_restores_keras_globals_after_a_failure():
    class Own:
        pass

    registry = dict(keras.saving.get_custom_objects())
    policy = {"dtype_policy": "mixed_float16", "floatx": "float64", "custom_objects": {"p>X": Own}}
    inside = []

    def fail():
        inside.extend((keras.config.dtype_policy().name, keras.config.floatx()))
        inside.extend((keras.saving.get_registered_object("p>X"), keras.saving.get_registered_name(Own)))
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"), API.construction(**policy):
        fail()

    assert inside == ["mixed_float16", "float64", Own, "p>X"]
    assert keras.config.dtype_policy().name == "float32"
    assert keras.config.floatx() == "float32"
    assert keras.saving.get_custom_objects() == registry
    assert keras.saving.get_registered_name(Own) == "Own"


def test_optimizer_keeps_the_variables_it_trains_in_order():
    dense = keras.layers.Dense(2)
    dense.build((None, 3))
    optimizer = keras.optimizers.Adam()
    optimizer.build(dense.trainable_variables)

    assert [id(v) for v in optimizer._trainable_variables] == [id(v) for v in dense.trainable_variables]


def test_compile_config_keeps_the_arguments_as_they_are():
    model = keras.Sequential([keras.layers.Dense(1)])
    loss = keras.losses.MeanSquaredError()
    model.compile("sgd", loss=loss)

    assert model._compile_config.config["loss"] is loss


def test_attributes_of_a_variable_that_state_relies_on():
    variable = keras.Variable(np.zeros(2, "float32"), trainable=False)

    assert hasattr(variable, "_trainable")
    assert API.shape_and_dtype(variable) == ((2,), "float32")
    assert not API.is_trainable(variable)
