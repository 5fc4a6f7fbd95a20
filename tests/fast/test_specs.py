"""Input and output specs: observing, naming, binding, widening, and their JSON."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest

from mlflow_keras_subclass.errors import FormatError, PredictError
from mlflow_keras_subclass.specs import (
    ArraySpec,
    Constant,
    InputSpec,
    Record,
    observe,
    observe_call,
    structure_from_json,
    structure_to_json,
)

Pair = namedtuple("Pair", ["left", "right"])

FLOAT = ArraySpec(shape=(None, 4), dtype="float32")
TOKENS = ArraySpec(shape=(None, 7), dtype="int64", observed=(3, 7))
TEXT = ArraySpec(shape=(None,), dtype="string")

CALLS: dict[str, tuple[InputSpec, list[str | None]]] = {
    "one array": (InputSpec(args=(FLOAT,), kwargs={}, parameters=("x",)), [None]),
    "two arguments": (InputSpec(args=(FLOAT, TEXT), kwargs={}, parameters=("user", "item")), ["user", "item"]),
    "keyword": (InputSpec(args=(FLOAT,), kwargs={"mask": TOKENS}, parameters=("x", "mask")), ["x", "mask"]),
    "dict": (InputSpec(args=({"b": FLOAT, "a": TEXT},), kwargs={}, parameters=("inputs",)), ["b", "a"]),
    "nested dict": (
        InputSpec(args=({"a": {"b": FLOAT}, "c": [TEXT, TOKENS]},), kwargs={}, parameters=("inputs",)),
        ["a_b", "c_0", "c_1"],
    ),
    "list": (InputSpec(args=([FLOAT, TEXT],), kwargs={}, parameters=("inputs",)), ["inputs_0", "inputs_1"]),
    "named tuple": (
        InputSpec(
            args=(Record(name="Pair", fields=("left", "right"), items=(FLOAT, TEXT)),), kwargs={}, parameters=("pair",)
        ),
        ["left", "right"],
    ),
    "with a constant": (
        InputSpec(args=({"x": FLOAT, "flag": Constant(True)},), kwargs={}, parameters=("inputs",)),
        ["x"],
    ),
}
CASES = pytest.mark.parametrize(("spec", "names"), CALLS.values(), ids=CALLS)


@CASES
def test_leaves_are_named_in_call_order(spec: InputSpec, names: list[str | None]) -> None:
    """Names come from keys, fields and parameters; a single bare array has none."""
    assert list(spec.leaves()) == names


@CASES
def test_json_round_trip(spec: InputSpec, names: list[str | None]) -> None:
    """What is stored in config.json comes back equal."""
    assert InputSpec.from_json(spec.to_json()) == spec


@CASES
def test_flatten_inverts_bind(spec: InputSpec, names: list[str | None]) -> None:
    """Arrays put into their places by name are found there again."""
    arrays: dict[str | None, Any] = {name: object() for name in names}

    assert spec.flatten(*spec.bind(arrays)) == arrays


def test_names_that_would_collide_get_a_number() -> None:
    """No array is lost when two paths join to one name."""
    spec = InputSpec(args=({"a_b": FLOAT, "a": {"b": TEXT}},), kwargs={}, parameters=("inputs",))

    assert list(spec.leaves()) == ["a_b", "a_b_2"]


def test_bind_names_what_is_missing_and_unknown() -> None:
    spec, _ = CALLS["two arguments"]

    with pytest.raises(PredictError, match=r"missing: 'item'; unknown: 'price'"):
        spec.bind({"user": 1, "price": 2})


def test_flatten_names_the_place_that_differs() -> None:
    spec, _ = CALLS["nested dict"]

    with pytest.raises(PredictError, match=r"inputs\['a'\]: expected a dict with the keys 'b', got 'x'"):
        spec.flatten(({"a": {"x": 1}, "c": [1, 2]},), {})


def test_observed_arrays_have_an_open_batch_and_the_default_float() -> None:
    """A float64 array that a float32 model was called on is noted as float32; other dtypes are kept."""
    seen = observe({"x": np.zeros((5, 2)), "n": np.zeros(5, np.uint8), "t": np.array(["a"])}, "float32")

    assert seen == {
        "x": ArraySpec(shape=(None, 2), dtype="float32", observed=(5, 2)),
        "n": ArraySpec(shape=(None,), dtype="uint8", observed=(5,)),
        "t": ArraySpec(shape=(None,), dtype="string", observed=(1,)),
    }


def test_observed_structures_keep_their_kinds() -> None:
    """Lists stay lists, tuples tuples, and a named tuple keeps its fields."""
    seen = observe([(1, None), Pair("a", np.zeros((1, 1)))], "float32")

    assert isinstance(seen, list)
    assert seen[0] == (Constant(1), Constant(None))
    assert isinstance(seen[1], Record)
    assert seen[1].fields == ("left", "right")


def test_observed_call_leaves_training_and_none_out() -> None:
    x = np.zeros((1, 4), np.float32)
    spec = observe_call((x, None), {"training": True, "mask": None}, ("x", "mask", "training"), "float32")

    assert list(spec.leaves()) == [None]


def test_dimensions_that_vary_become_open() -> None:
    """Two calls with sequences of different length make the length open; the rank is what it was."""
    short, long = (observe_call((np.zeros((2, n)),), {}, ("x",), "float32") for n in (3, 9))

    assert short.generalized(long).leaves()[None].shape == (None, None)
    assert short.generalized(CALLS["dict"][0]) == short


def test_of_two_calls_with_a_dict_the_one_with_fewer_arrays_is_the_spec() -> None:
    """Training hands the labels over with the features; a prediction does without."""
    training = observe_call(({"x": np.zeros((4, 2)), "label": np.zeros(4)},), {}, ["inputs"], "float32")
    prediction = observe_call(({"x": np.zeros((3, 2))},), {}, ["inputs"], "float32")
    other_rank = observe_call(({"x": np.zeros(3)},), {}, ["inputs"], "float32")

    for spec in (training.generalized(prediction), prediction.generalized(training)):
        assert spec.args[0].keys() == {"x"}
        assert spec.leaves()["x"].shape == (None, 2)
    assert training.generalized(other_rank) == other_rank


def test_structure_keys_keep_their_type() -> None:
    """A dict with whole numbers as keys is not turned into one with strings."""
    structure: Any = {0: FLOAT, "0": TEXT}

    assert structure_from_json(structure_to_json(structure)) == structure


@pytest.mark.parametrize(
    "value",
    [{"shape": [None, 4]}, {"shape": [-1], "dtype": "float32"}, {"shape": ["4"], "dtype": "float32"}, [], {"set": []}],
)
def test_malformed_structures_are_refused(value: Any) -> None:
    with pytest.raises(FormatError):
        structure_from_json(value)


@pytest.mark.parametrize("value", [{}, {"args": [], "kwargs": [], "parameters": []}, None])
def test_malformed_input_specs_are_refused(value: Any) -> None:
    with pytest.raises(FormatError, match="input_spec"):
        InputSpec.from_json(value)
