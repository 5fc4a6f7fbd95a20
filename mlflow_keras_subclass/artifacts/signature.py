"""What MLflow says that a model takes and returns: the signature, and the input example that goes with it.

Imports specs, coercion and outputs. Must not import Keras. ``Model`` has no public way to save an example (3.17.2), so
MLflow's ``_save_example`` is imported here and nowhere else; it has had these parameters since 2.0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.models.utils import _save_example
from mlflow.types.schema import Schema, TensorSpec

from mlflow_keras_subclass.coercion import coerce, numpy_dtype
from mlflow_keras_subclass.errors import KerasSubclassError, PredictError
from mlflow_keras_subclass.outputs import named_specs
from mlflow_keras_subclass.specs import ArraySpec, InputSpec, Structure

__all__ = ["Example", "check", "check_names", "from_example", "from_specs", "split_example", "write_example"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An input example as the user gave it: the data, and the params of ``predict`` if there were any."""

    data: Any
    params: dict[str, Any] | None = None


def split_example(input_example: Any) -> Example | None:
    """MLflow's form of an example: the data, or a tuple of the data and a dict of params."""
    if input_example is None:
        return None
    if isinstance(input_example, tuple) and len(input_example) == 2 and isinstance(input_example[1], dict):
        return Example(data=input_example[0], params=input_example[1])
    return Example(data=input_example)


def from_specs(input_spec: InputSpec | None, output_spec: Structure | None) -> ModelSignature | None:
    """The tensor signature of a model: the batch dimension first and open, names as ``InputSpec.leaves`` has them."""
    if input_spec is None or not (leaves := input_spec.leaves()):
        return None
    outputs = {} if output_spec is None else named_specs(output_spec)
    return ModelSignature(inputs=_schema(leaves), outputs=_schema(outputs) if outputs else None)


def from_example(
    example: Example, input_spec: InputSpec | None, output_spec: Structure | None
) -> ModelSignature | None:
    """The signature that an example asks for: of columns for a DataFrame of scalars, else of tensors.

    Columns make the scoring server accept CSV, which it refuses for tensors (MLflow 3.17.2). Tensors have the dtypes
    that the model takes, not those of the example: numpy's float64 would be refused by a model of float32 at once.
    """
    tensors = from_specs(input_spec, output_spec)
    outputs = tensors.outputs if tensors is not None else None
    if _is_table(example.data):
        inputs = infer_signature(example.data).inputs
    elif tensors is not None and input_spec is not None:
        inputs = _with_text(_text_inputs(example.data, input_spec), tensors.inputs)
    else:
        inputs = infer_signature(_single_precision(example.data)).inputs
    params = infer_signature(params=example.params).params if example.params else None
    return ModelSignature(inputs=inputs, outputs=outputs, params=params)  # type: ignore[arg-type]  # None is its default


def check_names(signature: ModelSignature, input_spec: InputSpec | None) -> None:
    """Refuse a user's signature that lacks an input of a model of several; a single input may have any name.

    Raises:
        KerasSubclassError: An input is missing.
    """
    if input_spec is None or signature.inputs is None or len(leaves := input_spec.leaves()) < 2:
        return
    names = signature.inputs.input_names()
    if missing := [str(name) for name in leaves if name not in names]:
        raise KerasSubclassError(
            f"signature: the model takes the inputs {', '.join(map(str, leaves))}; the signature lacks "
            f"{', '.join(missing)}. Name its inputs so, or leave the signature to be inferred."
        )


def check(signature: ModelSignature, known_params: Iterable[str]) -> None:
    """Refuse a user's signature that no call could satisfy.

    Raises:
        KerasSubclassError: No inputs, a fixed batch dimension, or params that ``predict`` does not have.
    """
    if signature.inputs is None:
        raise KerasSubclassError(
            "signature: it has no inputs. Leave the signature to be inferred, or pass False to store none."
        )
    for number, item in enumerate(signature.inputs.inputs):
        if isinstance(item, TensorSpec) and (not item.shape or item.shape[0] != -1):
            raise KerasSubclassError(
                f"signature: input {item.name or number!r}: expected -1, the batch, as the first dimension, got the "
                f"shape {item.shape}."
            )
    params = {item.name for item in signature.params.params} if signature.params else set()
    if unknown := sorted(params - set(known_params)):
        raise KerasSubclassError(
            f"signature: predict has no params {', '.join(unknown)}; it has {', '.join(sorted(known_params))}."
        )


def write_example(root: Path, model: Model, example: Example, input_spec: InputSpec | None) -> None:
    """Write ``input_example.json`` and ``serving_input_example.json`` and note them in ``model``.

    A DataFrame is stored as it is; anything else as the arrays that the model takes, nested inputs under their names.

    Raises:
        PredictError: The model does not take the example.
    """
    data = example.data
    if input_spec is not None:
        try:
            arrays = coerce(data, input_spec)
        except PredictError as error:
            raise PredictError(f"input_example: {error.message}") from None
        if not isinstance(data, pd.DataFrame):
            text = _text_inputs(data, input_spec)
            stored = {name: array.astype(str) if name in text else array for name, array in arrays.items()}
            data = stored[None] if set(stored) == {None} else stored
    _save_example(model, data if example.params is None else (data, example.params), str(root))


def _schema(leaves: dict[str | None, ArraySpec]) -> Schema:
    return Schema([_tensor(name, leaf) for name, leaf in leaves.items()])


def _tensor(name: str | None, leaf: ArraySpec) -> TensorSpec:
    shape = tuple(-1 if size is None else size for size in leaf.shape)
    return TensorSpec(numpy_dtype(leaf.dtype), shape, name)


def _with_text(names: frozenset[str | None], schema: Schema) -> Schema:
    tensors = [item for item in schema.inputs if isinstance(item, TensorSpec)]
    return Schema(
        [TensorSpec(np.dtype(str), item.shape, item.name) if item.name in names else item for item in tensors]
    )


def _is_table(data: Any) -> bool:
    if not isinstance(data, pd.DataFrame) or data.empty:
        return False
    return all(np.isscalar(value) for value in data.iloc[0])


def _single_precision(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _single_precision(item) for key, item in data.items()}
    if isinstance(data, list | tuple):
        data = np.asarray(data)
    return data.astype(np.float32) if isinstance(data, np.ndarray) and data.dtype == np.float64 else data


def _text_inputs(data: Any, input_spec: InputSpec) -> frozenset[str | None]:
    """Names of the string inputs that an example gives as numpy text; MLflow tells that from arrays of objects."""
    strings = [name for name, leaf in input_spec.leaves().items() if leaf.dtype == "string"]
    given = {name: data.get(name) if isinstance(data, dict) else data for name in strings}
    return frozenset(name for name, value in given.items() if isinstance(value, np.ndarray) and value.dtype.kind == "U")
