"""MLflow's verbs for this flavor: ``save_model``, ``log_model``, ``load_model`` and the default environment.

Thin: ``staging`` writes, ``model_dir`` rebuilds. Imports everything below it; imports Keras only through the seam.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS

from mlflow_keras_subclass import keras_api, model_dir, proof
from mlflow_keras_subclass.artifacts import environment, report
from mlflow_keras_subclass.artifacts import provenance as provenances
from mlflow_keras_subclass.downloads import downloaded
from mlflow_keras_subclass.errors import KerasSubclassError
from mlflow_keras_subclass.files import link_or_copy
from mlflow_keras_subclass.local_store import link_into_store
from mlflow_keras_subclass.pyfunc import FLAVOR_NAME, flavor_configuration, open_verified, prefer_backend
from mlflow_keras_subclass.staging import Request, Staged, copy_summary, scratch, stage
from mlflow_keras_subclass.trust import TrustPolicy

__all__ = [
    "DIGEST_TAG",
    "FLAVOR_NAME",
    "PROOF_TAG",
    "get_default_conda_env",
    "get_default_pip_requirements",
    "load_model",
    "log_model",
    "save_model",
]

DIGEST_TAG = "mlflow_keras_subclass.manifest_sha256"
PROOF_TAG = "mlflow_keras_subclass.proof"

_QUIET_VARIABLE = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
_NOTE_TAG = "mlflow.note.content"
_COMMIT_TAG = "mlflow.source.git.commit"
_logger = logging.getLogger(__name__)


class _Prepared:
    """What ``Model.log`` takes for a flavor: its ``save_model`` links the staged files to where MLflow wants them."""

    def __init__(self, staged: Staged, mirror: Path | None, *, is_only_uploaded: bool) -> None:
        self._staged = staged
        self._mirror = mirror
        self._is_only_uploaded = is_only_uploaded
        self.model_id: str | None = None

    def save_model(self, path: str, mlflow_model: Model, **_: Any) -> None:
        self.model_id = mlflow_model.model_id
        # Links and no moves: MLflow removes its directory when an upload fails, and the model must outlive that.
        shutil.copytree(self._staged.root, path, dirs_exist_ok=True, copy_function=link_or_copy)
        self._staged.complete(Path(path), mlflow_model)
        if self._mirror is not None:
            copy_summary(Path(path), self._mirror, self.model_id)
        if self._is_only_uploaded and self.model_id is not None:
            link_into_store(Path(path), self.model_id)


def _keep(staged: Staged, prepared: _Prepared, error: Exception, *, filled: bool) -> None:
    """After a failure to log: no model that looks ready, and the path of a complete one on this machine."""
    kept = Path(tempfile.mkdtemp(prefix="mlflow-keras-subclass-not-logged-")) / "model"
    shutil.move(staged.root, kept)
    staged.complete(kept, Model())
    _logger.error(
        "The model was not logged: %s. It is complete in %s; load it from there, or log it again.", _shown(error), kept
    )
    if filled:
        return
    try:
        for model_id in _pending(staged) if prepared.model_id is None else [prepared.model_id]:
            mlflow.MlflowClient().finalize_logged_model(model_id, LoggedModelStatus.FAILED)
    except Exception as second:
        # The server that refused the files may be gone; the first error is the one to tell.
        name = "that was begun" if prepared.model_id is None else prepared.model_id
        _logger.warning("The logged model %s could not be marked as failed: %s", name, second)


def _pending(staged: Staged) -> list[str]:
    """The logged model that the store created although the answer was an error, so that nobody was told its ID."""
    run = mlflow.active_run()
    found = mlflow.search_logged_models(
        experiment_ids=[run.info.experiment_id] if run else None,
        filter_string=f"tags.`{DIGEST_TAG}` = '{staged.facts.manifest_sha256}'",
        output_format="list",
    )
    return [item.model_id for item in found if item.status == LoggedModelStatus.PENDING]


def _shown(error: Exception) -> str:
    """The text of an error without user and password of the URLs in it."""
    return re.sub(r"://[^/@\s]*@", "://", f"{type(error).__name__}: {error}")


def save_model(
    model: Any,
    path: str | Path,
    *,
    mlflow_model: Model | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    conda_env: Any = None,
    code_paths: Sequence[str | Path] | None = None,
    signature: ModelSignature | bool | None = None,
    input_example: Any = None,
    pip_requirements: Any = None,
    extra_pip_requirements: Any = None,
    metadata: Mapping[str, Any] | None = None,
    extra_files: Sequence[str | Path] | None = None,
    model_config: Any = None,
    pyfunc_predict_fn: str | None = None,
    config: Mapping[str, Any] | None = None,
    provenance: str = "full",
    serialization_format: str | None = None,
    infer_requirements: bool = False,
    prove: bool | str = True,
    bundle: bool | None = None,
    include_optimizer: bool = True,
    max_shard_size: float | None = 5.0,
    export_graph: bool = False,
    validate_serving_input: bool = True,
) -> None:
    """Save a subclassed Keras model as an MLflow model in a local directory.

    Args:
        model: An instance of a ``keras.Model`` subclass that was called at least once.
        path: The directory to write; it must not exist, or be empty.
        mlflow_model: The ``mlflow.models.Model`` to describe it in; ``Model.log`` passes one.
        custom_objects: Classes and functions by the names under which Keras is to find them.
        conda_env: A conda environment, as a dict or the path of a YAML file, in place of the requirements.
        code_paths: Files and folders to ship beside the model and to import from when it is loaded.
        signature: A signature; ``None`` infers it from the example or from how the model was called, ``False``
            stores none.
        input_example: An input of the model, stored for people and for checking the served model.
        pip_requirements: Requirements in place of the pinned defaults: a list or the path of a file.
        extra_pip_requirements: Requirements beside the pinned defaults.
        metadata: A dict for ``MLmodel``.
        extra_files: Files, as paths or URIs, to store under ``extra_files/``.
        model_config: Serving options, a dict or the path of a YAML file: ``allow_nan``, ``batch_size``, ``device``,
            ``engine``, ``from_logits``, ``jit_compile``, ``output`` (``raw``, ``class`` or ``proba``), ``predict_fn``,
            ``threads``.
        pyfunc_predict_fn: The method that ``predict`` calls in place of ``call``, with the same inputs.
        config: The constructor's arguments by name, for a model whose arguments are not known.
        provenance: ``full`` (commit and patch), ``commit`` (no patch) or ``off``.
        serialization_format: How the class definition is brought back: ``cloudpickle``, ``source`` or ``import``;
            ``None`` takes what is proven, the pickle first.
        infer_requirements: Also run the model in a subprocess to find requirements, as MLflow's own flavors do.
        prove: Rebuild what was written in an isolated process, without the user's modules, and compare it with
            ``model`` before anything is logged. The process starts once and stays warm.
        bundle: Whether the model carries the loader that serves it. ``False`` makes this package a requirement
            instead, and is refused where it was not installed from a package index.
        include_optimizer: Store the state of optimizers, so that training goes on exactly; without it, they come
            back as ``compile()`` makes them.
        max_shard_size: Gigabytes (10^9 bytes) above which the variables are stored in several files, for stores that
            limit the size of one; ``None`` always makes one file.
        export_graph: Also store the model as a graph of its backend (a SavedModel; StableHLO on JAX) and compare its
            answers with those of the class; ``model_config={"engine": "graph"}`` serves it without the class.
        validate_serving_input: Read by ``Model.log``; accepted here because it passes it on.

    Raises:
        CaptureError: Something of the model cannot be stored so that it would come back the same.
        ClassDefinitionError: The class definition cannot be shipped.
        GraphError: The model has no graph, and ``export_graph`` asks for one.
        PredictError: The model does not take the input example.
        ProofError: What was written does not come back as ``model`` is.
    """
    request = Request(
        model=model,
        custom_objects=custom_objects,
        conda_env=conda_env,
        code_paths=code_paths,
        signature=signature,
        input_example=input_example,
        pip_requirements=pip_requirements,
        extra_pip_requirements=extra_pip_requirements,
        extra_files=extra_files,
        model_config=model_config,
        pyfunc_predict_fn=pyfunc_predict_fn,
        config=config,
        provenance=provenance,
        serialization_format=serialization_format,
        infer_requirements=infer_requirements,
        prove=prove,
        bundle=bundle,
        include_optimizer=include_optimizer,
        max_shard_size=max_shard_size,
        export_graph=export_graph,
    )
    if _is_later(prove):
        raise KerasSubclassError(
            "prove='background' marks a logged model, and save_model logs none: use True or False."
        )
    target = Path(path).absolute()
    _refuse_occupied(target)
    described = Model() if mlflow_model is None else mlflow_model
    if metadata is not None:
        described.metadata = dict(metadata)
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch(target.parent) as root:
        stage(request, root).complete(root, described)
        try:
            if target.exists():
                target.rmdir()
            root.rename(target)
        except OSError:
            # Another process may have written there in the meantime; then the error says so.
            _refuse_occupied(target)
            raise


def log_model(
    model: Any,
    artifact_path: str | None = None,
    *,
    name: str | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    conda_env: Any = None,
    code_paths: Sequence[str | Path] | None = None,
    registered_model_name: str | None = None,
    signature: ModelSignature | bool | None = None,
    input_example: Any = None,
    await_registration_for: int | None = 300,
    pip_requirements: Any = None,
    extra_pip_requirements: Any = None,
    metadata: Mapping[str, Any] | None = None,
    extra_files: Sequence[str | Path] | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    model_type: str | None = None,
    step: int = 0,
    model_id: str | None = None,
    model_config: Any = None,
    pyfunc_predict_fn: str | None = None,
    config: Mapping[str, Any] | None = None,
    provenance: str = "full",
    serialization_format: str | None = None,
    infer_requirements: bool = False,
    prove: bool | str = True,
    bundle: bool | None = None,
    include_optimizer: bool = True,
    max_shard_size: float | None = 5.0,
    export_graph: bool = False,
    log_run_artifacts: str | bool = False,
    **kwargs: Any,
) -> ModelInfo:
    """Log a subclassed Keras model to MLflow.

    Everything that can be refused is refused before anything is created in the tracking store. The logged model
    carries the commit of the class's source and the manifest's digest as tags, ``model_class``, ``n_params``,
    ``git_commit``, ``git_dirty`` and ``keras_version`` as params, and a short model card as its description.

    Args:
        model: An instance of a ``keras.Model`` subclass that was called at least once.
        artifact_path: Deprecated by MLflow; use ``name``.
        name: Name of the logged model.
        custom_objects: See ``save_model``.
        conda_env: See ``save_model``.
        code_paths: See ``save_model``.
        registered_model_name: Also create a version of this registered model.
        signature: See ``save_model``.
        input_example: See ``save_model``.
        await_registration_for: Seconds to wait for the version; 0 or ``None`` does not wait.
        pip_requirements: See ``save_model``.
        extra_pip_requirements: See ``save_model``.
        metadata: See ``save_model``.
        extra_files: See ``save_model``.
        params: Params of the logged model; yours win over the ones above.
        tags: Tags of the logged model; yours win, but for the digest.
        model_type: Type of the logged model.
        step: Step at which the run's metrics belong to the model.
        model_id: An existing logged model to fill.
        model_config: See ``save_model``.
        pyfunc_predict_fn: See ``save_model``.
        config: See ``save_model``.
        provenance: See ``save_model``.
        serialization_format: See ``save_model``.
        infer_requirements: See ``save_model``.
        prove: See ``save_model``. ``"background"`` logs at once and proves afterwards; the tag
            ``mlflow_keras_subclass.proof`` of the logged model is ``pending``, then ``proven`` or ``failed: …``.
        bundle: See ``save_model``.
        include_optimizer: See ``save_model``.
        max_shard_size: See ``save_model``.
        export_graph: See ``save_model``.
        log_run_artifacts: ``"summary"`` also puts what a person reads (model card, report, configuration, source) into
            the run's own artifacts, as ``<name>_summary``; weights are stored once in any case.
        **kwargs: What else ``mlflow.models.Model.log`` takes: ``resources``, ``auth_policy``, ``prompts``, ``run_id``,
            ``validate_serving_input``.

    Raises:
        CaptureError: Something of the model cannot be stored so that it would come back the same.
        ClassDefinitionError: The class definition cannot be shipped.
        GraphError: The model has no graph, and ``export_graph`` asks for one.
        PredictError: The model does not take the input example.
        ProofError: What was written does not come back as ``model`` is.
    """
    _refuse_unknown(kwargs)
    if log_run_artifacts not in (False, "summary"):
        raise KerasSubclassError(f"log_run_artifacts: expected False or 'summary', got {log_run_artifacts!r}.")
    request = Request(
        model=model,
        custom_objects=custom_objects,
        conda_env=conda_env,
        code_paths=code_paths,
        signature=signature,
        input_example=input_example,
        pip_requirements=pip_requirements,
        extra_pip_requirements=extra_pip_requirements,
        extra_files=extra_files,
        model_config=model_config,
        pyfunc_predict_fn=pyfunc_predict_fn,
        config=config,
        provenance=provenance,
        serialization_format=serialization_format,
        infer_requirements=infer_requirements,
        prove=prove,
        bundle=bundle,
        include_optimizer=include_optimizer,
        max_shard_size=max_shard_size,
        export_graph=export_graph,
    )
    with scratch(None) as root, contextlib.ExitStack() as undo:
        staged = stage(request, root)
        later = proof.Later(root, staged.facts, forced=serialization_format is not None) if _is_later(prove) else None
        if later is not None:
            undo.callback(later.discard)
        if model_config is not None:
            kwargs["model_config"] = str(model_config) if isinstance(model_config, Path) else model_config
        all_tags, all_params = _tags(staged, tags, prove), _params(staged, params)
        # Model.log loads the directory to try an example, and a registry of its own may want all of it.
        is_tried = staged.example is not None and kwargs.get("validate_serving_input", True)
        is_registered = registered_model_name is not None and mlflow.get_registry_uri() != mlflow.get_tracking_uri()
        prepared = _Prepared(
            staged,
            root.parent / "summary" if log_run_artifacts else None,
            is_only_uploaded=not is_tried and not is_registered,
        )
        try:
            info: ModelInfo = Model.log(
                artifact_path=artifact_path,
                name=name,
                flavor=prepared,
                flavor_name=FLAVOR_NAME,
                registered_model_name=registered_model_name,
                await_registration_for=await_registration_for,
                metadata=None if metadata is None else dict(metadata),
                params=all_params,
                tags=all_tags,
                model_type=model_type,
                step=step,
                model_id=model_id,
                serialization_format=staged.facts.serialization_format,
                **kwargs,
            )
        except Exception as error:
            _keep(staged, prepared, error, filled=model_id is not None)
            raise
        undo.pop_all()
        if log_run_artifacts:
            _mirror(info, root.parent / "summary", name or artifact_path or "model")
    _describe(info, staged, all_tags, all_params, filled=model_id is not None)
    if later is not None:
        later.start(lambda result: _set_proof(info.model_id, result))
    _announce(info)
    return info


def load_model(
    model_uri: str | Path,
    dst_path: str | Path | None = None,
    *,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    device: str | None = None,
    trust_policy: TrustPolicy | None = None,
    verify: bool = False,
    variables: str | Sequence[str] | None = None,
) -> Any:
    """Load a model back as what it was: an instance of its own class, with all of its state.

    Args:
        model_uri: A path, ``file:``, ``runs:/``, ``models:/m-…``, ``models:/name/version``, ``models:/name@alias``
            or any other URI that MLflow can download from.
        dst_path: Where to download to; a temporary directory if ``None``, from which the weights are removed when
            the model is loaded.
        custom_objects: Classes and functions by name that win over the stored ones. With the model's own class among
            them, nothing that is stored is unpickled or run.
        compile: Whether to compile the model as it was compiled, and to restore its optimizer.
        device: ``cpu``, ``gpu`` or ``gpu:1``; the backend chooses if ``None``.
        trust_policy: What the model may do; the policy of the environment if ``None``.
        verify: Ask the model what it was asked when it was logged, and compare: bit for bit on the same backend,
            processor and kind of device, else floats within a relative 1e-3.
        variables: For transfer learning: one or more shell patterns of attribute paths as in ``weights.csv``, such as
            ``"encoder/*"``. Only these variables get their stored values; the others, and the optimizer, start as the
            constructor makes them.

    Raises:
        KerasSubclassError: A pattern names no variable, or ``verify`` is asked of a part.
        FormatError: There is no model of this flavor at the URI.
        IntegrityError: A file was changed since the model was logged.
        UntrustedCodeError: The policy or the environment forbids what loading needs.
        RebuildError: What came back is not the model that was logged.
        DeviceError: The device is not present.
    """
    if verify and variables is not None:
        raise KerasSubclassError("verify: a model of which only some variables are restored answers otherwise.")
    patterns = [variables] if isinstance(variables, str) else variables
    with downloaded(model_uri, dst_path) as root:
        verified = open_verified(root, trust_policy or TrustPolicy.from_environment())
        if verified.policy.level != "never":
            _import_from(root, flavor_configuration(root).get("code"))
        prefer_backend(verified.manifest)
        model = model_dir.rebuild(
            verified, custom_objects=custom_objects, compile=compile, device=device, variables=patterns
        )
        if verify:
            model_dir.verify_predictions(verified, model)
    return model


def get_default_pip_requirements() -> list[str]:
    """The pinned requirements that every model of this flavor has, for the backend of this process."""
    return environment.requirements(backend=keras_api.for_runtime().backend)


def get_default_conda_env() -> Any:
    """The conda environment with ``get_default_pip_requirements``."""
    return environment.conda_environment(get_default_pip_requirements())


def _refuse_occupied(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise MlflowException(f"Path '{target}' already exists and is not empty", error_code=RESOURCE_ALREADY_EXISTS)


def _refuse_unknown(kwargs: Mapping[str, Any]) -> None:
    # Model.log would pass what it does not know on to save_model, after it had created the logged model.
    known = {*inspect.signature(Model.log).parameters, "validate_serving_input"} - {"flavor", "kwargs"}
    if unknown := sorted(kwargs.keys() - known):
        raise TypeError(f"log_model() got unexpected keyword arguments: {', '.join(unknown)}")


def _is_later(prove: bool | str) -> bool:
    return prove == "background"


def _set_proof(model_id: str, result: str) -> None:
    # Of an existing experiment and in another thread: a failure here must reach a person, not an exception hook.
    try:
        mlflow.MlflowClient().set_logged_model_tags(model_id, {PROOF_TAG: result})
    except MlflowException as error:
        _logger.warning("The proof of %s ended (%s), but its tag could not be set: %s", model_id, result, error)
    if result != "proven":
        _logger.error("The logged model %s does not come back as it was: %s", model_id, result)


def _tags(staged: Staged, given: Mapping[str, Any] | None, prove: bool | str) -> dict[str, Any]:
    return {
        **provenances.tags(staged.facts.git),
        **(given or {}),
        DIGEST_TAG: staged.facts.manifest_sha256,
        PROOF_TAG: "pending" if _is_later(prove) else "proven" if prove else "not tried",
    }


def _params(staged: Staged, given: Mapping[str, Any] | None) -> dict[str, Any]:
    facts = staged.facts
    ours = {
        "model_class": facts.model_class,
        "n_params": facts.parameter_count,
        "git_commit": facts.git.commit,
        "git_dirty": None if facts.git.dirty is None else str(facts.git.dirty).lower(),
        "keras_version": facts.manifest.versions.keras,
    }
    return {**{key: value for key, value in ours.items() if value is not None}, **(given or {})}


def _describe(
    info: ModelInfo, staged: Staged, tags: Mapping[str, Any], params: Mapping[str, Any], *, filled: bool
) -> None:
    """What Model.log leaves undone: the description, the run's commit, and tags of a model that existed before."""
    client = mlflow.MlflowClient()
    note = {_NOTE_TAG: report.note(staged.card(staged.root, info.model_id))}
    try:
        if not filled:
            client.set_logged_model_tags(info.model_id, note if _NOTE_TAG not in tags else {})
        else:
            _complete_existing(client, info.model_id, {**note, **tags}, params)
        if info.run_id:
            _tag_run(client, info.run_id, provenances.tags(staged.facts.git))
    except MlflowException as error:
        _logger.warning("The model was logged, but its description or tags could not be set: %s", error)


def _announce(info: ModelInfo) -> None:
    """One line on standard error with the model's URI and where to look at it, unless MLflow's own are off."""
    if os.environ.get(_QUIET_VARIABLE, "false").lower() in ("true", "1"):
        return
    store = mlflow.get_tracking_uri()
    where = f"mlflow ui --backend-store-uri {store}"
    if store.startswith(("http://", "https://")):
        experiment = mlflow.get_logged_model(info.model_id).experiment_id
        where = f"{store.rstrip('/')}/#/experiments/{experiment}/models/{info.model_id}"
    print(f"Logged {info.model_uri}: {where}", file=sys.stderr)


def _mirror(info: ModelInfo, folder: Path, name: str) -> None:
    """Put what a person reads into the run; a run-level file hides the logged model on the run's page."""
    if info.run_id is None:
        _logger.warning("log_run_artifacts: the model was logged outside a run, so there is none to put a summary in.")
        return
    try:
        mlflow.MlflowClient().log_artifacts(info.run_id, str(folder), f"{name}_summary")
    except (MlflowException, OSError) as error:
        _logger.warning("The model was logged, but its summary could not be put into the run: %s", error)


def _complete_existing(
    client: mlflow.MlflowClient, model_id: str, tags: Mapping[str, Any], params: Mapping[str, Any]
) -> None:
    model = client.get_logged_model(model_id)
    missing = {
        key: str(value) for key, value in tags.items() if key not in model.tags or key in (DIGEST_TAG, PROOF_TAG)
    }
    client.set_logged_model_tags(model_id, missing)
    if new := {key: str(value) for key, value in params.items() if key not in model.params}:
        client.log_model_params(model_id, new)


def _tag_run(client: mlflow.MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set the commit on the run where it is missing; tags of two repositories are never mixed."""
    present = client.get_run(run_id).data.tags
    if present.get(_COMMIT_TAG, tags.get(_COMMIT_TAG)) != tags.get(_COMMIT_TAG):
        return
    for key, value in tags.items():
        if key not in present:
            client.set_tag(run_id, key, value)


def _import_from(root: Path, code: str | None) -> None:
    # As MLflow's own flavors, and for good: modules of the logged code may be imported at any later time.
    if code and (folder := str(root / code)) not in sys.path:
        sys.path.insert(0, folder)
