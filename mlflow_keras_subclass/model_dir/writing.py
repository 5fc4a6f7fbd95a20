"""``write(model, …)``: our part of a model directory, step by step, the manifest last.

Imports the parts, ``findings`` and ``comparing``.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import json
import logging
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_keras_subclass import keras_api, recorder
from mlflow_keras_subclass.artifacts import class_definition, config, fingerprint, provenance, state, structure
from mlflow_keras_subclass.artifacts import graph as graphs
from mlflow_keras_subclass.artifacts.class_definition import is_user_defined
from mlflow_keras_subclass.artifacts.provenance import GitRecord
from mlflow_keras_subclass.artifacts.state import VariableRecord
from mlflow_keras_subclass.call_graph import CallGraph, watched
from mlflow_keras_subclass.coercion import Arrays, coerce, example_arrays
from mlflow_keras_subclass.errors import PredictError
from mlflow_keras_subclass.files import ArtifactWriter, folder_entries
from mlflow_keras_subclass.keras_api import KerasApi
from mlflow_keras_subclass.manifest import (
    ARRAYS_FILE,
    CODE_DIR,
    CONFIG_FILE,
    DATA_DIR,
    FORMAT_VERSION,
    GRAPH_FILE,
    PROOF_FILE,
    STRUCTURE_FILE,
    SUMMARY_FILE,
    Manifest,
    Versions,
    write_manifest,
)
from mlflow_keras_subclass.model_dir.comparing import unchanged
from mlflow_keras_subclass.model_dir.findings import Findings, refuse
from mlflow_keras_subclass.model_tree import GLOBALS, ModelTree, set_globals, walk
from mlflow_keras_subclass.specs import InputSpec, Structure, observe, observe_call
from mlflow_keras_subclass.tensors import array_source, write_tensors
from mlflow_keras_subclass.values import Encoder
from mlflow_keras_subclass.version import __version__

__all__ = ["ModelFacts", "add_json", "write"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What was written, for those who describe it: the model card, the signature, the tags."""

    model_class: str
    class_name: str
    doc: str
    input_spec: InputSpec | None
    output_spec: Structure | None
    parameter_count: int
    trainable_count: int
    not_finite: tuple[str, ...]
    globals: Mapping[str, str]
    git: GitRecord
    third_party: tuple[str, ...]
    manifest: Manifest
    manifest_sha256: str
    summary: str
    inferred_arguments: bool
    serialization_format: str
    routes: Mapping[str, str]
    user_modules: tuple[str, ...]
    call_graph: CallGraph

    @property
    def is_proven(self) -> bool:
        """Whether it was rebuilt elsewhere and compared."""
        return self._has(PROOF_FILE)

    @property
    def has_graph(self) -> bool:
        """Whether the model is stored as a graph too."""
        return self._has(GRAPH_FILE)

    @property
    def graph_imports(self) -> tuple[str, ...]:
        """What the graph needs beside its backend: JAX reads it with a package that it does not bring in."""
        return ("flatbuffers",) if self.has_graph and self.manifest.versions.backend == "jax" else ()

    def _has(self, name: str) -> bool:
        return any(entry.path == f"{DATA_DIR}/{name}" for entry in self.manifest.files)


def write(
    model: Any,
    root: Path,
    *,
    config: Mapping[str, Any] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    example: Any = None,
    provenance: str = "full",
    serialization_format: str | None = None,
    include_optimizer: bool = True,
    shard_bytes: int | None = None,
    export_graph: bool = False,
) -> ModelFacts:
    """Write ``root/keras_subclass`` for ``model``; ``root/code``, if there, is digested too.

    Args:
        model: An instance of a ``keras.Model`` subclass that was called at least once.
        root: The model directory; our folder in it must not exist.
        config: The constructor's arguments by name, for a model whose arguments are not known.
        custom_objects: Classes and functions by the names under which Keras is to find them.
        example: An input of the model, used for its spec where no call of it was seen, and for its fingerprint.
        provenance: ``full`` (commit and patch), ``commit`` (no patch) or ``off``.
        serialization_format: The route that a load takes: ``cloudpickle``, ``source`` or ``import``; ``None`` takes
            the pickle, or the source where the pickle cannot be used.
        include_optimizer: Whether to store the state of optimizers; without it, they come back fresh.
        shard_bytes: Size above which the variables go to several files; ``None`` never does that.
        export_graph: Whether to store the model as a graph of its backend, too.

    Raises:
        CaptureError: Something of the model cannot be stored so that it would come back the same.
        ClassDefinitionError: The class definition cannot be shipped.
        GraphError: The model has no graph.
        PredictError: The model does not take the example.
    """
    writing = _Write(
        model, root, dict(custom_objects or {}), include_optimizer=include_optimizer, shard_bytes=shard_bytes
    )
    return writing.run(
        stated=config,
        example=example,
        detail=provenance,
        serialization_format=serialization_format,
        export_graph=export_graph,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Captured:
    """The live model as data; nothing is written yet."""

    tree: ModelTree
    findings: Findings
    document: dict[str, Any]
    layers: Mapping[str, Any]
    attributes: Mapping[str, Any]
    survey: class_definition.Survey
    known: tuple[str, ...]

    def new_globals(self) -> dict[str, Any]:
        """What the code reads from outside of the model, as far as it is not captured."""
        return {name: value for name, value in self.survey.global_values.items() if name not in self.known}


class _Write:
    def __init__(
        self,
        model: Any,
        root: Path,
        custom_objects: dict[str, Any],
        *,
        include_optimizer: bool,
        shard_bytes: int | None,
    ) -> None:
        self._api = keras_api.for_model(model)
        self._shard_bytes = shard_bytes
        self._include_optimizer = include_optimizer
        self._model = model
        self._root = root
        self._custom_objects = custom_objects
        self._writer = ArtifactWriter(root, DATA_DIR)
        self._encoder = Encoder(self._api, is_user_defined)
        self._globals: dict[str, Any] = {}

    def run(
        self,
        *,
        stated: Mapping[str, Any] | None,
        example: Any,
        detail: str,
        serialization_format: str | None,
        export_graph: bool,
    ) -> ModelFacts:
        set_globals(self._model, {})
        captured = self._capture(stated, serialization_format)
        while outside := captured.new_globals():
            # Only now is it known what the code reads; these values may be made of other classes of the user.
            self._globals |= outside
            set_globals(self._model, self._globals)
            self._encoder = Encoder(self._api, is_user_defined)
            captured = self._capture(stated, serialization_format)
        tree, findings, document = captured.tree, captured.findings, captured.document
        inputs = recorder.observed_input_spec(self._model) or _spec_of_example(self._model, example)
        probe = None if example is None or inputs is None else _probe(example, inputs)
        with findings.collected():
            self._write_structure(captured)
        with findings.collected():
            definitions = class_definition.write(self._writer, captured.survey)
        findings.raise_any()
        variables, not_finite = state.write_variables(self._api, tree, self._writer, self._shard_bytes)
        if not_finite:
            _logger.warning("NaN or infinite values are in the weights %s, and are stored so.", ", ".join(not_finite))
            document["not_finite"] = list(not_finite)
        outputs, graph = _output_spec(self._api, self._model, inputs, tree.layers)
        document |= {"definitions": definitions.record.to_json(), "opaque": _opaque(self._encoder)}
        document |= config.specs_to_json(inputs, outputs)
        self._writer.write_json(CONFIG_FILE, document)
        self._write_arrays()
        guard = functools.partial(unchanged, self._api, self._model)
        fingerprint.write(self._writer, self._api, self._model, inputs, probe, guard)
        if export_graph:
            with guard():
                graphs.write(self._writer, self._api, self._model, inputs, tree.variable_paths())
        git = provenance.write(self._writer, definitions.source_files, fallback=Path.cwd(), provenance=detail)
        with guard():  # Keras may call the layers for it, and a call may draw from a generator.
            summary = _summary(self._model)
        self._writer.write_text(SUMMARY_FILE, summary)
        manifest = self._manifest()
        total, trainable = state.parameter_counts(variables)
        return ModelFacts(
            model_class=manifest.model_class,
            class_name=type(self._model).__qualname__,
            doc=_first_line(type(self._model)),
            input_spec=inputs,
            output_spec=outputs,
            parameter_count=total,
            trainable_count=trainable,
            not_finite=not_finite,
            globals={name: _shown(self._api, name, value, variables) for name, value in self._globals.items()},
            git=git,
            third_party=definitions.record.third_party,
            manifest=manifest,
            manifest_sha256=write_manifest(self._writer.directory, manifest),
            summary=summary,
            inferred_arguments=document["constructor"].get("inferred", False),
            serialization_format=definitions.record.serialization_format,
            routes=definitions.record.routes,
            user_modules=tuple(sorted({module.name.partition(".")[0] for module in definitions.record.modules})),
            call_graph=graph,
        )

    def _capture(self, stated: Mapping[str, Any] | None, serialization_format: str | None) -> _Captured:
        tree = walk(self._api, self._model, is_user_defined)
        findings = Findings(tree)
        with findings.collected():
            refuse(self._model, tree)
        document = self._describe(stated, findings)
        layers: Mapping[str, Any] = {}
        with findings.collected():
            layers = structure.capture_layers(self._api, tree, self._encoder)
        attributes = structure.capture_attributes(tree, self._encoder)
        return _Captured(
            tree=tree,
            findings=findings,
            document=document,
            layers=layers,
            attributes=attributes,
            survey=self._survey(tree, document, serialization_format),
            known=tuple(self._globals),
        )

    def _describe(self, stated: Mapping[str, Any] | None, findings: Findings) -> dict[str, Any]:
        api, model = self._api, self._model
        document: dict[str, Any] = {
            "model_class": _class_name(model),
            "dtype_policy": api.dtype_policy(model),
            "floatx": api.floatx,
        }
        with findings.collected():
            document["constructor"] = config.capture_constructor(api, model, self._encoder, stated)
        with findings.collected():
            document["compile"] = config.capture_compile(api, model, self._encoder)
        with findings.collected():
            document["globals"] = config.capture_globals(model, self._globals, self._encoder)
        return document

    def _write_structure(self, captured: _Captured) -> None:
        tree, optimizers = captured.tree, {}
        if self._include_optimizer:
            optimizers = state.write_optimizers(self._api, tree, self._writer, self._shard_bytes)
        document = {
            "layers": captured.layers,
            "attributes": captured.attributes,
            "vocabularies": state.write_vocabularies(self._api, tree, self._writer),
            "optimizers": optimizers,
            "memory_orders": state.memory_orders(self._api, tree),
        }
        self._writer.write_json(STRUCTURE_FILE, document)

    def _survey(
        self, tree: ModelTree, document: Mapping[str, Any], serialization_format: str | None
    ) -> class_definition.Survey:
        for owner in tree.owners.values():
            if is_user_defined(type(owner)):
                self._encoder.definition(type(owner))
        registered = self._registered(json.dumps(document)) | self._custom_objects
        registrations = {
            name: self._encoder.definition(item) for name, item in registered.items() if is_user_defined(item)
        }
        return class_definition.survey(
            self._encoder.definitions,
            objects=self._encoder.objects,
            registrations=registrations,
            serialization_format=serialization_format,
        )

    def _registered(self, document: str) -> dict[str, Any]:
        """What the model may ask of Keras' registry: of its own packages, of plain modules, or named in ``document``.

        The registry is the process's: another package's classes in it need not be ones that can be stored.
        """
        packages = {definition.__module__.partition(".")[0] for definition in self._encoder.definitions.values()}
        return {
            name: item
            for name, item in self._api.registered_names().items()
            if "." not in item.__module__ or item.__module__.partition(".")[0] in packages or name in document
        }

    def _write_arrays(self) -> None:
        arrays = self._encoder.arrays
        if arrays:
            write_tensors(self._writer, ARRAYS_FILE, {name: array_source(array) for name, array in arrays.items()})

    def _manifest(self) -> Manifest:
        entries = [*self._writer.entries, *folder_entries(self._root, CODE_DIR)]
        return Manifest(
            format_version=FORMAT_VERSION,
            created_at=datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
            model_class=_class_name(self._model),
            versions=_versions(self._api),
            files=tuple(sorted(entries, key=lambda entry: entry.path)),
        )


def _spec_of_example(model: Any, example: Any) -> InputSpec | None:
    if example is None:
        return None
    example = example_arrays(example)
    parameters = inspect.signature(model.call).parameters.values()
    names = [item.name for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)]
    if isinstance(example, Mapping) and len(example) > 1 and set(example) <= set(names):
        return observe_call((), dict(example), names, "float32")
    return observe_call((example,), {}, names, "float32")


def _probe(example: Any, inputs: InputSpec) -> Arrays:
    try:
        return coerce(example, inputs)
    except PredictError as error:
        raise PredictError(f"input_example: {error.message}") from None


def _output_spec(
    api: KerasApi, model: Any, inputs: InputSpec | None, layers: Mapping[str, Any]
) -> tuple[Structure | None, CallGraph]:
    """What the model returns, and which layers call each other while Keras works that out."""
    if inputs is None:
        return None, CallGraph()
    try:
        with watched(api, layers) as graph:
            returned = api.symbolic_outputs(model, inputs)
        return observe(returned, "float32"), graph
    except Exception:
        # The user's call may need concrete values. The spec is information for the signature, which then has none.
        return None, CallGraph()


def _shown(api: KerasApi, name: str, value: Any, variables: Iterable[VariableRecord]) -> str:
    """What a value read from a global variable is, and how much of it is stored beside the model."""
    if isinstance(value, np.ndarray) or api.is_tensor(value):
        return f"array, {api.value(value).nbytes:,} bytes"
    path = f"{GLOBALS}[{name!r}]"
    count = sum(item.parameters for item in variables if item.path.startswith(path) and item.kind != "metric")
    return f"{type(value).__name__}, {count:,} parameters" if count else type(value).__name__


def _opaque(encoder: Encoder) -> dict[str, str]:
    return {key: f"{type(item).__module__}.{type(item).__qualname__}" for key, item in encoder.objects.items()}


def _versions(api: KerasApi) -> Versions:
    return Versions(
        python=platform.python_version(),
        python_magic=MAGIC_NUMBER.hex(),
        keras=api.version,
        keras_distribution=api.distribution,
        backend=api.backend,
        backend_version=api.backend_version,
        numpy=np.__version__,
        cloudpickle=importlib.metadata.version("cloudpickle"),
        mlflow=importlib.metadata.version("mlflow"),
        mlflow_keras_subclass=__version__,
    )


def _class_name(model: Any) -> str:
    return f"{type(model).__module__}:{type(model).__qualname__}"


def _first_line(kind: type) -> str:
    return next(iter((vars(kind).get("__doc__") or "").strip().splitlines()), "")


def _summary(model: Any) -> str:
    lines: list[str] = []
    try:
        model.summary(line_length=100, expand_nested=True, print_fn=lambda line, **_: lines.append(line))
    except Exception as error:
        # The user's compute_output_shape runs here. The summary is for people: no reason not to log the model.
        lines.append(f"The summary could not be made: {type(error).__name__}: {error}")
    return "\n".join(lines)


def add_json(root: Path, facts: ModelFacts, name: str, value: Mapping[str, Any]) -> ModelFacts:
    """Add one JSON file to what was written, and the manifest again; returns the facts of the new manifest."""
    writer = ArtifactWriter(root, DATA_DIR)
    writer.write_json(name, value)
    files = tuple(sorted([*facts.manifest.files, *writer.entries], key=lambda entry: entry.path))
    manifest = replace(facts.manifest, files=files)
    return replace(facts, manifest=manifest, manifest_sha256=write_manifest(writer.directory, manifest))
