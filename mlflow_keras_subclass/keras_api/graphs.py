"""A model as a graph, which is served without its class and without Keras.

TensorFlow's is a SavedModel (``saved_model``), JAX's is StableHLO (``stablehlo``); torch has none here. This module
holds what both share. Part of the seam; imports errors, outputs, specs and ``inference``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_keras_subclass.errors import GraphError
from mlflow_keras_subclass.keras_api.inference import Call, has_own_predict, model_call
from mlflow_keras_subclass.outputs import flattened
from mlflow_keras_subclass.specs import InputSpec

if TYPE_CHECKING:
    from mlflow_keras_subclass.keras_api.common import KerasApi

__all__ = ["ExportedGraph", "Graph", "OutputForm", "checked_call", "form_of"]

Leaves = Mapping[str | None, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputForm:
    """What a graph returns: the outputs of the model as they are served, with at most one level.

    Attributes:
        kind: ``array``, ``list`` or ``dict``.
        names: The keys of a dict, in the order of the model.
        places: For each output its place among the leaves of what the model's own call returns.
    """

    kind: str
    names: tuple[str, ...]
    places: tuple[int, ...]

    def leaves(self, outputs: Any) -> list[Any]:
        """The outputs of a graph in the order of ``places``."""
        if self.kind == "dict":
            return [outputs[name] for name in self.names]
        return list(outputs) if self.kind == "list" else [outputs]

    def of(self, leaves: Sequence[Any]) -> Any:
        """The inverse of ``leaves``."""
        if self.kind == "dict":
            return dict(zip(self.names, leaves, strict=True))
        return list(leaves) if self.kind == "list" else leaves[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedGraph:
    """A graph that was written.

    Attributes:
        form: What it returns.
        variables: The variables whose values it takes, where they are stored elsewhere.
        changed: The places of those that a call changes.
    """

    form: OutputForm
    variables: tuple[Any, ...] = ()
    changed: tuple[int, ...] = ()


class Graph:
    """A loaded graph; called with the arguments of the model's own call, it returns arrays.

    ``raw`` is the object of the backend's own.
    """

    def __init__(
        self,
        raw: Any,
        spec: InputSpec,
        form: OutputForm,
        run: Callable[[Leaves], list[Any]],
        unchanged: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        """Call ``run`` with arrays by name; inside ``unchanged`` its state is put back."""
        self.raw = raw
        self.form = form
        self.unchanged = unchanged
        self._spec = spec
        self._run = run
        self._bare = list(spec.leaves()) == [None] and len(spec.args) == 1

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The outputs of the model as they are served."""
        arrays: Leaves = {None: args[0]} if self._bare else self._spec.flatten(args, kwargs)
        return self.form.of(self._run(arrays))


def checked_call(api: KerasApi, model: Any) -> Call:
    """The call of ``model`` that is to be traced.

    Raises:
        GraphError: What the model is served by is no function of tensors.
    """
    if has_own_predict(api, model):
        raise GraphError(
            f"export_graph: {type(model).__qualname__} overrides predict, which is Python that no graph can hold. "
            "Override predict_step or call instead, or leave export_graph out and serve the class."
        )
    return model_call(api, model)


def form_of(api: KerasApi, outputs: Any) -> tuple[OutputForm, Any]:
    """The form of what a call returned, and the outputs in it."""
    flat = flattened(outputs)
    places = {id(leaf): place for place, leaf in enumerate(api.flat(outputs))}
    kind = "dict" if isinstance(flat, dict) else "list" if isinstance(flat, list) else "array"
    form = OutputForm(kind=kind, names=tuple(flat) if kind == "dict" else (), places=())
    found = tuple(places[id(leaf)] for leaf in form.leaves(flat))
    return OutputForm(kind=kind, names=form.names, places=found), flat


@contextlib.contextmanager
def restored(values: Callable[[], list[Any]], put: Callable[[list[Any]], None]) -> Iterator[None]:
    """Inside, a call may change state; what ``values`` returned before is ``put`` back."""
    before = values()
    try:
        yield
    finally:
        if not all(np.array_equal(old, new) for old, new in zip(before, values(), strict=True)):
            put(before)
