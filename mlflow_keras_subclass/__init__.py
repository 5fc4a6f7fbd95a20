"""MLflow flavor for subclassed Keras models: ``import mlflow_keras_subclass as mks``.

The module is the flavor: ``save_model``, ``log_model``, ``load_model`` and ``_load_pyfunc`` are where MLflow and
its tools look for them. Importing it imports neither Keras nor TensorFlow; it arms the recorder, which notes the
arguments of every model built from then on.

Architecture
============

Each row imports only rows below it (``tests/fast/test_architecture.py`` holds that)::

    flavor           save_model, log_model, load_model: MLflow's verbs
    pyfunc           python_function: coercion, compiled predict, chunks
    model_dir        write(model, …) and rebuild(verified, …): the two flows, in order
    artifacts/       one part each, none imports another:
                     class_definition  the class by value, and its source
                     config            constructor arguments, specs, compile configuration
                     structure         layers, build arguments, attributes
                     state             variables, vocabularies, optimizers
                     provenance        git commit, patch, source compared with the commit
                     signature, environment, report
    trust            verify() -> VerifiedModel: nothing is run before its bytes were checked
    tensors, coercion, model_tree, values/, recorder
    keras_api/       the seam: all that is asked of Keras and its backends
    manifest, specs, files, errors

Saving walks the live model by attribute path (``model_tree``), writes each part below ``keras_subclass/`` and the
manifest last. Loading checks every file against the manifest, brings the class back, constructs the model from
the recorded arguments, builds it layer by layer from recorded build arguments, and restores every variable by path:
none missing, none left over.
"""

from mlflow_keras_subclass import recorder
from mlflow_keras_subclass.errors import (
    CaptureError,
    ClassDefinitionError,
    DeviceError,
    FormatError,
    IntegrityError,
    KerasSubclassError,
    PredictError,
    ProofError,
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
from mlflow_keras_subclass.trust import TrustPolicy
from mlflow_keras_subclass.version import __version__

__all__ = [
    "FLAVOR_NAME",
    "CaptureError",
    "ClassDefinitionError",
    "DeviceError",
    "FormatError",
    "IntegrityError",
    "KerasSubclassError",
    "PredictError",
    "ProofError",
    "RebuildError",
    "TrustPolicy",
    "UntrustedCodeError",
    "__version__",
    "get_default_conda_env",
    "get_default_pip_requirements",
    "load_model",
    "log_model",
    "save_model",
]

recorder.arm()
