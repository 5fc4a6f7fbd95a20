"""MLflow flavor for subclassed Keras models: ``import mlflow_keras_subclass as mks``.

The module is the flavor: ``save_model``, ``log_model``, ``load_model`` and ``_load_pyfunc`` are where MLflow and
its tools look for them. Importing it imports neither Keras nor TensorFlow; it arms the recorder, which notes the
arguments of every model built from then on.

Architecture
============

Each row imports only rows below it; ``tests/fast/test_architecture.py`` reads this table and holds that::

    cli              the command line
    catalog          the logged models of a tracking store
    checking         check() before training, export() to Keras' own formats
    autolog          fit logs itself
    callbacks        ModelCheckpoint; imports Keras, and is imported when it is first asked for
    checkpoints      load_checkpoint, and the search for it
    flavor           save_model, log_model, load_model: MLflow's verbs
    staging          a whole model directory, before MLflow knows of it
    local_store      large files go into a store on this machine without a copy
    rehearsal        serves the live model once as its options say, before anything is logged
    reproduce        the recorded source as a working tree
    pyfunc           python_function: coercion, compiled predict, chunks
    proof            rebuilds what was just written in an isolated process and compares
    proof_worker     that process
    downloads        the directory of a logged model, for as long as it is needed
    mlflow_api       the names of MLflow that are not public
    pages            a comparison of two models as a web page
    differences      what differs between two models
    inspection       what a model directory holds, without running any of it
    model_dir        write(model, …) and rebuild(verified, …): the two flows, in order
    artifacts        one part each, none imports another: class_definition (the class by value, and its source),
                     config (constructor and compile arguments, specs), structure (layers, attributes), state
                     (variables, vocabularies, optimizers), fingerprint (what it answered), graph (served without the
                     class), provenance (git), signature, environment, loader (the copy that serves), report (the
                     card), page (report.html)
    diagram          call graphs and histograms as SVG
    call_graph       which layer calls which on whose output
    values           Python values as type-tagged JSON
    model_tree       every object of a model by its attribute path
    recorder         arguments of constructors, compile and calls, noted as the user's code runs
    keras_api        the seam: all that is asked of Keras and its backends
    trust            verify() -> VerifiedModel: nothing is run before its bytes were checked
    signing          signatures of the manifest, by the OpenSSF library
    tensors          arrays in the safetensors layout
    coercion         from what a caller has to what the model takes
    outputs          from what the model returns to what the caller gets
    markup           web pages that need nothing but themselves
    source_lines     where in the user's source an attribute is set
    pickles          what a pickle would import, without unpickling it
    serving_options  the keys of model_config
    serving_metrics  counts for Prometheus
    serving_process  what a model does to the process that serves it
    patches          a patch without what must not be kept
    credentials      finds secrets in text
    repository       questions to git that end in time and run nothing
    progress         a bar for long writes
    manifest         the format: file names, versions, strict JSON
    specs            nested structures of shape and dtype
    registry_lock    one thread at a time changes what Keras and Python know by name
    weak_notes       notes about objects, by identity, as long as they live
    files            writing with digests
    lookup           what an object holds and is called, without running its class
    errors           every error raised on purpose
    version          the version

Saving walks the live model by attribute path (``model_tree``), writes each part below ``keras_subclass/`` and the
manifest last. Loading checks every file against the manifest, brings the class back, constructs the model from
the recorded arguments, builds it layer by layer from recorded build arguments, and restores every variable by path:
none missing, none left over.
"""

from typing import TYPE_CHECKING, Any

from mlflow_keras_subclass import recorder
from mlflow_keras_subclass.autolog import autolog
from mlflow_keras_subclass.checking import CheckResult, check, export
from mlflow_keras_subclass.checkpoints import find_checkpoints, load_checkpoint
from mlflow_keras_subclass.errors import (
    CaptureError,
    CheckpointError,
    ClassDefinitionError,
    DeviceError,
    Finding,
    FormatError,
    GraphError,
    IntegrityError,
    KerasSubclassError,
    ModelFailure,
    PredictError,
    ProofError,
    ProvenanceError,
    RebuildError,
    UntrustedCodeError,
)
from mlflow_keras_subclass.flavor import (
    FLAVOR_NAME,
    get_default_conda_env,
    get_default_pip_requirements,
    load_model,
    log_model,
    save_model,
)
from mlflow_keras_subclass.pyfunc import _load_pyfunc as _load_pyfunc
from mlflow_keras_subclass.reproduce import Reproduction, reproduce
from mlflow_keras_subclass.trust import TrustPolicy, sign
from mlflow_keras_subclass.version import __version__

if TYPE_CHECKING:
    from mlflow_keras_subclass.callbacks import ModelCheckpoint as ModelCheckpoint

__all__ = [
    "FLAVOR_NAME",
    "CaptureError",
    "CheckResult",
    "CheckpointError",
    "ClassDefinitionError",
    "DeviceError",
    "Finding",
    "FormatError",
    "GraphError",
    "IntegrityError",
    "KerasSubclassError",
    "ModelCheckpoint",
    "ModelFailure",
    "PredictError",
    "ProofError",
    "ProvenanceError",
    "RebuildError",
    "Reproduction",
    "TrustPolicy",
    "UntrustedCodeError",
    "__version__",
    "autolog",
    "check",
    "export",
    "find_checkpoints",
    "get_default_conda_env",
    "get_default_pip_requirements",
    "load_checkpoint",
    "load_model",
    "log_model",
    "reproduce",
    "save_model",
    "sign",
]

recorder.arm()


def __getattr__(name: str) -> Any:
    """``ModelCheckpoint`` subclasses a class of Keras, so it is imported when it is first asked for."""
    if name != "ModelCheckpoint":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlflow_keras_subclass.callbacks import ModelCheckpoint

    return ModelCheckpoint
