"""A live or rebuilt model compared with what is stored: bit for bit, and by asking it again.

Imports the parts, and nothing else of this package.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mlflow_keras_subclass import keras_api
from mlflow_keras_subclass.artifacts import config, fingerprint, graph, state, structure
from mlflow_keras_subclass.artifacts.class_definition import is_user_defined
from mlflow_keras_subclass.errors import FormatError
from mlflow_keras_subclass.keras_api import KerasApi, devices
from mlflow_keras_subclass.keras_api.graphs import Graph
from mlflow_keras_subclass.manifest import (
    ARRAYS_FILE,
    CONFIG_FILE,
    STRUCTURE_FILE,
)
from mlflow_keras_subclass.model_tree import walk
from mlflow_keras_subclass.specs import InputSpec, Structure
from mlflow_keras_subclass.tensors import array_sha256, opened_tensors
from mlflow_keras_subclass.trust import VerifiedModel
from mlflow_keras_subclass.values import Encoder

__all__ = [
    "compare",
    "load_graph",
    "read_specs",
    "stored_arrays",
    "unchanged",
    "verify_graph",
    "verify_predictions",
    "with_digests",
]


@contextlib.contextmanager
def unchanged(api: KerasApi, model: Any) -> Iterator[None]:
    """Call ``model`` inside; state and attributes that a call changes are put back afterwards."""
    tree = walk(api, model, is_user_defined)
    # A call changes what is not trained, and variables that Keras does not know, such as states of tf_keras.
    changeable = {path for path, kind in tree.kinds.items() if kind == "untracked"}
    variables = tree.variables.items()
    fixed = {path: item for path, item in variables if path in changeable or not api.is_trainable(item)}
    values = {path: api.snapshot(item) for path, item in fixed.items()}
    try:
        yield
    finally:
        for path, variable in fixed.items():
            now = api.snapshot(variable)
            # Large ones that are frozen are compared at no cost.
            if now.ctypes.data != values[path].ctypes.data and not np.array_equal(now, values[path]):
                api.assign(variable, values[path])
        attributes = walk(api, model, is_user_defined).attributes
        for path, attribute in tree.attributes.items():
            if path in attributes and attributes[path].value is not attribute.value:
                with contextlib.suppress(TypeError, AttributeError):
                    attribute.replace(attribute.value)


def compare(verified: VerifiedModel, model: Any) -> dict[str, Any]:
    """Compare a rebuilt model with what is stored, variables bit for bit; returns how many of each were compared.

    ``not_stored`` are attributes that the live model had and the rebuilt one lacks, because they have no data form.

    Raises:
        RebuildError: Something differs.
    """
    api = keras_api.for_model(model)
    tree = walk(api, model, is_user_defined)
    layout = verified.read_json(STRUCTURE_FILE)
    structure.compare_layers(layout["layers"], tree)
    variables = state.read_variables(verified)
    state.compare_values(api, variables, tree)
    encoder = Encoder(api, is_user_defined)
    not_stored = structure.compare_attributes(
        layout["attributes"],
        tree,
        current=lambda path, value: with_digests(
            structure.capture_attribute(path, value, encoder), encoder.arrays.__getitem__
        ),
        recorded_as=lambda value: with_digests(value, stored_arrays(verified)),
    )
    return {
        "layers": len(layout["layers"]),
        "variables": len(variables),
        "attributes": len(layout["attributes"]),
        "not_stored": not_stored,
    }


def verify_predictions(verified: VerifiedModel, model: Any) -> dict[str, str]:
    """Ask a rebuilt model what it was asked when it was logged; the result for each entry point.

    Raises:
        RebuildError: It answers differently.
    """
    api = keras_api.for_model(model)
    spec, _ = read_specs(verified)
    return fingerprint.verify(verified, api, model, spec, functools.partial(unchanged, api, model))


def load_graph(
    verified: VerifiedModel, *, device: str | None = None, threads: int | None = None, jit_compile: bool = False
) -> Graph:
    """The graph of the stored model; neither Keras nor any stored code is used.

    Raises:
        GraphError: There is none, or it cannot be used here.
        DeviceError: ``device`` is not present.
    """
    backend = verified.manifest.versions.backend
    record, (spec, _) = graph.read(verified), read_specs(verified)
    if spec is None:
        raise FormatError(f"{CONFIG_FILE}: expected the inputs of the model, which its graph needs.")
    devices.enable_memory_growth(backend)
    if threads is not None:
        devices.set_threads(backend, threads)
    placed = devices.check(backend, device)
    values = functools.partial(state.read_values, verified)
    return graph.load(verified, record, spec, values=values, device=placed, jit_compile=jit_compile)


def verify_graph(verified: VerifiedModel) -> str:
    """Ask the graph what the class was asked when it was logged: ``exact``, ``close``, or why it was not compared.

    Raises:
        GraphError: The graph cannot be loaded, or does not run on what the class ran on.
        RebuildError: It answers differently.
    """
    found = load_graph(verified)
    spec, _ = read_specs(verified)
    assert spec is not None  # load_graph refuses that
    api = keras_api.for_versions(verified.manifest.versions)

    def ask(arrays: Mapping[str | None, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        return [np.asarray(item) for item in found.form.leaves(found(*spec.bind(arrays)))]

    return fingerprint.verify_graph(verified, api, spec, ask, found.form.places)


def read_specs(verified: VerifiedModel) -> tuple[InputSpec | None, Structure | None]:
    """Input and output spec of the stored model."""
    return config.read_specs(verified.read_json(CONFIG_FILE))


def stored_arrays(verified: VerifiedModel) -> Callable[[str], np.ndarray[Any, Any]]:
    """A function that reads one of the arrays that values refer to, by its name."""

    def read(name: str) -> np.ndarray[Any, Any]:
        with opened_tensors(verified, ARRAYS_FILE) as tensors:
            return tensors.read(name)

    return read


def with_digests(value: Any, arrays: Callable[[str], np.ndarray[Any, Any]]) -> Any:
    """An encoded value in which arrays are named by their content, so that two can be compared."""
    if isinstance(value, list):
        return [with_digests(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    for tag in ("$array", "$scalar", "$tensor"):
        if isinstance(value.get(tag), str):
            array = arrays(value[tag])
            return {tag: [array.dtype.str, list(array.shape), array_sha256(array)]}
    return {key: with_digests(item, arrays) for key, item in value.items()}
