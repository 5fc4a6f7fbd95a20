"""Logs or loads the zoo in a process of its own, and writes a JSON object with one verdict for each case.

``python -I zoo_runner.py log FOLDER FORMAT [CASE …]`` writes one model directory for each case, the reference outputs
of the live model inside, and ``log.json`` beside them; ``PROVE=0`` leaves out the proof. ``python -I zoo_runner.py load
RESULTS FOLDER …`` runs where the zoo cannot be imported, and writes ``RESULTS/NAME.json`` for each folder of that name
as soon as it is done.
"""

import importlib
import json
import os
import pathlib
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

warnings.simplefilter("ignore")

import numpy as np  # noqa: E402

import mlflow_keras_subclass as mks  # noqa: E402 - warnings are off first
from mlflow_keras_subclass import keras_api, recorder  # noqa: E402
from mlflow_keras_subclass.outputs import flattened  # noqa: E402

DISTRIBUTION = "tf_keras" if os.environ.get("TF_USE_LEGACY_KERAS") == "1" else "keras"


@dataclass(frozen=True)
class Loggable:
    """What ``log_case`` needs of a case."""

    build: Callable[[], tuple[Any, tuple[Any, ...]]]
    stateful: bool = False
    random: bool = False


def as_called(api, inputs):
    return api.map_structure(lambda item: text(item) if str(getattr(item, "dtype", "")) == "object" else item, inputs)


def text(array):
    import tensorflow as tf

    return tf.constant(array.tolist())


def flat(api, outputs):
    return [api.value(item) for item in api.flat(outputs)]


def listed(outputs):
    if isinstance(outputs, dict):
        return list(outputs.values())
    return outputs if isinstance(outputs, list) else [outputs]


def differences(expected, got):
    if len(expected) != len(got):
        return f"{len(expected)} outputs became {len(got)}"
    pairs = enumerate(zip(expected, got, strict=True))
    wrong = [(n, a, b) for n, (a, b) in pairs if a.dtype != b.dtype or not np.array_equal(a, b)]
    if not wrong:
        return ""
    text = f"outputs {', '.join(str(n) for n, _, _ in wrong)} differ"
    comparable = all(a.dtype == b.dtype and a.shape == b.shape and a.dtype.kind in "fV" for _, a, b in wrong)
    if not comparable:
        return text
    most = max(float(np.max(np.abs(a.astype("float64") - b.astype("float64")))) for _, a, b in wrong)
    return f"{text} by at most {most:.1e}"


def integers_alike(arrays):
    return [array.astype("int64") if array.dtype.kind in "iu" else array for array in arrays]


class References(pickle.Unpickler):
    """Reads what another major version of numpy wrote, which calls one of its modules otherwise."""

    def find_class(self, module, name):
        if not hasattr(np, "_core"):
            module = module.replace("numpy._core", "numpy.core")
        return super().find_class(module, name)


def log(folder, serialization_format, *only):
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    from zoo import CASES, modules

    keras = importlib.import_module(DISTRIBUTION)
    for name, _ in modules(keras.backend.backend() if DISTRIBUTION == "keras" else DISTRIBUTION):
        importlib.import_module(f"zoo.{name}")  # registers its cases
    verdicts = {}
    for name, case in CASES.items():
        if only and name not in only:
            continue
        keras.utils.set_random_seed(7)
        try:
            verdicts[name] = log_case(folder / name, case, serialization_format)
        except Exception as error:
            refused = case.refused is not None and case.refused in str(error)
            verdicts[name] = "refused" if refused else f"log: {traceback.format_exc()}"
    return verdicts


def log_case(path, case, serialization_format):
    model, inputs = case.build()
    prove = os.environ.get("PROVE") != "0"
    mks.save_model(model, path, serialization_format=serialization_format, prove=prove)
    api = keras_api.for_model(model)
    # Before any call, which may change a seed or a recurrent state.
    state = [(api.name_of(variable), api.value(variable)) for variable in model.variables if api.is_variable(variable)]
    spec = recorder.observed_input_spec(model)
    served = []
    if inputs and not case.stateful:
        arrays = spec.flatten(inputs, {})
        call = api.compiled(model, spec, device=None, jit_compile=False)
        served = [arrays, listed(flattened(call(*spec.bind(arrays))))]
    native = flat(api, model(*as_called(api, inputs))) if inputs and not case.random else []
    trainable = len(model.trainable_variables)
    (path / "reference.pickle").write_bytes(pickle.dumps((inputs, native, served, state, trainable, api.backend)))
    return "logged"


def load(folder):
    for name in ("zoo", "zoo.arguments"):
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{name} must not be importable here")
    return {path.name: load_case(path) for path in sorted(folder.iterdir()) if (path / "reference.pickle").exists()}


def load_case(path):
    import mlflow

    with (path / "reference.pickle").open("rb") as file:
        inputs, native, served, state, trainable, backend = References(file).load()
    try:
        model = mks.load_model(path)
        api = keras_api.for_model(model)
        values = [api.value(variable) for variable in model.variables if api.is_variable(variable)]
        stored = [value for _, value in state]
        if api.backend != backend:
            # Seeds and counters are integers of another width on each backend.
            stored, values = integers_alike(stored), integers_alike(values)
        problem = differences(stored, values)
        if not problem and len(model.trainable_variables) != trainable:
            problem = f"{trainable} trainable variables became {len(model.trainable_variables)}"
        if not problem and native:
            problem = differences(native, flat(api, model(*as_called(api, inputs))))
        if not problem and served:
            arrays, expected = served
            data = arrays[None] if set(arrays) == {None} else arrays
            predicted = mlflow.pyfunc.load_model(str(path)).predict(data)
            problem = differences(expected, listed(predicted))
            problem = f"pyfunc: {problem}" if problem else ""
    except Exception:
        return f"load: {traceback.format_exc()}"
    return problem or "exact"


if __name__ == "__main__":
    mode, target, *rest = sys.argv[1:]
    if mode == "log":
        pathlib.Path(target, "log.json").write_text(json.dumps(log(pathlib.Path(target), *rest)))
    else:
        for folder in map(pathlib.Path, rest):
            pathlib.Path(target, f"{folder.name}.json").write_text(json.dumps(load(folder)))
