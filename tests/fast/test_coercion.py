"""From a caller's data to the arrays of a call, and from outputs to what leaves: lossless or refused."""

from __future__ import annotations

import json
from collections import namedtuple
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflow_keras_subclass.coercion import coerce, example_arrays, fit, refuse_non_finite, refuse_unequal_rows
from mlflow_keras_subclass.errors import PredictError
from mlflow_keras_subclass.outputs import flattened, in_form, json_safe, named_specs, returns_logits
from mlflow_keras_subclass.specs import ArraySpec, InputSpec, observe

FLOAT = ArraySpec(shape=(None, 2), dtype="float32")
IMAGE = ArraySpec(shape=(None, 2, 2, 1), dtype="float32")
NUMBER = ArraySpec(shape=(None,), dtype="int32")
COLUMN = ArraySpec(shape=(None, 1), dtype="float32")
TEXT = ArraySpec(shape=(None,), dtype="string")

ONE = InputSpec(args=(FLOAT,), kwargs={}, parameters=("x",))
PICTURE = InputSpec(args=(IMAGE,), kwargs={}, parameters=("x",))
TWO = InputSpec(args=(FLOAT, TEXT), kwargs={}, parameters=("x", "text"))
TABLE = InputSpec(args=({"age": COLUMN, "rooms": NUMBER},), kwargs={}, parameters=("inputs",))
NESTED = InputSpec(args=({"a": {"b": FLOAT}, "c": TEXT},), kwargs={}, parameters=("inputs",))

ROWS = [[1.0, 2.0], [3.0, 4.0]]


def exactly(array: Any, expected: Any, dtype: str) -> bool:
    return array.dtype == np.dtype(dtype) and np.array_equal(array, np.asarray(expected, dtype))


@pytest.mark.parametrize(
    "data",
    [
        np.array(ROWS, np.float32),
        np.array(ROWS),
        np.array(ROWS, int),
        ROWS,
        [np.array(ROWS)],
        [np.array(row) for row in ROWS],
        pd.DataFrame(ROWS),
        pd.DataFrame({"x": ROWS}),
        pd.DataFrame({"x": [np.array(row) for row in ROWS]}),
        pd.DataFrame(ROWS, columns=["a", "b"], dtype=object),
        {"any name": ROWS},
    ],
    ids=repr,
)
def test_one_array_from_every_form(data: Any) -> None:
    """Arrays, lists, scalar columns and a column of lists are the same array to a model of one array."""
    assert exactly(coerce(data, ONE)[None], ROWS, "float32")


@pytest.mark.parametrize(
    "data",
    [
        {"x": np.array(ROWS), "text": ["a", "b"]},
        [np.array(ROWS), np.array(["a", "b"])],
        (ROWS, ["a", "b"]),
        [{"x": ROWS[0], "text": "a"}, {"x": ROWS[1], "text": "b"}],
        pd.DataFrame({"x": ROWS, "text": ["a", "b"]}),
        pd.DataFrame({"text": pd.Series(["a", "b"], dtype="string"), "x": ROWS}),
    ],
    ids=repr,
)
def test_several_arrays_from_every_form(data: Any) -> None:
    """By name from a dict, records or a DataFrame; by position from a list or tuple."""
    found = coerce(data, TWO)

    assert exactly(found["x"], ROWS, "float32")
    assert found["text"].dtype == object
    assert found["text"].tolist() == ["a", "b"]


def test_scalar_columns_are_named_arrays_of_their_shape() -> None:
    found = coerce(pd.DataFrame({"rooms": [3, 4], "age": [1.5, 2.5]}), TABLE)

    assert exactly(found["age"], [[1.5], [2.5]], "float32")
    assert exactly(found["rooms"], [3, 4], "int32")


@pytest.mark.parametrize("flat", [True, False])
def test_list_columns_are_reshaped_by_the_spec(flat: bool) -> None:
    """MLflow sends the rows of a high-rank tensor as flat lists; nested ones are taken as well."""
    images = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)
    rows = [image.ravel().tolist() if flat else image.tolist() for image in images]

    assert exactly(coerce(pd.DataFrame({"x": rows}), PICTURE)[None], images, "float32")


def test_nested_inputs_by_flat_names_and_as_they_are() -> None:
    by_name = coerce({"a_b": ROWS, "c": ["x", "y"]}, NESTED)
    nested = coerce({"a": {"b": ROWS}, "c": ["x", "y"]}, NESTED)

    assert list(by_name) == list(nested) == ["a_b", "c"]
    assert np.array_equal(by_name["a_b"], nested["a_b"])


def test_an_empty_list_is_an_empty_batch() -> None:
    assert coerce([], PICTURE)[None].shape == (0, 2, 2, 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((3, 5)), r"The input: expected the shape \(None, 2\), got \(3, 5\)"),
        (np.zeros(2), r"expected the shape \(None, 2\), got \(2,\)"),
        ([[1.0], [1.0, 2.0]], r"expected the shape \(None, 2\), got a list of 2 items whose rows differ"),
        (1.0, r"expected the shape \(None, 2\), got float"),
        ([["a", "b"]], r"expected float32, got strings"),
        ([[1.0, None]], r"expected float32, got None of type NoneType"),
        (np.array([[1.0, 1e39]]), r"expected values in the range of float32, got 1e\+39"),
        ([[1.0, 10**400]], "The input: expected float32, got a number of 1329 bits of type int"),
        (np.zeros((1, 2), complex), r"expected float32, got complex128"),
        ([[1.0, 10**9999]], "expected float32, got a number of 33216 bits"),
        ({"x": ROWS, "y": ROWS}, "takes one array without a name, got a dict with the keys x, y"),
        (
            pd.DataFrame({"a": [1], "b": [2], "c": [3]}),
            r"expected the shape \(None, 2\), got a DataFrame with 3 columns",
        ),
    ],
)
def test_what_does_not_fit_is_refused(data: Any, message: str) -> None:
    """The text names the input, and what was expected and found there."""
    with pytest.raises(PredictError, match=message):
        coerce(data, ONE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": ROWS}, "missing: text; unknown: none"),
        ({"x": ROWS, "text": ["a", "b"], "z": 1}, "missing: none; unknown: z"),
        ({"x": ROWS, "text": [1, 2]}, "Input 'text': expected strings, got int"),
        ({"x": ROWS, "text": np.array([1, 2])}, "Input 'text': expected strings, got int64"),
        (pd.DataFrame({"x": ROWS}), "missing columns: text"),
        (np.zeros((2, 2)), "expected a dict or DataFrame with these names.*got one array"),
        ([{"x": 1}, {"y": 1}], "Row 1 has the keys 'y', row 0 has 'x'"),
    ],
)
def test_wrong_inputs_are_named(data: Any, message: str) -> None:
    with pytest.raises(PredictError, match=message):
        coerce(data, TWO)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        ([1.5], "int32", "expected whole numbers for int32, got 1.5"),
        ([float("nan")], "int32", "expected whole numbers for int32, got nan"),
        ([2**31], "int32", "expected values in the range of int32, got 2147483648"),
        ([-1], "uint8", "expected values in the range of uint8, got -1"),
        ([float(2**63)], "int64", "expected values in the range of int64, got 9.22"),
        ([2], "bool", "expected bool, got int64"),
        ([70000.0], "float16", "expected values in the range of float16, got 70000.0"),
    ],
)
def test_lossy_conversions_are_refused(value: Any, dtype: str, message: str) -> None:
    with pytest.raises(PredictError, match=message):
        fit("x", value, ArraySpec(shape=(None,), dtype=dtype))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([1.0, 2.0], "int32"),
        ([True, False], "float32"),
        ([1, 2], "uint8"),
        (np.array([1, 2], np.int64), "float64"),
        ([float("inf"), float("nan")], "float32"),
        (np.array([], object), "float32"),
    ],
)
def test_lossless_conversions_are_made(value: Any, dtype: str) -> None:
    found = fit("x", value, ArraySpec(shape=(None,), dtype=dtype))

    assert found.dtype == np.dtype(dtype)
    assert np.array_equal(found, np.asarray(value, dtype), equal_nan=found.dtype.kind == "f")


def test_an_array_that_fits_is_not_copied() -> None:
    array = np.array(ROWS, np.float32)

    assert coerce(array, ONE)[None] is array


def test_the_callers_data_is_not_changed() -> None:
    frame = pd.DataFrame({"x": ROWS, "text": ["a", "b"]})
    before = frame.copy(deep=True)
    coerce(frame, TWO)

    pd.testing.assert_frame_equal(frame, before)


def test_examples_become_arrays_without_a_spec() -> None:
    assert exactly(example_arrays(pd.DataFrame({"a": [1, 2], "b": [3.0, 4.0]})), [[1, 3], [2, 4]], "float32")
    assert exactly(example_arrays([[1, 2]]), [[1, 2]], "int64")
    assert example_arrays({"t": np.array(["a"])})["t"].dtype == object


Codes = namedtuple("Codes", ["mean", "scale"])
A, B = np.zeros((2, 3), np.float32), np.ones(2, np.int64)


@pytest.mark.parametrize(
    ("outputs", "kind", "names"),
    [
        (A, np.ndarray, [None]),
        ((A, B), list, ["output_0", "output_1"]),
        ([A], list, ["output_0"]),
        ({"a": A, "b": B}, dict, ["a", "b"]),
        (Codes(A, B), dict, ["mean", "scale"]),
        ({"a": (A, B), "c": {"d": A}}, dict, ["a_0", "a_1", "c_d"]),
        ((A, {"b": B}), dict, ["output_0", "output_1_b"]),
        ({"a": A, "none": None}, dict, ["a"]),
    ],
)
def test_outputs_are_flat_and_named_as_in_the_signature(outputs: Any, kind: type, names: list[str | None]) -> None:
    """The same rule names values and specs, and the scoring server's encoder takes the result."""
    flat = flattened(outputs)

    assert isinstance(flat, kind)
    assert list(named_specs(observe(outputs, "float32"))) == names
    if isinstance(flat, dict):
        assert list(flat) == names


def test_numbers_that_json_lacks_become_null() -> None:
    safe = json_safe({"a": np.array([1.0, np.nan, np.inf])})

    assert json.dumps(safe["a"].tolist()) == "[1.0, null, null]"


# --- what only a server refuses


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_json_lacks_are_found_with_their_place(value: float) -> None:
    array = np.array([[1.0, 2.0], [value, 4.0]], np.float32)

    with pytest.raises(PredictError, match=rf"Input 'age': expected finite numbers, got {value} at \[1, 0\]"):
        refuse_non_finite({"age": array})
    refuse_non_finite({"age": array[:1], "rooms": np.array([3]), "text": np.array(["nan"], object)})


def test_unequal_rows_are_named() -> None:
    with pytest.raises(PredictError, match="as many rows in every input, got a 2, b 1"):
        refuse_unequal_rows({"a": np.zeros((2, 1)), "b": np.zeros(1)})
    refuse_unequal_rows({"a": np.zeros((2, 1)), "b": np.zeros(2), "scalar": np.array(1)})


# --- output forms of a classifier

LOGITS = np.array([[0.0, 2.0, -1.0], [200.0, 0.0, -200.0]], np.float32)


def test_classes_and_probabilities_of_several_scores() -> None:
    proba = in_form("proba", LOGITS, from_logits=True)

    assert in_form("class", LOGITS, from_logits=None).tolist() == [1, 0]
    np.testing.assert_allclose(proba[0], np.exp(LOGITS[0]) / np.exp(LOGITS[0]).sum(), rtol=1e-6)
    np.testing.assert_allclose(proba.sum(axis=-1), 1, rtol=1e-6)
    assert proba.dtype == np.float32
    assert in_form("proba", proba, from_logits=False) is proba


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_classes_and_probabilities_of_one_score(shape: tuple[int, ...]) -> None:
    """Above one half is class 1, which is above zero for logits; no end of the range overflows."""
    scores = np.array([-200.0, 0.2, 0.7, 200.0], np.float32).reshape(shape)

    assert in_form("class", scores, from_logits=True).tolist() == [0, 1, 1, 1]
    assert in_form("class", scores, from_logits=False).tolist() == [0, 0, 1, 1]
    with np.errstate(all="raise", under="ignore"):
        proba = in_form("proba", scores, from_logits=True)
    assert proba.shape == shape
    np.testing.assert_allclose(proba.ravel()[1:], [1 / (1 + np.exp(-0.2)), 1 / (1 + np.exp(-0.7)), 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"a": LOGITS}, "expected a model that returns one array of scores, got a dict"),
        (np.array(["x"], object), "got an array of object"),
        (LOGITS[:, :1], "not known whether the model returns logits or probabilities"),
    ],
)
def test_outputs_without_such_a_form_are_refused(outputs: Any, message: str) -> None:
    with pytest.raises(PredictError, match=message):
        in_form("class", outputs, from_logits=None)


def test_values_tell_logits_from_probabilities_of_several_classes_only() -> None:
    assert returns_logits(LOGITS) is True
    assert returns_logits(in_form("proba", LOGITS, from_logits=True)) is False
    assert returns_logits(LOGITS[:, :1]) is None
    assert returns_logits({"a": LOGITS}) is None
