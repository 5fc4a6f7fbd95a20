"""Everything of a model directory that is known before MLflow names the model, written into a staging directory.

``flavor`` stages first and hands the result to MLflow afterwards: all refusals happen before anything exists in the
tracking store or at the target path. Imports the parts and ``model_dir``; imports no Keras itself.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.models import Model, ModelSignature

from mlflow_keras_subclass import model_dir, proof
from mlflow_keras_subclass.artifacts import config, environment, loader, page, report
from mlflow_keras_subclass.artifacts import signature as signatures
from mlflow_keras_subclass.artifacts.page import Heading
from mlflow_keras_subclass.artifacts.report import Card, TensorRow
from mlflow_keras_subclass.artifacts.signature import Example
from mlflow_keras_subclass.errors import CaptureError, GraphError, KerasSubclassError, ProofError
from mlflow_keras_subclass.manifest import CODE_DIR, DATA_DIR, PAGE_FILE, REQUIREMENTS_FILE
from mlflow_keras_subclass.model_dir import ModelFacts
from mlflow_keras_subclass.outputs import named_specs
from mlflow_keras_subclass.pyfunc import FLAVOR_NAME
from mlflow_keras_subclass.rehearsal import rehearse
from mlflow_keras_subclass.serving_options import PREDICT_PARAMS, ServingOptions
from mlflow_keras_subclass.specs import ArraySpec, InputSpec, Structure

__all__ = ["Request", "Staged", "copy_summary", "scratch", "stage"]

_EXTRA_FILES_DIR = "extra_files"
_READABLE = (report.REPORT_FILE, PAGE_FILE, REQUIREMENTS_FILE)
_READABLE_SUFFIXES = (".csv", ".json", ".py", ".txt")
_MOST_MIRRORED_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the caller of ``save_model`` or ``log_model`` asked for, beside where to put it."""

    model: Any
    custom_objects: Mapping[str, Any] | None
    conda_env: Any
    code_paths: Sequence[str | Path] | None
    signature: ModelSignature | bool | None
    input_example: Any
    pip_requirements: Any
    extra_pip_requirements: Any
    extra_files: Sequence[str | Path] | None
    model_config: Any
    pyfunc_predict_fn: str | None
    config: Mapping[str, Any] | None
    provenance: str
    serialization_format: str | None
    infer_requirements: bool
    prove: bool | str
    bundle: bool | None
    include_optimizer: bool
    max_shard_size: float | None
    export_graph: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A model directory that is complete but for ``MLmodel`` and what depends on the model's ID."""

    root: Path
    facts: ModelFacts
    signature: ModelSignature | None
    example: Example | None
    options: ServingOptions
    loader_module: str
    flavor: Mapping[str, Any]

    def complete(self, root: Path, mlflow_model: Model) -> None:
        """Write the rest into ``root``, to which the staged files were moved."""
        if self.signature is not None:
            mlflow_model.signature = self.signature
        if self.example is not None:
            signatures.write_example(root, mlflow_model, self.example, self.facts.input_spec)
        mlflow_model.add_flavor(FLAVOR_NAME, **self.flavor)
        mlflow.pyfunc.add_to_model(
            mlflow_model,
            loader_module=self.loader_module,
            data=DATA_DIR,
            code=CODE_DIR if (root / CODE_DIR).is_dir() else None,
            conda_env=environment.CONDA_FILE,
            python_env=environment.PYTHON_FILE,
            model_config=self.options.to_config(),
        )
        page.write(root, self._heading(mlflow_model.model_id), self.facts.call_graph)
        card = report.card(self.card(root, mlflow_model.model_id))
        (root / report.REPORT_FILE).write_bytes(card.encode("utf-8"))
        mlflow_model.model_size_bytes = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        mlflow_model.save(str(root / "MLmodel"))

    def _heading(self, model_id: str | None) -> Heading:
        facts, versions = self.facts, self.facts.manifest.versions
        changed = {True: ", uncommitted changes", False: "", None: ""}[facts.git.dirty]
        return Heading(
            class_name=facts.class_name,
            model_class=facts.model_class,
            doc=facts.doc,
            uri=f"models:/{model_id}" if model_id else None,
            facts=(
                f"{facts.parameter_count:,} parameters, {facts.trainable_count:,} trainable",
                f"commit {facts.git.commit[:10]}{changed}" if facts.git.commit else "no commit",
                "proven to come back" if facts.is_proven else "not proven",
                f"Keras {versions.keras}, {versions.backend} {versions.backend_version}, Python {versions.python}",
            ),
        )

    def card(self, root: Path, model_id: str | None) -> Card:
        """The record of the model card."""
        facts, versions = self.facts, self.facts.manifest.versions
        return Card(
            uri=f"models:/{model_id}" if model_id else None,
            model_class=facts.model_class,
            class_name=facts.class_name,
            doc=facts.doc,
            inputs=_rows(facts.input_spec.leaves() if facts.input_spec else {}),
            outputs=_rows(named_specs(facts.output_spec) if facts.output_spec is not None else {}),
            parameter_count=facts.parameter_count,
            trainable_count=facts.trainable_count,
            not_finite=facts.not_finite,
            globals=facts.globals,
            commit=facts.git.commit,
            branch=facts.git.branch,
            remote_url=facts.git.remote_url,
            dirty=facts.git.dirty,
            keras_version=versions.keras,
            backend=versions.backend,
            backend_version=versions.backend_version,
            python_version=versions.python,
            manifest_sha256=facts.manifest_sha256,
            files=tuple(sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())),
        )


def copy_summary(root: Path, target: Path, model_id: str | None) -> None:
    """Copy what a person reads of a model directory, each file at the place that the model card names."""
    data = sorted(path for path in (root / DATA_DIR).rglob("*") if path.suffix in _READABLE_SUFFIXES)
    small = [path for path in data if path.is_file() and path.stat().st_size <= _MOST_MIRRORED_BYTES]
    for path in [*(root / name for name in _READABLE), *small]:
        if path.is_file():
            copied = target / path.relative_to(root)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copied)
    card = (root / report.REPORT_FILE).read_text(encoding="utf-8")
    (target / report.REPORT_FILE).write_bytes(report.summary(card, f"models:/{model_id}").encode("utf-8"))


@contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    """An empty directory in ``parent`` (or where temporary files go), removed afterwards unless it was renamed."""
    outer = Path(tempfile.mkdtemp(prefix=".mlflow-keras-subclass-", dir=parent))
    try:
        # mkdtemp's own directory is for its owner only; what is renamed into place has usual permissions.
        inner = outer / "model"
        inner.mkdir()
        yield inner
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def stage(request: Request, root: Path) -> Staged:
    """Write everything for ``request`` into the empty directory ``root``.

    Raises:
        CaptureError: Something of the model cannot be stored so that it would come back the same.
        ClassDefinitionError: The class definition cannot be shipped.
        GraphError: The model has no graph, and one was asked for.
        PredictError: The model does not take the input example.
        ProofError: What was written does not come back as the model is, or its graph answers otherwise.
    """
    options = _options(request)
    example = signatures.split_example(request.input_example)
    _check(request)
    _check_engine(request, options)
    loader_module = loader.choose(request.bundle)
    code = _copy_code(request.code_paths, root)
    loader.write(root, loader_module)
    facts = model_dir.write(
        request.model,
        root,
        config=request.config,
        custom_objects=request.custom_objects,
        example=None if example is None else example.data,
        provenance=request.provenance,
        serialization_format=request.serialization_format,
        include_optimizer=request.include_optimizer,
        shard_bytes=None if request.max_shard_size is None else int(request.max_shard_size * 10**9),
        export_graph=request.export_graph,
    )
    options, served_spec = rehearse(request.model, facts, options, None if example is None else example.data)
    facts = _proven(request, root, facts)
    staged = Staged(
        root=root,
        facts=facts,
        signature=_signature(request.signature, example, facts.input_spec, served_spec),
        example=example,
        options=options,
        loader_module=loader_module,
        flavor={**_flavor(facts, code), **_copy_extra_files(request.extra_files, root)},
    )
    if example is not None:
        signatures.write_example(root, Model(), example, facts.input_spec)
    _write_environment(request, staged)
    return staged


def _proven(request: Request, root: Path, facts: ModelFacts) -> ModelFacts:
    """The facts with the proof, if one was asked for; arguments that were guessed are refused unless proven."""
    if request.prove is not True:
        if facts.has_graph:
            proof.check_graph(root, facts)
        if facts.inferred_arguments:
            raise CaptureError(config.unknown_arguments(type(request.model)))
        return facts
    try:
        return proof.prove(root, facts, forced=request.serialization_format is not None)
    except ProofError as error:
        if facts.inferred_arguments:
            message = config.unknown_arguments(type(request.model))
            raise CaptureError(f"{message}\nAttributes of the same names are not what it needs: {error}") from None
        raise


def _check(request: Request) -> None:
    if request.prove not in (True, False, "background"):
        raise KerasSubclassError(f"prove: expected True, False or 'background', got {request.prove!r}.")
    size = request.max_shard_size
    if size is not None and not (isinstance(size, int | float) and size > 0):
        raise KerasSubclassError(f"max_shard_size: expected a number of gigabytes above 0, or None, got {size!r}.")
    environment.check_arguments(request.conda_env, request.pip_requirements, request.extra_pip_requirements)
    signature = request.signature
    if isinstance(signature, ModelSignature):
        signatures.check(signature, PREDICT_PARAMS)
    elif signature is not None and signature is not False:
        raise KerasSubclassError(
            f"signature: expected a ModelSignature, None or False, got {type(signature).__name__}."
        )


def _check_engine(request: Request, options: ServingOptions) -> None:
    if options.engine == "graph" and not request.export_graph:
        raise GraphError("model_config: engine 'graph' needs the graph that export_graph=True stores with the model.")
    if request.export_graph and options.predict_fn != "call":
        raise GraphError(
            f"export_graph: expected predict_fn 'call', of which the graph is made, got {options.predict_fn!r}. Leave "
            "one of them out."
        )


def _options(request: Request) -> ServingOptions:
    model_config = request.model_config
    config = _read_config(model_config) if isinstance(model_config, str | Path) else model_config or {}
    if not isinstance(config, Mapping):
        raise KerasSubclassError(f"model_config: expected a dict or the path of one, got {type(config).__name__}.")
    known = ServingOptions().to_config()
    if unknown := sorted(str(key) for key in config.keys() - known.keys()):
        raise KerasSubclassError(f"model_config: unknown {', '.join(unknown)}; expected some of {', '.join(known)}.")
    if request.pyfunc_predict_fn is None:
        return ServingOptions.from_config(config)
    if config.get("predict_fn", request.pyfunc_predict_fn) != request.pyfunc_predict_fn:
        raise KerasSubclassError(
            f"pyfunc_predict_fn is {request.pyfunc_predict_fn!r}, and model_config says predict_fn "
            f"{config['predict_fn']!r}. Give one of them."
        )
    return ServingOptions.from_config({**config, "predict_fn": request.pyfunc_predict_fn})


def _read_config(path: str | Path) -> Any:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise KerasSubclassError(f"model_config: {path} cannot be read: {error}.") from None
    try:
        return json.loads(text) if Path(path).suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise KerasSubclassError(f"model_config: {path} is not valid: {error}.") from None


def _copy_code(code_paths: Sequence[str | Path] | None, root: Path) -> str | None:
    if code_paths is None:
        return None
    if not isinstance(code_paths, list | tuple):
        # As MLflow: a string would be taken for a list of letters.
        raise TypeError(f"code_paths: expected a list of paths, got {type(code_paths).__name__}.")
    target = root / CODE_DIR
    target.mkdir()
    for item in code_paths:
        source = Path(item).absolute()
        if not source.exists():
            raise KerasSubclassError(f"code_paths: {item} does not exist.")
        _copy(source, target / source.name, root)
    return CODE_DIR


def _copy(source: Path, target: Path, root: Path) -> None:
    if source.is_file():
        shutil.copy2(source, target)
        return

    def skipped(folder: str, names: list[str]) -> list[str]:
        # The staging directory itself may lie below a folder of code.
        return [name for name in names if name == "__pycache__" or Path(folder, name) == root.parent]

    shutil.copytree(source, target, ignore=skipped, dirs_exist_ok=True)


def _copy_extra_files(extra_files: Sequence[str | Path] | None, root: Path) -> dict[str, Any]:
    if not extra_files:
        return {}
    if not isinstance(extra_files, list | tuple):
        raise TypeError(f"extra_files: expected a list of paths or URIs, got {type(extra_files).__name__}.")
    target = root / _EXTRA_FILES_DIR
    target.mkdir()
    for item in extra_files:
        mlflow.artifacts.download_artifacts(artifact_uri=str(item), dst_path=str(target))
    return {"extra_files": [{"path": f"{_EXTRA_FILES_DIR}/{path.name}"} for path in sorted(target.iterdir())]}


def _signature(
    given: ModelSignature | bool | None,
    example: Example | None,
    input_spec: InputSpec | None,
    output_spec: Structure | None,
) -> ModelSignature | None:
    if isinstance(given, ModelSignature):
        signatures.check_names(given, input_spec)
        return given
    if given is False:
        return None
    if example is None:
        return signatures.from_specs(input_spec, output_spec)
    return signatures.from_example(example, input_spec, output_spec)


def _flavor(facts: ModelFacts, code: str | None) -> dict[str, Any]:
    versions = facts.manifest.versions
    return {
        "data": DATA_DIR,
        "code": code,
        "model_class": facts.model_class,
        "format_version": facts.manifest.format_version,
        "manifest_sha256": facts.manifest_sha256,
        "keras_version": versions.keras,
        "keras_backend": versions.backend,
        "backend_version": versions.backend_version,
        "python_version": versions.python,
        "cloudpickle_version": versions.cloudpickle,
        "serialization_format": facts.serialization_format,
    }


def _write_environment(request: Request, staged: Staged) -> None:
    defaults = environment.requirements(
        backend=staged.facts.manifest.versions.backend,
        distribution=staged.facts.manifest.versions.keras_distribution,
        imports=[*staged.facts.third_party, *staged.facts.graph_imports],
        bundled=loader.is_bundle(staged.loader_module),
    )
    if request.infer_requirements and request.conda_env is None and request.pip_requirements is None:
        # The subprocess loads the model, which therefore must have its MLmodel; it is written again later.
        staged.complete(staged.root, Model())
        defaults = environment.inferred(staged.root, mlflow.pyfunc.FLAVOR_NAME, defaults)
        for compiled in list(staged.root.rglob("__pycache__")):
            shutil.rmtree(compiled)
    environment.write(
        staged.root,
        defaults=defaults,
        conda_env=request.conda_env,
        pip_requirements=request.pip_requirements,
        extra_pip_requirements=request.extra_pip_requirements,
    )


def _rows(leaves: Mapping[str | None, ArraySpec]) -> tuple[TensorRow, ...]:
    return tuple(TensorRow(name=name, shape=leaf.shape, dtype=leaf.dtype) for name, leaf in leaves.items())
