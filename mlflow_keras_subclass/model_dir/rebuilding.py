"""``rebuild(verified, …)``: from a verified artifact to the very subclass with all of its state, in order.

Imports the parts and ``comparing``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException

from mlflow_keras_subclass import keras_api
from mlflow_keras_subclass.artifacts import class_definition, config, state, structure
from mlflow_keras_subclass.artifacts.class_definition import DefinitionRecord, is_user_defined
from mlflow_keras_subclass.artifacts.state import VariableRecord
from mlflow_keras_subclass.errors import RebuildError
from mlflow_keras_subclass.manifest import (
    CONFIG_FILE,
    OBJECTS_FILE,
    PROOF_FILE,
    STRUCTURE_FILE,
)
from mlflow_keras_subclass.model_dir.comparing import stored_arrays, verify_predictions, with_digests
from mlflow_keras_subclass.model_tree import ModelTree, is_global, set_globals, walk
from mlflow_keras_subclass.specs import ArraySpec, InputSpec
from mlflow_keras_subclass.trust import VerifiedModel
from mlflow_keras_subclass.values import Decoder, Encoder

__all__ = ["call_on_zeros", "rebuild", "restore_variables"]

_logger = logging.getLogger(__name__)


def rebuild(
    verified: VerifiedModel,
    *,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    device: str | None = None,
    route: str | None = None,
    variables: Sequence[str] | None = None,
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
        variables: Patterns of the variables that get their stored values; the others and the optimizers start as the
            constructor makes them. ``None`` for all.

    Raises:
        RebuildError: The model built is not the one that was logged, or another major version of Keras is installed.
        ClassDefinitionError: The class cannot be brought back here.
        UntrustedCodeError: The stored class may not be loaded.
        DeviceError: ``device`` is not present.
    """
    _compare_versions(verified)
    with _in_our_words(verified):
        model = _Rebuild(verified, custom_objects or {}, route, variables).run(compile=compile, device=device)
    if variables is None and keras_api.for_model(model).backend != verified.manifest.versions.backend:
        _check_on_another_backend(verified, model)
    return model


def _compare_versions(verified: VerifiedModel) -> None:
    """Refuse another major version of Keras, and tell of another minor version of Keras or the backend."""
    recorded = verified.manifest.versions
    api = keras_api.for_versions(recorded)
    if _major(api.version) != _major(recorded.keras):
        raise RebuildError(
            f"{verified.root}: {verified.manifest.model_class} was logged with Keras {recorded.keras}, and this is "
            f"Keras {api.version}. Install keras=={recorded.keras}, or log the model again with this version."
        )
    if other := _other_versions(verified):
        _logger.warning(
            "%s was logged with other versions: %s. load_model(verify=True) tells whether it answers alike.",
            verified.manifest.model_class,
            "; ".join(other),
        )


def _other_versions(verified: VerifiedModel) -> list[str]:
    """Keras and the backend, each if its minor version is another one than the model was logged with."""
    recorded = verified.manifest.versions
    api = keras_api.for_versions(recorded)
    pairs = [("Keras", recorded.keras, api.version)]
    if api.backend == recorded.backend:
        pairs.append((api.backend, recorded.backend_version, api.backend_version))
    return [f"{name} {was}, here {now}" for name, was, now in pairs if _minor(was) != _minor(now)]


def _major(version: str) -> str:
    return version.partition(".")[0]


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _check_on_another_backend(verified: VerifiedModel, model: Any) -> None:
    """Nothing but its answers tells whether a class does on this backend what it did on the one that it is written for.

    Raises:
        RebuildError: It does not answer, or otherwise; the text names the lines that ask the backend.
    """
    logged, here = verified.manifest.versions.backend, keras_api.for_model(model).backend
    record = DefinitionRecord.from_json(verified.read_json(CONFIG_FILE)["definitions"])
    lines = class_definition.lines_asking(logged, record, verified)
    try:
        answers = verify_predictions(verified, model)
    except Exception as error:
        line = class_definition.last_line(error)
        named = "".join(f"\n  {item}" for item in ([line] if line else lines[:5]))
        raise RebuildError(
            f"{verified.manifest.model_class} was logged on {logged} and does not answer alike on {here}: "
            f"{type(error).__name__}: {error}{named}\n"
            f"Load it with KERAS_BACKEND={logged}, or write these lines with keras.ops and log it again."
        ) from error
    if lines:
        _logger.warning(
            "%s was logged on %s and answers alike on %s, but these lines ask %s directly, and fail or differ when "
            "they are reached: %s",
            verified.manifest.model_class,
            logged,
            here,
            logged,
            "; ".join(lines[:5]),
        )
    if not answers or any(result not in ("exact", "close") for result in answers.values()):
        _logger.warning(
            "%s was logged on %s; whether it answers alike on %s could not be checked: %s",
            verified.manifest.model_class,
            logged,
            here,
            answers or "how it is called is not known",
        )


def restore_variables(verified: VerifiedModel, model: Any) -> None:
    """Give the variables of ``model`` the stored values; its optimizers stay as they are.

    Raises:
        RebuildError: ``model`` does not have the stored variables.
    """
    api = keras_api.for_model(model)
    tree = walk(api, model, is_user_defined)
    state.restore_variables(api, verified, state.read_variables(verified), tree, compiled=True)


@contextlib.contextmanager
def _in_our_words(verified: VerifiedModel) -> Iterator[None]:
    """Whatever the user's code, Keras or a tampered description raise inside becomes one error that a caller knows."""
    try:
        yield
    except (MlflowException, MemoryError):
        raise
    except Exception as error:
        other = _other_versions(verified)
        advice = (
            f"It was logged with {'; '.join(other)}: install what it was logged with, or log it again with this."
            if other
            else "Log the model again if it was edited."
        )
        raise RebuildError(
            f"{verified.root}: {verified.manifest.model_class} could not be rebuilt: {type(error).__name__}: {error}. "
            f"{advice}"
        ) from error


class _Rebuild:
    def __init__(
        self,
        verified: VerifiedModel,
        custom_objects: Mapping[str, Any],
        route: str | None,
        patterns: Sequence[str] | None,
    ) -> None:
        self._verified = verified
        self._route = route
        self._patterns = patterns
        self._custom_objects = dict(custom_objects)
        self._config = verified.read_json(CONFIG_FILE)
        self._structure = verified.read_json(STRUCTURE_FILE)
        self._globals: Mapping[str, Any] = self._config.get("globals", {})
        self._api = keras_api.for_versions(verified.manifest.versions)

    def run(self, *, compile: bool, device: str | None) -> Any:
        api, verified = self._api, self._verified
        placed = api.check_device(device)
        definitions = self._definitions()
        if self._globals and definitions.is_of_caller:
            self._leave_globals_out()
        registered = {name: definitions.definitions[key] for name, key in definitions.registrations.items()}
        with api.device(placed), self._construction(registered | self._custom_objects):
            variables = [item for item in state.read_variables(verified) if self._globals or not is_global(item.path)]
            model, decoder = self._construct(definitions, variables)
            tree, compiled = self._complete(model, decoder, compile=compile)
            tree = self._settle(model, tree, variables)
            structure.compare_layers(self._structure["layers"], tree)
            # What was logged by earlier releases does not say.
            state.restore_memory_orders(api, self._structure.get("memory_orders", {}), tree)
            only = None if self._patterns is None else state.matching_paths(variables, self._patterns)
            state.restore_variables(api, verified, variables, tree, compiled=compiled, only=only)
            optimizers = self._structure["optimizers"]
            present = {path: item for path, item in optimizers.items() if compiled or path in tree.optimizers}
            if only is None:
                state.restore_optimizers(api, verified, present, tree)
            self._restore_attributes(tree, decoder, compiled=compiled)
        not_finite = [path for path in self._config.get("not_finite", ()) if only is None or path in only]
        if not_finite:
            _logger.warning("NaN or infinite values were logged in the weights %s.", ", ".join(not_finite))
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
                arrays=stored_arrays(self._verified),
                documents=(self._config, self._structure),
            )
            model = self._constructed(definitions, decoder)
            structure.put_layers(records, self._walk(model), decoder, replaced)
            tree = self._build(model, decoder)
            found = structure.mismatched_layers(records, tree, shapes, lambda item: self._api.shape_and_dtype(item)[0])
            # A class of the caller's own that makes other layers is another class, not a model changed afterwards.
            if not found or replaced or self._custom_objects:
                return model, decoder
            replaced = found

    def _constructed(self, definitions: class_definition.Definitions, decoder: Decoder) -> Any:
        """The model from its constructor, and what its code reads from global variables in their places."""

        def put(name: str, value: Any) -> None:
            for setter in definitions.setters.get(name, ()):
                setter(value)

        made = config.restore_globals(self._globals, decoder, put)
        model = config.construct(self._api, self._config["constructor"], decoder)
        for name, value in self._globals.items():
            if value is None:
                put(name, model)
        set_globals(model, made)
        return model

    def _build(self, model: Any, decoder: Decoder) -> ModelTree:
        return structure.build_tree(self._api, self._structure["layers"], decoder, lambda: self._walk(model))

    def _complete(self, model: Any, decoder: Decoder, *, compile: bool) -> tuple[ModelTree, bool]:
        """The tree with the layers that ``compile`` makes, or that were put on afterwards; and whether it is compiled.

        Where layers are missing without it, the model is compiled though the caller did not ask for it.
        """
        records = self._structure["layers"]
        tree = self._compile(model, decoder) if compile else self._walk(model)
        missing = [path for path in records if path not in tree.layers]
        if missing and not self._custom_objects:
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
        specs = {item.path: (item.shape, item.dtype, item.trainable) for item in variables}
        if structure.add_unreachable(self._api, records, tree, specs):
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
            return class_definition.Definitions(definitions=given, objects={}, registrations={}, is_of_caller=True)
        route = self._route or class_definition.choose_route(record, _proven(self._verified), self._verified)
        policy.check_code(route, pickled=route == "cloudpickle" or OBJECTS_FILE in self._verified.names())
        stored = class_definition.read(replace(record, serialization_format=route), self._verified)
        return replace(stored, definitions={**stored.definitions, **given})

    def _leave_globals_out(self) -> None:
        """The code of the caller's own classes reads the variables of the caller's own modules."""
        _logger.warning(
            "%s: your own class is used, which reads its own global variables; what the logged model's code read from "
            "%s is not restored.",
            self._verified.root,
            ", ".join(sorted(self._globals)),
        )
        self._globals = {}
        self._structure = {
            part: {path: item for path, item in records.items() if not is_global(path)}
            for part, records in self._structure.items()
        }

    def _construction(self, registered: Mapping[str, Any]) -> Any:
        return self._api.construction(
            dtype_policy=self._config["dtype_policy"],
            floatx=self._config["floatx"],
            custom_objects=registered,
            draws=self._patterns is not None,
        )

    def _walk(self, model: Any) -> ModelTree:
        return walk(self._api, model, is_user_defined)

    def _restore_attributes(self, tree: ModelTree, decoder: Decoder, *, compiled: bool) -> None:
        encoder = Encoder(self._api, is_user_defined)
        stored = stored_arrays(self._verified)
        attributes = self._structure["attributes"]
        if not compiled:  # What is in a metric that compile makes is not there either.
            attributes = {path: item for path, item in attributes.items() if tree.has_place(path)}
        structure.restore_attributes(
            attributes,
            tree,
            decoder,
            current=lambda path, value: with_digests(
                structure.capture_attribute(path, value, encoder), encoder.arrays.__getitem__
            ),
            recorded_as=lambda value: with_digests(value, stored),
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
    shape = spec.example_shape(1)
    return np.full(shape, "", dtype=object) if spec.dtype == "string" else np.zeros(shape, dtype=spec.dtype)
