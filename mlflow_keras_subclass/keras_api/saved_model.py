"""Graphs of TensorFlow: a SavedModel, for Keras 3 and tf_keras alike. Part of the seam; see ``graphs``.

TensorFlow is imported when asked for. Reading one needs neither Keras nor any class of the user's.
"""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from mlflow_keras_subclass.keras_api.inference import as_array
from mlflow_keras_subclass.specs import InputSpec

if TYPE_CHECKING:
    from mlflow_keras_subclass.keras_api.common import KerasApi

__all__ = ["load", "write"]

# They call Python of the process that wrote them; in another one there is nothing to call.
_PYTHON_OPERATIONS = frozenset({"EagerPyFunc", "PyFunc", "PyFuncStateless"})


def write(api: KerasApi, model: Any, spec: InputSpec, folder: Path) -> ExportedGraph:
    """Write the call of ``model`` with open batch dimensions as a SavedModel, its signature for TensorFlow Serving too.

    Raises:
        GraphError: The call cannot be traced, or what it needs cannot be written.
    """
    tf: Any = importlib.import_module("tensorflow")
    call, leaves = checked_call(api, model), spec.leaves()
    forms: list[OutputForm] = []
    bare = spec.parameters[0] if spec.parameters else "inputs"
    signature = [tf.TensorSpec(leaf.shape, leaf.dtype, name=name or bare) for name, leaf in leaves.items()]

    def serve(*tensors: Any) -> Any:
        args, kwargs = spec.bind(dict(zip(leaves, tensors, strict=True)))
        form, outputs = form_of(api, call(args, kwargs))
        forms.append(form)
        return outputs

    root = tf.Module()
    # As the served call: Keras runs a plain `call` without autograph.
    root.serve = tf.function(serve, input_signature=signature, autograph=False)
    traced = root.serve.get_concrete_function()
    _refuse_python(traced.graph.as_graph_def())
    form = forms[-1]

    def serving_default(*tensors: Any) -> Any:
        return _tensors_by_name(tf, form, traced(*tensors))

    # What the graph computes with, whoever holds it: a layer, a plain object, a global variable.
    root.variables_held = list(traced.graph.variables)
    root.resources_held = _resources(traced.graph)
    named = tf.function(serving_default, input_signature=signature, autograph=False)
    tf.saved_model.save(root, str(folder), signatures={"serving_default": named})
    return ExportedGraph(form=form)


def load(folder: Path, spec: InputSpec, form: OutputForm, *, device: str | None, jit_compile: bool) -> Graph:
    """The SavedModel in ``folder``, which is not read any more afterwards."""
    tf: Any = importlib.import_module("tensorflow")
    leaves = spec.leaves()
    names, dtypes = list(leaves), [tf.as_dtype(leaf.dtype) for leaf in leaves.values()]

    def placed() -> Any:
        return contextlib.nullcontext() if device is None else tf.device(f"/{device.upper()}")

    with placed():
        raw = tf.saved_model.load(str(folder))
        traced = raw.serve.concrete_functions[0]
        if jit_compile:
            signature = [tf.TensorSpec(leaf.shape, leaf.dtype) for leaf in leaves.values()]
            compiled = tf.function(lambda *tensors: raw.serve(*tensors), input_signature=signature, jit_compile=True)
            traced = compiled.get_concrete_function()

    def run(arrays: Leaves) -> list[Any]:
        with placed():
            tensors = [tf.constant(arrays[name], dtype) for name, dtype in zip(names, dtypes, strict=True)]
            return [as_array(item, lambda tensor: tensor.numpy()) for item in form.leaves(traced(*tensors))]

    # A call changes what is not trained.
    changeable = [item for item in raw.variables_held if not item.trainable]

    def put(values: list[Any]) -> None:
        for variable, value in zip(changeable, values, strict=True):
            variable.assign(value)

    return Graph(raw, spec, form, run, lambda: restored(lambda: [item.numpy() for item in changeable], put))


def _resources(graph: Any) -> list[Any]:
    """Lookup tables and the like: what owns the resources that a graph captured and that are no variables."""
    # Private: the owner of a resource, which TensorFlow (2.21) names in its own error about resources that nothing
    # holds; there is no public way from one to the other, and a layer may hold a table anywhere.
    found = [getattr(tensor, "_parent_trackable", lambda: None)() for tensor, _ in graph.captures]
    return list({id(item): item for item in found if item is not None}.values())


def _refuse_python(graph: Any) -> None:
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    if any(node.op in _PYTHON_OPERATIONS for node in nodes):
        raise GraphError(
            "export_graph: the call runs Python (tf.py_function or tf.numpy_function), which a graph can name but not "
            "hold. Write it with tensors only, or leave export_graph out and serve the class."
        )


def _tensors_by_name(tf: Any, form: OutputForm, outputs: Any) -> dict[str, Any]:
    """The outputs as a signature has them: tensors only, rows of unequal length as their values and where they end."""
    names = form.names or tuple(f"output_{number}" for number in range(len(form.places)))
    found: dict[str, Any] = {}
    for name, value in zip(names, form.leaves(outputs), strict=True):
        parts = tf.nest.flatten(value, expand_composites=True)
        several = len(parts) > 1
        found |= {f"{name}_{n}" if several else name: part for n, part in enumerate(parts) if part is not None}
    return found
