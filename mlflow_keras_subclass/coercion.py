"""From what a caller of ``predict`` has to the arrays that the model takes: lossless or refused.

Imports errors and specs. Must not import Keras or MLflow: what comes in here is numpy arrays, pandas objects, lists and
dicts; what goes out is arrays by the names of ``InputSpec.leaves()``, each of exactly the shape and dtype of its spec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from mlflow_keras_subclass.errors import PredictError
from mlflow_keras_subclass.specs import ArraySpec, InputSpec

__all__ = ["Arrays", "coerce", "example_arrays", "fit", "numpy_dtype", "refuse_non_finite", "refuse_unequal_rows"]

Array: TypeAlias = "np.ndarray[Any, Any]"
Arrays: TypeAlias = "dict[str | None, Array]"


def coerce(data: Any, spec: InputSpec, leaves: Mapping[str | None, ArraySpec] | None = None) -> Arrays:
    """The arrays that a model of this spec takes, by name, from ``data`` in any of the forms that are accepted.

    Whoever calls this often passes ``spec.leaves()``, which is worked out anew otherwise.

    Raises:
        PredictError: An input is missing or unknown, or has a shape or values that the model does not take.
    """
    leaves = spec.leaves() if leaves is None else leaves
    found = _by_name(data, spec, leaves)
    return {name: fit(name, found[name], leaf) for name, leaf in leaves.items()}


def example_arrays(example: Any) -> Any:
    """An input example as the arrays to call a model with whose spec is not known yet; structure is kept."""
    if isinstance(example, pd.DataFrame):
        columns = {name: _column(example[name]) for name in example.columns}
        if all(np.ndim(column) == 1 and column.dtype.kind in "biuf" for column in columns.values()):
            return example.to_numpy(dtype=np.float32)
        return columns if len(columns) > 1 else next(iter(columns.values()))
    if isinstance(example, pd.Series):
        return _column(example)
    if isinstance(example, Mapping):
        return {key: example_arrays(item) for key, item in example.items()}
    if isinstance(example, tuple) or (isinstance(example, list) and any(hasattr(item, "shape") for item in example)):
        return type(example)(example_arrays(item) for item in example)
    array = np.asarray(example)
    return array.astype(object) if array.dtype.kind == "U" else array


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a spec's dtype name; strings are objects, dtypes that numpy lacks are float32."""
    if name == "string":
        return np.dtype(object)
    try:
        return np.dtype(name)
    except TypeError:
        return np.dtype(np.float32)


def fit(name: str | None, value: Any, leaf: ArraySpec) -> Array:
    """``value`` as one array of the shape and dtype of ``leaf``; values are never changed, only their dtype.

    Raises:
        PredictError: The shape does not fit, or a value cannot be represented in the dtype.
    """
    array = _as_array(name, value, leaf)
    shape = tuple(array.shape)
    fits = len(shape) == len(leaf.shape) and all(e is None or e == g for e, g in zip(leaf.shape, shape, strict=True))
    if not fits:
        raise PredictError(f"{_what(name)}: expected the shape {leaf.shape}, got {shape}.")
    return _cast(name, array, leaf)


def refuse_non_finite(arrays: Arrays) -> None:
    """Refuse NaN and infinities: what MLflow's server makes of ``null``, ``NaN`` and numbers out of range.

    Raises:
        PredictError: There is one; the text says where.
    """
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            place = [int(number) for number in np.argwhere(~np.isfinite(array))[0]]
            raise PredictError(
                f"{_what(name)}: expected finite numbers, got {array[tuple(place)]} at {place}: null, NaN or a number "
                'out of range. Leave such rows out, or log the model with model_config={"allow_nan": True}.'
            )


def refuse_unequal_rows(arrays: Arrays) -> None:
    """Refuse inputs of different lengths, which a model would broadcast or fail on.

    Raises:
        PredictError: They have; the text says which.
    """
    rows = {name: len(array) for name, array in arrays.items() if array.ndim}
    if len({*rows.values()}) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise PredictError(f"expected as many rows in every input, got {listed}.")


# --- finding the arrays


def _by_name(data: Any, spec: InputSpec, leaves: Mapping[str | None, ArraySpec]) -> Mapping[Any, Any]:
    if isinstance(data, pd.DataFrame):
        return _from_frame(data, leaves)
    if isinstance(data, Mapping):
        return _from_mapping(data, spec, leaves)
    if isinstance(data, list) and data and all(isinstance(row, Mapping) for row in data):
        return _from_mapping(_records(data), spec, leaves)
    if len(leaves) == 1:
        name, leaf = next(iter(leaves.items()))
        return {name: data[0] if _wraps_one_array(data, leaf) else data}
    if isinstance(data, list | tuple) and len(data) == len(leaves):
        return spec.flatten(data, {}) if len(spec.args) == len(data) else dict(zip(leaves, data, strict=True))
    raise PredictError(
        f"The model takes the inputs {_names(leaves)}: expected a dict or DataFrame with these names, or a list with "
        f"one array for each, got {_kind(data)}."
    )


def _wraps_one_array(data: Any, leaf: ArraySpec) -> bool:
    """Whether ``data`` is a sequence that holds the one array of a model, as Keras' ``predict([x])`` takes it."""
    if not isinstance(data, list | tuple) or len(data) != 1:
        return False
    return isinstance(data[0], np.ndarray) and data[0].ndim == len(leaf.shape)


def _from_mapping(
    data: Mapping[Any, Any], spec: InputSpec, leaves: Mapping[str | None, ArraySpec]
) -> Mapping[Any, Any]:
    if data.keys() == leaves.keys():
        return data
    if list(leaves) == [None] and len(data) == 1:
        # A user's own signature may name what the model does not.
        return {None: next(iter(data.values()))}
    nested = not spec.kwargs and len(spec.args) == 1 and isinstance(spec.args[0], dict)
    if nested and any(isinstance(item, Mapping | list | tuple) for item in data.values()):
        return spec.flatten((data,), {})
    missing = sorted(str(name) for name in leaves.keys() - data.keys())
    unknown = sorted(str(name) for name in data.keys() - leaves.keys())
    if list(leaves) == [None]:
        raise PredictError(f"The model takes one array without a name, got a dict with the keys {', '.join(unknown)}.")
    raise PredictError(
        f"The model takes the inputs {_names(leaves)}; missing: {', '.join(missing) or 'none'}; "
        f"unknown: {', '.join(unknown) or 'none'}."
    )


def _records(rows: Sequence[Mapping[Any, Any]]) -> dict[Any, list[Any]]:
    keys = rows[0].keys()
    for number, row in enumerate(rows):
        if row.keys() != keys:
            raise PredictError(f"Row {number} has the keys {_names(row)}, row 0 has {_names(keys)}: expected the same.")
    return {key: [row[key] for row in rows] for key in keys}


def _from_frame(frame: pd.DataFrame, leaves: Mapping[str | None, ArraySpec]) -> Mapping[Any, Any]:
    if len(leaves) > 1 or (len(frame.columns) == 1 and next(iter(leaves)) in frame.columns):
        missing = [str(name) for name in leaves if name not in frame.columns]
        if missing:
            raise PredictError(
                f"The model takes the inputs {_names(leaves)}; missing columns: {', '.join(missing)}; "
                f"the DataFrame has {_names(frame.columns)}."
            )
        return {name: _reshaped(name, frame[name], leaf) for name, leaf in leaves.items()}
    name, leaf = next(iter(leaves.items()))
    if len(frame.columns) == 1:
        return {name: _reshaped(name, frame[frame.columns[0]], leaf)}
    return {name: _scalar_columns(name, frame, leaf)}


def _scalar_columns(name: str | None, frame: pd.DataFrame, leaf: ArraySpec) -> Array:
    width = len(frame.columns)
    if len(leaf.shape) != 2 or leaf.shape[1] not in (None, width):
        raise PredictError(
            f"{_what(name)}: expected the shape {leaf.shape}, got a DataFrame with {width} columns. Give one column "
            "with a list in each row, or as many scalar columns as the last dimension has."
        )
    array = frame.to_numpy()
    if array.dtype == object and any(isinstance(item, list | tuple | np.ndarray) for item in array.ravel()):
        raise PredictError(f"{_what(name)}: expected scalar values in all {width} columns of the DataFrame, got lists.")
    return array


def _reshaped(name: str | None, series: pd.Series[Any], leaf: ArraySpec) -> Array:
    """One column as an array: its rows are scalars, or lists that hold each row's values, flat or nested."""
    array, sizes = _column(series), leaf.shape[1:]
    if tuple(array.shape[1:]) == sizes or None in sizes or array.ndim == 0:
        return array
    if array.dtype == object and array.ndim == 1 and len(sizes) > 1 and len(array):
        raise PredictError(f"{_what(name)}: the rows of column {series.name!r} differ in length.")
    try:
        return array.reshape((len(series), *(int(size or 0) for size in sizes)))
    except ValueError:
        raise PredictError(
            f"{_what(name)}: expected the shape {leaf.shape}, got the shape {array.shape} in column {series.name!r}."
        ) from None


def _column(series: pd.Series[Any]) -> Array:
    if series.dtype == object and len(series) and isinstance(series.iloc[0], list | tuple | np.ndarray):
        try:
            return np.array([np.asarray(item) for item in series])
        except ValueError:
            return np.asarray(series.to_numpy())
    if isinstance(series.dtype, pd.StringDtype | pd.CategoricalDtype):
        return series.astype(object).to_numpy()
    return np.asarray(series.to_numpy())


# --- fitting one array


def _as_array(name: str | None, value: Any, leaf: ArraySpec) -> Array:
    if isinstance(value, pd.Series):
        value = _column(value)
    if hasattr(value, "toarray"):  # scipy's sparse matrices, which MLflow passes on
        value = value.toarray()
    if isinstance(value, list | tuple) and len(value) == 0:
        return np.empty((0, *(size or 0 for size in leaf.shape[1:])), numpy_dtype(leaf.dtype))
    try:
        array = np.asarray(value, dtype=object if leaf.dtype == "string" and not hasattr(value, "dtype") else None)
    except (ValueError, TypeError, OverflowError):
        raise PredictError(
            f"{_what(name)}: expected the shape {leaf.shape}, got {_kind(value)} whose rows differ in shape."
        ) from None
    if array.ndim == 0 and leaf.shape:
        raise PredictError(f"{_what(name)}: expected the shape {leaf.shape}, got {_kind(value)}.")
    return array


def _cast(name: str | None, array: Array, leaf: ArraySpec) -> Array:
    target = numpy_dtype(leaf.dtype)
    if leaf.dtype == "string":
        return _strings(name, array)
    if array.dtype == object:
        array = _numbers(name, array, leaf)
    if array.dtype == target:
        return array
    source, kind = array.dtype.kind, target.kind
    if source in "biuf" and kind == "f":
        return _to_float(name, array, target)
    if source in "iuf" and kind in "iu":
        return _to_integer(name, array, target)
    if np.can_cast(array.dtype, target, "safe") and source not in "SUmM":
        return array.astype(target)
    raise PredictError(f"{_what(name)}: expected {leaf.dtype}, got {_dtype(array)}.")


def _strings(name: str | None, array: Array) -> Array:
    if array.dtype.kind in "SU":
        return array.astype(object)
    if any(isinstance(item, np.ndarray) for item in array.ravel()):
        # MLflow's server makes an array without dimensions of each string of a named input under `instances`.
        array = _unwrapped(array)
    for item in array.ravel() if array.dtype == object else [array.dtype.name]:
        if array.dtype != object or not isinstance(item, str | bytes):
            got = type(item).__name__ if array.dtype == object else array.dtype.name
            raise PredictError(f"{_what(name)}: expected strings, got {got}.")
    return array


def _unwrapped(array: Array) -> Array:
    found = np.empty(array.shape, object)
    for place, item in np.ndenumerate(array):
        found[place] = item.item() if isinstance(item, np.ndarray) and item.ndim == 0 else item
    return found


def _numbers(name: str | None, array: Array, leaf: ArraySpec) -> Array:
    converted = np.array(array.tolist())
    if converted.dtype.kind not in "biufc" or converted.shape != array.shape:
        strange = next((item for item in array.ravel() if not _is_number(item)), array.ravel()[0])
        raise PredictError(
            f"{_what(name)}: expected {leaf.dtype}, got {_brief(strange)} of type {type(strange).__name__}."
        )
    return converted


def _is_number(value: Any) -> bool:
    return isinstance(value, float | np.number) or (isinstance(value, int) and value.bit_length() <= 64)


def _to_float(name: str | None, array: Array, target: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):
        cast = array.astype(target)
    if target.itemsize < 8 and not np.isfinite(cast).all():
        outside = np.isinf(cast) & np.isfinite(array)
        if outside.any():
            raise PredictError(
                f"{_what(name)}: expected values in the range of {target.name}, got {_brief(array[outside][0])}."
            )
    return cast


def _to_integer(name: str | None, array: Array, target: np.dtype[Any]) -> Array:
    if array.dtype.kind == "f":
        broken = ~np.isfinite(array) | (np.trunc(array) != array)
        if broken.any():
            raise PredictError(
                f"{_what(name)}: expected whole numbers for {target.name}, got {_brief(array[broken][0])}."
            )
    limits = np.iinfo(target)
    # Python's comparison of whole numbers is exact; numpy's of int64 with float64 is not at the ends of the range.
    if array.size and not (limits.min <= int(array.min()) and int(array.max()) <= limits.max):
        extreme = array.min() if int(array.min()) < limits.min else array.max()
        raise PredictError(f"{_what(name)}: expected values in the range of {target.name}, got {_brief(extreme)}.")
    return array.astype(target)


# --- words


def _what(name: str | None) -> str:
    return "The input" if name is None else f"Input {name!r}"


def _names(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _dtype(array: Array) -> str:
    return "strings" if array.dtype.kind in "SU" else array.dtype.name


def _brief(value: Any) -> str:
    # Python refuses to write an integer of more than 4300 digits.
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return f"{value!s:.60}"


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"one array of the shape {value.shape}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)} items"
    return f"{type(value).__name__}"
