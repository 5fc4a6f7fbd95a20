"""The recorder takes notes of what really was passed, changes nothing, and keeps nothing alive."""

import gc
import os
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest

from mlflow_keras_subclass import recorder
from mlflow_keras_subclass.specs import ArraySpec

X = np.zeros((3, 4), "float32")


class Net(keras.Model):
    def __init__(self, config, *widths, scale=1.0):
        super().__init__()
        config.pop("gone")
        self.dense = keras.layers.Dense(widths[0])
        self.child = Child(self)
        self.scale = scale

    def call(self, x, other=None, training=False):
        return self.child(self.dense(x)) * self.scale


class Child(keras.layers.Layer):
    def __init__(self, parent):
        super().__init__()
        self.units = len(parent.weights)

    def call(self, x):
        return x


def test_arguments_are_those_passed_before_the_constructor_changed_them():
    net = Net({"gone": (1, 2), "kept": [3]}, 4, 5, scale=2.0)

    noted = recorder.constructor_arguments(net)

    assert noted.args == ({"gone": (1, 2), "kept": [3]}, 4, 5)
    assert noted.kwargs == {"scale": 2.0}
    assert recorder.constructor_arguments(net.dense).args == (4,)
    assert recorder.constructor_arguments(net.child).args == (net,)


def test_keras_itself_would_have_stored_the_defaults():
    """Why all this: the day this fails, Keras records the arguments of a Model subclass itself."""

    class Scaled(keras.Model):
        def __init__(self, scale=1.0):
            super().__init__()
            self.scale = scale

    assert Scaled(scale=7.0).get_config()["scale"] == 1.0


def test_a_note_keeps_no_model_alive():
    """Not even one that passed itself to a layer that it made, and whose note would hold it."""
    net = Net({"gone": 1}, 4)
    net(X)
    gone = weakref.ref(net)

    del net
    gc.collect()

    assert gone() is None


def test_equal_and_unhashable_instances_have_notes_of_their_own():
    class Equal(keras.layers.Layer):
        __hash__ = None

        def __init__(self, n):
            super().__init__()
            self.n = n

        def __eq__(self, other):
            return True

    assert [recorder.constructor_arguments(layer).args for layer in (Equal(1), Equal(2))] == [(1,), (2,)]


def test_nothing_is_put_on_the_instance():
    with_notes = set(vars(Net({"gone": 1}, 4)))
    code = (
        "import keras\n"
        "class Child(keras.layers.Layer):\n"
        "    def __init__(self, parent):\n"
        "        super().__init__()\n"
        "        self.units = 0\n"
        "class Net(keras.Model):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.dense = keras.layers.Dense(4)\n"
        "        self.child = Child(self)\n"
        "        self.scale = 1.0\n"
        "print(sorted(vars(Net())))\n"
    )
    without = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)

    assert sorted(with_notes) == eval(without.stdout)


def test_calls_are_noted_with_open_batch_and_varying_dimensions():
    net = Net({"gone": 1}, 4)
    net(np.zeros((3, 5, 4), "float64"), training=True)
    net(np.zeros((2, 7, 4), "float32"))

    spec = recorder.observed_input_spec(net)

    assert spec.args == (ArraySpec(shape=(None, None, 4), dtype="float32", observed=(2, 7, 4)),)
    assert spec.kwargs == {}
    assert spec.parameters == ("x", "other", "training")


def test_fit_notes_the_call_too():
    net = Net({"gone": 1}, 4)
    net.compile("sgd", "mse")
    net.fit(X, np.zeros((3, 4)), verbose=0)

    assert recorder.observed_input_spec(net).leaves()[None].shape == (None, 4)


def test_compile_arguments_are_those_of_the_users_own_compile():
    class Gan(Net):
        def compile(self, d_optimizer, /, *, g_optimizer, **rest):
            super().compile(**rest)
            self.d_optimizer = d_optimizer

    gan = Gan({"gone": 1}, 4)
    gan.compile("d", g_optimizer="g", loss="mse")

    assert recorder.compile_arguments(gan) == recorder.Arguments(("d",), {"g_optimizer": "g", "loss": "mse"})


def test_plain_compile():
    net = Net({"gone": 1}, 4)
    net.compile("adam", loss="mse")

    assert recorder.compile_arguments(net) == recorder.Arguments(("adam",), {"loss": "mse"})


def test_user_classes_of_every_keras_kind_are_noted():
    class Loss(keras.losses.Loss):
        def __init__(self, gamma):
            super().__init__()
            self.gamma = gamma

    class Schedule(keras.optimizers.schedules.LearningRateSchedule):
        def __init__(self, rate):
            self.rate = rate

    class Stack(keras.Sequential):
        def __init__(self, n):
            super().__init__([keras.layers.Dense(n)])

    for made in (Loss(2), Schedule(2), Stack(2)):
        assert recorder.constructor_arguments(made).args == (2,)


def test_import_order_and_switch():
    """Armed before or after Keras is imported, and off by the environment variable."""
    code = """
import sys
{first}
import mlflow_keras_subclass.recorder as recorder
{second}
import keras
class Net(keras.Model):
    def __init__(self, n):
        super().__init__()
print(recorder.constructor_arguments(Net(3)))
"""
    keras_first = code.format(first="import keras", second="")
    keras_last = code.format(first="", second="assert 'keras' not in sys.modules and 'tensorflow' not in sys.modules")
    runs = [(keras_first, {}), (keras_last, {}), (keras_last, {recorder.RECORDER_VARIABLE: "off"})]

    outputs = [
        subprocess.run(
            [sys.executable, "-c", text],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
            env={**os.environ, **env},
        ).stdout.strip()
        for text, env in runs
    ]

    assert outputs == ["Arguments(args=(3,), kwargs={})", "Arguments(args=(3,), kwargs={})", "None"]


@pytest.mark.parametrize("name", ["__new__", "_maybe_build"])
def test_the_names_that_the_recorder_relies_on_are_there(name):
    """``_maybe_build`` is private: where it is gone, calls are not noted and an input example is needed."""
    assert hasattr(keras.layers.Layer, name)
