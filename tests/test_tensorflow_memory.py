"""Variables that take over the memory of arrays that were read: nothing is copied, nothing else writes there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import mlflow_keras_subclass as mks
from mlflow_keras_subclass.keras_api.tensorflow_memory import read_in_place, taken_over, untouched_zeros
from mlflow_keras_subclass.tensors import ALIGNMENT, aligned

SHAPE = (600, 600)


class Wide(keras.Model):
    """Two variables that are large enough to be taken over."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = keras.layers.Dense(600), keras.layers.Dense(600)

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))


def test_a_tensor_lies_in_the_memory_of_the_array() -> None:
    array = aligned(SHAPE, np.dtype("float32"), np.zeros)
    tensor = taken_over(array)
    array[3, 4] = 7.0

    assert isinstance(tensor, tf.Tensor)
    assert float(tensor[3, 4]) == 7.0


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int32", "int64", "uint32", "float16", "float64"])
def test_a_tensor_has_the_dtype_and_values_of_the_array(dtype: str) -> None:
    array = aligned((1200, 1200), np.dtype(dtype), np.zeros)
    array[:] = np.arange(1200) % 2
    tensor = taken_over(array)

    assert tensor.dtype.name == dtype
    assert np.array_equal(tensor.numpy(), array)


def test_what_cannot_be_taken_over_is_left_as_it_is() -> None:
    """Small arrays, memory that vector instructions cannot read, dtypes of other packages."""
    shifted = np.zeros(SHAPE[0] * SHAPE[1] * 4 + ALIGNMENT, np.uint8)
    start = 4 - shifted.ctypes.data % 4 + (0 if (shifted.ctypes.data + 4) % ALIGNMENT else 4)
    unaligned = shifted[start : start + SHAPE[0] * SHAPE[1] * 4].view(np.float32).reshape(SHAPE)
    for array in (np.zeros(3), unaligned, aligned((1200, 1200), np.dtype(ml_dtypes.bfloat16), np.zeros)):
        assert taken_over(array) is array


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int64", "complex64"])
def test_a_variable_is_read_in_place(dtype: str) -> None:
    variable = tf.Variable(tf.cast([[0, 1], [1, 0]], dtype))
    first, second = read_in_place(variable), read_in_place(variable)

    assert first is not None
    assert second is not None
    assert first.ctypes.data == second.ctypes.data
    assert first.dtype == variable.numpy().dtype
    assert first.tobytes() == variable.numpy().tobytes()
    assert not first.flags.writeable


def test_what_was_read_stays_when_the_variable_changes() -> None:
    """Whatever changes it: an assignment, an optimizer's update in place, one of single rows, a compiled function."""
    for change in (
        lambda variable: variable.assign(tf.zeros((2, 2))),
        lambda variable: variable.assign_add(tf.ones((2, 2))),
        lambda variable: variable.scatter_nd_update([[0, 0]], [9.0]),
        tf.function(lambda variable: variable.assign_sub(tf.ones((2, 2))), jit_compile=False),
        tf.function(lambda variable: variable.assign_sub(tf.ones((2, 2))), jit_compile=True),
        lambda variable: tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=0.5, delta=tf.ones((2, 2))),
    ):
        variable = tf.Variable([[1.0, 2.0], [3.0, 4.0]])
        before = read_in_place(variable)
        change(variable)
        after = read_in_place(variable)

        assert before is not None
        assert after is not None
        assert before.tolist() == [[1.0, 2.0], [3.0, 4.0]]
        assert after.tolist() != before.tolist()
        assert after.ctypes.data != before.ctypes.data


def test_what_cannot_be_read_in_place_is_said() -> None:
    assert read_in_place(tf.Variable(["a"])) is None
    assert read_in_place(tf.Variable(tf.cast([1.0], "float8_e4m3fn"))) is None


def test_zeros_are_zeros_and_no_tensor_where_there_is_a_graph() -> None:
    assert not np.any(untouched_zeros(SHAPE, "float32"))
    assert untouched_zeros(SHAPE, "bfloat16") is None
    made: list[Any] = []
    tf.function(lambda: made.append(untouched_zeros(SHAPE, "float32")))()
    assert made == [None]


def test_training_goes_on_in_that_memory_as_in_any_other(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    x = np.random.default_rng(0).normal(size=(8, 600)).astype("float32")
    model = Wide()
    model.compile("adam", loss="mse", jit_compile=False)
    model.fit(x, x, epochs=2, verbose=0)
    mks.save_model(model, tmp_path / "m", prove=False)
    loaded = mks.load_model(tmp_path / "m")
    untouched = [item.numpy() for item in mks.load_model(tmp_path / "m").weights]

    for one in (model, loaded):
        one.fit(x, x, epochs=2, shuffle=False, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(model.weights, loaded.weights, strict=True))
    again = [item.numpy() for item in mks.load_model(tmp_path / "m").weights]
    assert all(np.array_equal(a, b) for a, b in zip(untouched, again, strict=True))
