"""Graphs of JAX: StableHLO as ``jax.export`` writes it. Part of the seam; see ``graphs``.

The values of the variables are not in it: they are stored once, for the class. JAX is imported when asked for. Reading
a graph needs neither Keras nor any class of the user's.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_keras_subclass.errors import GraphError
from mlflow_keras_subclass.keras_api.graphs import (
    ExportedGraph,
    Graph,
    Leaves,
    OutputForm,
    checked_call,
    form_of,
    restored,
)
from mlflow_keras_subclass.keras_api.inference import as_array, stateless
from mlflow_keras_subclass.specs import ArraySpec, InputSpec

if TYPE_CHECKING:
    from mlflow_keras_subclass.keras_api.common import KerasApi

__all__ = ["load", "write"]

_FILE = "model.stablehlo"
_PLATFORMS = ("cpu", "cuda")


def write(api: KerasApi, model: Any, spec: InputSpec, folder: Path) -> ExportedGraph:
    """Write the call of ``model`` with open batch dimensions.

    Raises:
        GraphError: ``flatbuffers`` is missing, which JAX writes graphs with.
    """
    jax, export = _jax()
    variables, leaves = list(model.variables), spec.leaves()
    forms: list[OutputForm] = []
    changed: list[int] = []
    function = stateless(api, checked_call(api, model), variables)

    def serve(values: Any, tensors: Any) -> Any:
        outputs, new = function(values, *spec.bind(dict(zip(leaves, tensors, strict=True))))
        form, flat = form_of(api, outputs)
        forms.append(form)
        changed[:] = list(new)
        return form.leaves(flat), list(new.values())

    values = [jax.ShapeDtypeStruct(item.value.shape, item.value.dtype) for item in variables]
    exported = export.export(jax.jit(serve), platforms=_PLATFORMS)(values, _open(jax, export, leaves))
    folder.mkdir()
    (folder / _FILE).write_bytes(exported.serialize())
    return ExportedGraph(form=forms[-1], variables=tuple(variables), changed=tuple(changed))


def load(
    folder: Path,
    spec: InputSpec,
    form: OutputForm,
    *,
    device: str | None,
    values: Sequence[Any],
    changed: Sequence[int],
) -> Graph:
    """The graph in ``folder``, with the values of its variables."""
    jax, export = _jax()
    raw = export.deserialize(bytearray((folder / _FILE).read_bytes()))
    leaves, call = spec.leaves(), jax.jit(raw.call)

    def placed() -> Any:
        if device is None:
            return contextlib.nullcontext()
        kind, _, number = device.partition(":")
        return jax.default_device(jax.devices(kind)[int(number)])

    with placed():
        state = [jax.numpy.asarray(value) for value in values]

    def run(arrays: Leaves) -> list[Any]:
        given = [np.asarray(arrays[name], jax.dtypes.canonicalize_dtype(leaf.dtype)) for name, leaf in leaves.items()]
        empty = [not len(array) for array in given if array.ndim]
        with placed():
            if any(empty):  # An open dimension of StableHLO is at least one.
                outputs, _ = call(state, [np.zeros((1, *array.shape[1:]), array.dtype) for array in given])
                return [as_array(item, np.asarray)[:0] for item in outputs]
            outputs, new = call(state, given)
        for place, value in zip(changed, new, strict=True):
            state[place] = value
        return [as_array(item, np.asarray) for item in outputs]

    def put(before: list[Any]) -> None:
        for place, value in zip(changed, before, strict=True):
            state[place] = value

    return Graph(raw, spec, form, run, lambda: restored(lambda: [state[place] for place in changed], put))


def _jax() -> tuple[Any, Any]:
    try:
        importlib.import_module("flatbuffers")
    except ModuleNotFoundError:
        raise GraphError(
            "graph: JAX reads and writes graphs with the package flatbuffers, which is not installed. Install it "
            "(pip install 'mlflow-keras-subclass[jax]'), or serve the class."
        ) from None
    return importlib.import_module("jax"), importlib.import_module("jax.export")


def _open(jax: Any, export: Any, leaves: Mapping[str | None, ArraySpec]) -> list[Any]:
    """The inputs with a symbol for each open dimension; the rows are one for all inputs unless seen otherwise."""
    scope, rows = export.SymbolicScope(), {leaf.observed[0] for leaf in leaves.values() if leaf.observed}
    found = []
    for number, leaf in enumerate(leaves.values()):
        batch = "rows" if len(rows) < 2 else f"rows{number}"
        names = [batch if not place else f"d{number}_{place}" for place in range(len(leaf.shape))]
        text = ", ".join(str(name if size is None else size) for name, size in zip(names, leaf.shape, strict=True))
        shape = export.symbolic_shape(text, scope=scope) if leaf.shape else ()
        found.append(jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(leaf.dtype)))
    return found
