"""The two flows, in order: ``write`` a model's part of an artifact, ``rebuild`` the model from a verified one.

Reads like the table of contents; each step is a part in ``artifacts``. Imports everything below it, and of MLflow its
exception only.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException

from mlflow_keras_subclass import keras_api, recorder
from mlflow_keras_subclass.artifacts import class_definition, config, fingerprint, provenance, state, structure
from mlflow_keras_subclass.artifacts.class_definition import DefinitionRecord, is_user_defined
from mlflow_keras_subclass.artifacts.provenance import GitRecord
from mlflow_keras_subclass.artifacts.state import VariableRecord
from mlflow_keras_subclass.call_graph import CallGraph, watched
from mlflow_keras_subclass.coercion import Arrays, coerce, example_arrays
from mlflow_keras_subclass.errors import CaptureError, ClassDefinitionError, Finding, PredictError, RebuildError
from mlflow_keras_subclass.files import ArtifactWriter, FileEntry
from mlflow_keras_subclass.keras_api import KerasApi
from mlflow_keras_subclass.manifest import (
    ARRAYS_FILE,
    CODE_DIR,
    CONFIG_FILE,
    DATA_DIR,
    FORMAT_VERSION,
    OBJECTS_FILE,
    PROOF_FILE,
    STRUCTURE_FILE,
    SUMMARY_FILE,
    Manifest,
    Versions,
    write_manifest,
)
from mlflow_keras_subclass.model_tree import ModelTree, walk
from mlflow_keras_subclass.source_lines import line_of_attribute, line_of_class
from mlflow_keras_subclass.specs import ArraySpec, InputSpec, Structure, observe, observe_call
from mlflow_keras_subclass.tensors import TensorFile, TensorSource, write_tensors
from mlflow_keras_subclass.trust import VerifiedModel
from mlflow_keras_subclass.values import Decoder, Encoder

__all__ = [
    "ModelFacts",
    "add_json",
    "call_on_zeros",
    "compare",
    "read_specs",
    "rebuild",
    "restore_variables",
    "unchanged",
    "verify_predictions",
    "write",
]


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
        return any(entry.path == f"{DATA_DIR}/{PROOF_FILE}" for entry in self.manifest.files)


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

    Raises:
        CaptureError: Something of the model cannot be stored so that it would come back the same.
        ClassDefinitionError: The class definition cannot be shipped.
        PredictError: The model does not take the example.
    """
    return _Write(model, root, dict(custom_objects or {}), include_optimizer=include_optimizer).run(
        config=config, example=example, detail=provenance, serialization_format=serialization_format
    )


class _Write:
    def __init__(self, model: Any, root: Path, custom_objects: dict[str, Any], *, include_optimizer: bool) -> None:
        self._api = keras_api.for_model(model)
        self._include_optimizer = include_optimizer
        self._model = model
        self._root = root
        self._custom_objects = custom_objects
        self._writer = ArtifactWriter(root, DATA_DIR)
        self._encoder = Encoder(self._api, is_user_defined)

    def run(
        self, *, config: Mapping[str, Any] | None, example: Any, detail: str, serialization_format: str | None
    ) -> ModelFacts:
        tree = walk(self._api, self._model, is_user_defined)
        findings = _Findings(tree)
        with findings.collected():
            _refuse(self._model, tree)
        inputs = recorder.observed_input_spec(self._model) or _spec_of_example(self._model, example)
        probe = None if example is None or inputs is None else _probe(example, inputs)
        document = self._describe(config, findings)
        with findings.collected():
            self._write_structure(tree)
        with findings.collected():
            definitions = self._write_definitions(tree, document, serialization_format)
        findings.raise_any()
        variables = state.write_variables(self._api, tree, self._writer)
        outputs, graph = _output_spec(self._api, self._model, inputs, tree.layers)
        document |= {"definitions": definitions.record.to_json(), "opaque": _opaque(self._encoder)}
        document |= _specs_to_json(inputs, outputs)
        self._writer.write_json(CONFIG_FILE, document)
        self._write_arrays()
        guard = functools.partial(unchanged, self._api, self._model)
        fingerprint.write(self._writer, self._api, self._model, inputs, probe, guard)
        git = provenance.write(self._writer, definitions.source_files, fallback=Path.cwd(), provenance=detail)
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

    def _describe(self, stated: Mapping[str, Any] | None, findings: _Findings) -> dict[str, Any]:
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
        return document

    def _write_structure(self, tree: ModelTree) -> None:
        document = {
            "layers": structure.capture_layers(self._api, tree, self._encoder),
            "attributes": structure.capture_attributes(tree, self._encoder),
            "vocabularies": state.write_vocabularies(self._api, tree, self._writer),
            "optimizers": state.write_optimizers(self._api, tree, self._writer) if self._include_optimizer else {},
        }
        self._writer.write_json(STRUCTURE_FILE, document)

    def _write_definitions(
        self, tree: ModelTree, document: Mapping[str, Any], serialization_format: str | None
    ) -> class_definition.Written:
        for owner in tree.owners.values():
            if is_user_defined(type(owner)):
                self._encoder.definition(type(owner))
        registered = self._registered(json.dumps(document)) | self._custom_objects
        registrations = {
            name: self._encoder.definition(item) for name, item in registered.items() if is_user_defined(item)
        }
        return class_definition.write(
            self._writer,
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
            write_tensors(self._writer, ARRAYS_FILE, {name: _source(array) for name, array in arrays.items()})

    def _manifest(self) -> Manifest:
        return Manifest(
            format_version=FORMAT_VERSION,
            created_at=datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
            model_class=_class_name(self._model),
            versions=_versions(self._api),
            files=tuple(sorted([*self._writer.entries, *_code_entries(self._root)], key=lambda entry: entry.path)),
        )


class _Findings:
    """All that is in the way of storing a model, from every step, for one error."""

    def __init__(self, tree: ModelTree) -> None:
        self._tree = tree
        self._errors: list[CaptureError | ClassDefinitionError] = []

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """A refusal inside is kept for ``raise_any``, which must be called before the step's result is used."""
        try:
            yield
        except (CaptureError, ClassDefinitionError) as error:
            self._errors.append(error)

    def raise_any(self) -> None:
        """Raise what was collected: the error itself where there is one, else one with all findings."""
        if len(self._errors) == 1 and isinstance(self._errors[0], ClassDefinitionError):
            raise self._errors[0]
        found = [finding for error in self._errors for finding in self._of(error)]
        if found:
            listed = "".join(f"\n- {finding}" for finding in found)
            message = f"The model cannot be stored so that it comes back the same:{listed}"
            raise CaptureError(message, findings=found) from self._errors[0]

    def _of(self, error: CaptureError | ClassDefinitionError) -> Iterator[Finding]:
        if isinstance(error, ClassDefinitionError):
            yield Finding(path="class definition", problem=error.message)
            return
        for finding in error.findings:
            yield replace(finding, source=finding.source or self._line(finding.path))

    def _line(self, path: str) -> str | None:
        """The line of the user's source that sets what ``path`` names, or that of the model's constructor."""
        model = self._tree.owners[""]
        steps = path
        while place := self._tree.place(steps):
            if isinstance(place.key, str) and not place.is_item and is_user_defined(type(place.owner)):
                return line_of_attribute(place.owner, place.key) or line_of_class(type(place.owner))
            steps = steps[: steps.rindex("[")] if place.is_item else steps.rpartition(".")[0]
        return line_of_class(type(model)) if is_user_defined(type(model)) else None


def _refuse(model: Any, tree: ModelTree) -> None:
    """Raise one ``CaptureError`` with all findings that make the model impossible to restore."""
    findings = [
        Finding(
            path=path,
            problem="a set holds several layers or variables, which have no order and no name. Use a list or a dict.",
        )
        for path in tree.unordered
    ]
    if len(tree.layers) > 1 and not any(layer.built for layer in tree.layers.values()):
        problem = (
            f"{type(model).__qualname__} was never called, so its layers have no weights yet. Call it once on data, or "
            "fit it, before logging."
        )
        findings.append(Finding(path="model", problem=problem))
    if findings:
        raise CaptureError("; ".join(map(str, findings)), findings=findings)


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


def _specs_to_json(inputs: InputSpec | None, outputs: Structure | None) -> dict[str, Any]:
    return config.specs_to_json(inputs, outputs)


def _opaque(encoder: Encoder) -> dict[str, str]:
    return {key: f"{type(item).__module__}.{type(item).__qualname__}" for key, item in encoder.objects.items()}


def _source(array: np.ndarray[Any, Any]) -> TensorSource:
    return TensorSource(shape=array.shape, dtype=array.dtype.name, value=lambda: array)


def _code_entries(root: Path) -> list[FileEntry]:
    entries = []
    for path in sorted((root / CODE_DIR).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            data = path.read_bytes()
            name = path.relative_to(root).as_posix()
            entries.append(FileEntry(path=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    return entries


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
        mlflow_keras_subclass=importlib.metadata.version("mlflow-keras-subclass"),
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


@contextlib.contextmanager
def unchanged(api: KerasApi, model: Any) -> Iterator[None]:
    """Call ``model`` inside; state and attributes that a call changes are put back afterwards."""
    tree = walk(api, model, is_user_defined)
    fixed = {path: item for path, item in tree.variables.items() if not api.is_trainable(item)}
    values = {path: api.value(item) for path, item in fixed.items()}
    try:
        yield
    finally:
        for path, variable in fixed.items():
            if not np.array_equal(api.value(variable), values[path]):
                api.assign(variable, values[path])
        now = walk(api, model, is_user_defined).attributes
        for path, attribute in tree.attributes.items():
            if path in now and now[path].value is not attribute.value:
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
        current=lambda path, value: _with_digests(
            structure.capture_attribute(path, value, encoder), encoder.arrays.__getitem__
        ),
        recorded_as=lambda value: _with_digests(value, _stored_arrays(verified)),
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


def restore_variables(verified: VerifiedModel, model: Any) -> None:
    """Give the variables of ``model`` the stored values; its optimizers stay as they are.

    Raises:
        RebuildError: ``model`` does not have the stored variables.
    """
    api = keras_api.for_model(model)
    tree = walk(api, model, is_user_defined)
    state.restore_variables(api, verified, state.read_variables(verified), tree, compiled=True)


def read_specs(verified: VerifiedModel) -> tuple[InputSpec | None, Structure | None]:
    """Input and output spec of the stored model."""
    return config.read_specs(verified.read_json(CONFIG_FILE))


def rebuild(
    verified: VerifiedModel,
    *,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    device: str | None = None,
    route: str | None = None,
) -> Any:
    """The model that was logged, rebuilt: an instance of its own class with all of its state.

    Args:
        verified: The artifact, checked.
        custom_objects: The caller's classes and functions by name; if the model's class is among them, nothing
            stored is unpickled or run.
        compile: Whether to compile the model as it was compiled, and to restore its optimizers; a class that makes
            layers in ``compile`` is compiled in any case.
        device: Where to put the variables (``cpu``, ``gpu:1``); ``None`` or ``auto`` leaves it to the backend.
        route: The route by which the class is brought back; ``None`` follows the record and the proof.

    Raises:
        RebuildError: The model built is not the one that was logged.
        ClassDefinitionError: The class cannot be brought back here.
        UntrustedCodeError: The stored class may not be loaded.
        DeviceError: ``device`` is not present.
    """
    with _in_our_words(verified):
        return _Rebuild(verified, custom_objects or {}, route).run(compile=compile, device=device)


@contextlib.contextmanager
def _in_our_words(verified: VerifiedModel) -> Iterator[None]:
    """Whatever the user's code, Keras or a tampered description raise inside becomes one error that a caller knows."""
    try:
        yield
    except (MlflowException, MemoryError):
        raise
    except Exception as error:
        raise RebuildError(
            f"{verified.root}: {verified.manifest.model_class} could not be rebuilt: {type(error).__name__}: {error}. "
            "Compare the versions in manifest.json with those installed here, and log the model again if it was edited."
        ) from error


class _Rebuild:
    def __init__(self, verified: VerifiedModel, custom_objects: Mapping[str, Any], route: str | None) -> None:
        self._verified = verified
        self._route = route
        self._custom_objects = dict(custom_objects)
        self._config = verified.read_json(CONFIG_FILE)
        self._structure = verified.read_json(STRUCTURE_FILE)
        self._api = keras_api.for_runtime(verified.manifest.versions.keras_distribution)

    def run(self, *, compile: bool, device: str | None) -> Any:
        api, verified = self._api, self._verified
        placed = api.check_device(device)
        definitions = self._definitions()
        registered = {name: definitions.definitions[key] for name, key in definitions.registrations.items()}
        with api.device(placed), self._construction(registered | self._custom_objects):
            variables = state.read_variables(verified)
            model, decoder = self._construct(definitions, variables)
            tree, compiled = self._complete(model, decoder, compile=compile)
            tree = self._settle(model, tree, variables)
            structure.compare_layers(self._structure["layers"], tree)
            state.restore_variables(api, verified, variables, tree, compiled=compiled)
            optimizers = self._structure["optimizers"]
            present = {path: item for path, item in optimizers.items() if compiled or path in tree.optimizers}
            state.restore_optimizers(api, verified, present, tree)
            self._restore_attributes(tree, decoder)
        return model

    def _construct(
        self, definitions: class_definition.Definitions, variables: Sequence[VariableRecord]
    ) -> tuple[Any, Decoder]:
        """The model constructed and built; once more if layers turn out to have been replaced after construction."""
        shapes = {item.path: item.shape for item in variables}
        records = self._structure["layers"]
        replaced: tuple[str, ...] = ()
        while True:
            decoder = Decoder(
                self._api,
                definitions=definitions.definitions,
                objects=definitions.objects,
                arrays=_stored_arrays(self._verified),
                documents=(self._config, self._structure),
            )
            model = config.construct(self._api, self._config["constructor"], decoder)
            structure.put_layers(records, self._walk(model), decoder, replaced)
            tree = self._build(model, decoder)
            found = structure.mismatched_layers(records, tree, shapes, lambda item: self._api.shape_and_dtype(item)[0])
            if not found or replaced:
                return model, decoder
            replaced = found

    def _build(self, model: Any, decoder: Decoder) -> ModelTree:
        return structure.build_tree(self._api, self._structure["layers"], decoder, lambda: self._walk(model))

    def _complete(self, model: Any, decoder: Decoder, *, compile: bool) -> tuple[ModelTree, bool]:
        """The tree with the layers that ``compile`` makes, or that were put on afterwards; and whether it is compiled.

        Where layers are missing without it, the model is compiled though the caller did not ask for it.
        """
        records = self._structure["layers"]
        tree = self._compile(model, decoder) if compile else self._walk(model)
        if missing := [path for path in records if path not in tree.layers]:
            with self._api.unlocked(tree.layers.values()):
                structure.put_layers(records, tree, decoder, missing)
            tree = self._build(model, decoder)
        if compile or records.keys() <= tree.layers.keys():
            return tree, compile
        return self._compile(model, decoder), True

    def _compile(self, model: Any, decoder: Decoder) -> ModelTree:
        with self._api.unlocked(self._walk(model).layers.values()):
            config.compile_model(model, self._config["compile"], decoder)
        return self._build(model, decoder)

    def _settle(self, model: Any, tree: ModelTree, variables: Sequence[VariableRecord]) -> ModelTree:
        """All that must be in place before the variables: vocabularies, variables made in a call, flags, order."""
        records = self._structure["layers"]
        state.restore_vocabularies(self._api, self._verified, self._structure["vocabularies"], tree)
        tree = self._walk(model)
        inputs, _ = config.read_specs(self._config)
        if inputs is not None and any(item.path not in tree.variables for item in variables if item.kind != "metric"):
            # A layer that makes variables only when it is called.
            call_on_zeros(model, inputs)
            tree = self._walk(model)
        structure.set_trainable(records, tree, {item.path: item.trainable for item in variables})
        structure.restore_order(self._api, records, tree)
        return tree

    def _definitions(self) -> class_definition.Definitions:
        """The user's classes: the caller's if the model's own is among them, else the stored ones."""
        record = DefinitionRecord.from_json(self._config["definitions"])
        given = _by_key(record, self._custom_objects)
        policy = self._verified.policy
        complete = policy.level == "never" and record.definitions.keys() <= given.keys()
        if complete or self._config["constructor"].get("definition") in given:
            return class_definition.Definitions(definitions=given, objects={}, registrations={})
        has_objects = OBJECTS_FILE in self._verified.names()
        route = self._route or class_definition.choose_route(record, _proven(self._verified), has_objects=has_objects)
        policy.check_code(route, pickled=route == "cloudpickle" or has_objects)
        stored = class_definition.read(replace(record, serialization_format=route), self._verified)
        return class_definition.Definitions(
            definitions={**stored.definitions, **given}, objects=stored.objects, registrations=stored.registrations
        )

    def _construction(self, registered: Mapping[str, Any]) -> Any:
        return self._api.construction(
            dtype_policy=self._config["dtype_policy"], floatx=self._config["floatx"], custom_objects=registered
        )

    def _walk(self, model: Any) -> ModelTree:
        return walk(self._api, model, is_user_defined)

    def _restore_attributes(self, tree: ModelTree, decoder: Decoder) -> None:
        encoder = Encoder(self._api, is_user_defined)
        stored = _stored_arrays(self._verified)
        structure.restore_attributes(
            self._structure["attributes"],
            tree,
            decoder,
            current=lambda path, value: _with_digests(
                structure.capture_attribute(path, value, encoder), encoder.arrays.__getitem__
            ),
            recorded_as=lambda value: _with_digests(value, stored),
        )


def _proven(verified: VerifiedModel) -> dict[str, str]:
    """Each route that was tried when the model was logged: ``""``, or why it did not bring the model back."""
    if PROOF_FILE not in verified.names():
        return {}
    routes = verified.read_json(PROOF_FILE)["routes"]
    return {name: str(reason) for name, reason in routes.items()}


def _by_key(record: DefinitionRecord, custom_objects: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's objects under the keys of the definitions they stand for: by key, qualified name or name."""
    found = {}
    for key, (_, qualname) in record.definitions.items():
        for name in (key, qualname, qualname.rpartition(".")[2]):
            if name in custom_objects:
                found[key] = custom_objects[name]
                break
    return found


def call_on_zeros(model: Any, inputs: InputSpec) -> None:
    """Call ``model`` once as it was called when it was logged."""
    args, kwargs = inputs.map(_zeros)
    model(*args, **kwargs)


def _zeros(spec: ArraySpec) -> Any:
    shape = spec.observed or tuple(1 if size is None else size for size in spec.shape)
    return np.full(shape, "", dtype=object) if spec.dtype == "string" else np.zeros(shape, dtype=spec.dtype)


def _stored_arrays(verified: VerifiedModel) -> Callable[[str], np.ndarray[Any, Any]]:
    def read(name: str) -> np.ndarray[Any, Any]:
        with verified.open(ARRAYS_FILE) as (file, size):
            return TensorFile(file, size, ARRAYS_FILE).read(name)

    return read


def _with_digests(value: Any, arrays: Callable[[str], np.ndarray[Any, Any]]) -> Any:
    """An encoded value in which arrays are named by their content, so that two can be compared."""
    if isinstance(value, list):
        return [_with_digests(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    for tag in ("$array", "$scalar", "$tensor"):
        if isinstance(value.get(tag), str):
            array = arrays(value[tag])
            content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            return {tag: [array.dtype.str, list(array.shape), content]}
    return {key: _with_digests(item, arrays) for key, item in value.items()}
