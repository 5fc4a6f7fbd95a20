"""``graph.json`` and ``graph/``: the model as a graph of its backend, for servers without the class (``export_graph``).

TensorFlow's is a SavedModel, which holds the values of the variables once more; JAX's takes them from those stored for
the class. A reader gets a copy of the checked bytes, because TensorFlow reads a SavedModel by its path. Imports errors,
files, manifest, keras_api, specs and trust.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow_keras_subclass.errors import FormatError, GraphError
from mlflow_keras_subclass.files import ArtifactWriter
from mlflow_keras_subclass.keras_api import KerasApi, saved_model, stablehlo
from mlflow_keras_subclass.keras_api.graphs import Graph, OutputForm
from mlflow_keras_subclass.manifest import GRAPH_DIR, GRAPH_FILE
from mlflow_keras_subclass.specs import InputSpec
from mlflow_keras_subclass.trust import VerifiedModel

__all__ = ["GraphRecord", "load", "read", "write"]

_FORMATS = {"tensorflow": "saved_model", "jax": "stablehlo"}
_WRITERS = {"saved_model": saved_model.write, "stablehlo": stablehlo.write}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRecord:
    """What ``graph.json`` holds.

    Attributes:
        format: ``saved_model`` or ``stablehlo``.
        outputs: ``array``, ``list`` or ``dict``.
        names: The keys of a dict, in the order of the model.
        places: For each output its place among the leaves of what the model's own call returns.
        variables: Paths of the variables whose values the graph takes, where it does not hold them.
        changed: The places of those that a call changes.
    """

    format: str
    outputs: str
    names: tuple[str, ...]
    places: tuple[int, ...]
    variables: tuple[str, ...]
    changed: tuple[int, ...]

    @property
    def form(self) -> OutputForm:
        """What the graph returns."""
        return OutputForm(kind=self.outputs, names=self.names, places=self.places)

    @classmethod
    def from_json(cls, value: Any) -> GraphRecord:
        """The record in ``graph.json``; raises ``FormatError``."""
        match value:
            case {
                "format": "saved_model" | "stablehlo" as format,
                "outputs": "array" | "list" | "dict" as outputs,
                "names": list(names),
                "places": list(places),
                "variables": list(variables),
                "changed": list(changed),
            } if _all(str, [*names, *variables]) and _all(int, [*places, *changed]):
                return cls(
                    format=format,
                    outputs=outputs,
                    names=tuple(names),
                    places=tuple(places),
                    variables=tuple(variables),
                    changed=tuple(changed),
                )
        raise FormatError(
            f"{GRAPH_FILE}: expected format, outputs, names, places, variables and changed, got {value!r:.200}."
        )


def write(
    writer: ArtifactWriter, api: KerasApi, model: Any, spec: InputSpec | None, paths: Mapping[int, str]
) -> GraphRecord:
    """Write the call of ``model`` as a graph.

    Args:
        writer: Of the artifact.
        api: The seam to Keras.
        model: The live model; the caller puts back what a call changes.
        spec: How it is called.
        paths: The path of each variable by its identity.

    Raises:
        GraphError: There is no graph of this model; the text says why.
    """
    name = type(model).__qualname__
    format = _FORMATS.get(api.backend)
    if format is None:
        raise GraphError(
            f"export_graph: a model on the {api.backend} backend has no graph here; {' and '.join(_FORMATS)} have one. "
            "Leave export_graph out and serve the class."
        )
    if spec is None:
        raise GraphError(
            f"export_graph: it is not known what {name} takes. Call the model once after mlflow_keras_subclass was "
            "imported, or give an input_example."
        )
    try:
        exported = _WRITERS[format](api, model, spec, writer.directory / GRAPH_DIR)
        variables = tuple(paths[id(variable)] for variable in exported.variables)
    except GraphError:
        raise
    except Exception as error:  # The user's call runs here, on symbolic tensors.
        raise GraphError(
            f"export_graph: the call of {name} cannot be written as a graph with an open batch dimension: "
            f"{type(error).__name__}: {error}. Write it with tensors only, or leave export_graph out."
        ) from error
    writer.add_folder(GRAPH_DIR)
    form = exported.form
    record = GraphRecord(
        format=format,
        outputs=form.kind,
        names=form.names,
        places=form.places,
        variables=variables,
        changed=exported.changed,
    )
    writer.write_json(GRAPH_FILE, asdict(record))
    return record


def read(verified: VerifiedModel) -> GraphRecord:
    """The record of the graph.

    Raises:
        GraphError: The model was logged without one, or its backend is not installed here.
        FormatError: The record does not have the promised form.
    """
    if GRAPH_FILE not in verified.names():
        raise GraphError(
            f"{verified.root}: expected a graph for engine 'graph', and this model was logged without one. Log it with "
            'export_graph=True, or load it with model_config={"engine": "class"}.'
        )
    backend = verified.manifest.versions.backend
    if importlib.util.find_spec(backend) is None:
        raise GraphError(
            f"{verified.root}: its graph needs {backend}, which is not installed. Install the model's requirements."
        )
    return GraphRecord.from_json(verified.read_json(GRAPH_FILE))


def load(
    verified: VerifiedModel,
    record: GraphRecord,
    spec: InputSpec,
    *,
    values: Callable[[Sequence[str]], Sequence[Any]],
    device: str | None = None,
    jit_compile: bool = False,
) -> Graph:
    """The graph, ready to be called.

    Args:
        verified: The artifact, checked.
        record: Of the graph.
        spec: How the model is called.
        values: Reads the values of variables by their paths.
        device: A device that is present; the backend chooses if ``None``.
        jit_compile: Compile a SavedModel with XLA, as StableHLO always is.

    Raises:
        GraphError: The backend does not take the graph.
    """
    backend = verified.manifest.versions.backend
    with tempfile.TemporaryDirectory(prefix="mlflow-keras-subclass-graph-") as temporary:
        folder = Path(temporary) / GRAPH_DIR
        for name in verified.names():
            if name.startswith(f"{GRAPH_DIR}/"):
                verified.copy(name, Path(temporary) / name)
        try:
            if record.format == "saved_model":
                return saved_model.load(folder, spec, record.form, device=device, jit_compile=jit_compile)
            weights = values(record.variables)
            return stablehlo.load(folder, spec, record.form, device=device, values=weights, changed=record.changed)
        except (GraphError, FormatError):
            raise
        except Exception as error:
            raise GraphError(
                f"{verified.root}: {backend} {verified.manifest.versions.backend_version} wrote this graph, and the "
                f"one that is installed here does not take it: {type(error).__name__}: {error}. Install that version, "
                'or load the model with model_config={"engine": "class"}.'
            ) from error


def _all(kind: type, values: Sequence[Any]) -> bool:
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
