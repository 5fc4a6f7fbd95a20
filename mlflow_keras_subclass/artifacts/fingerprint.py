"""``fingerprint.json``: what the model answered when it was logged, and on what, so that a load can ask again.

One probe (the input example, or arrays drawn from the input spec with a fixed seed) is given to each entry point:
``call`` is the model as it is, ``served`` the compiled call that the python_function makes. The same record serves the
proof at log time and ``load_model(verify=True)``. Numbers lie in ``fingerprint.safetensors``, text in the JSON.

On the same backend, processor and kind of device the answers are equal bit for bit. Elsewhere sums are taken in
another order, and floats are compared with the tolerance below. Imports errors, files, manifest, keras_api, specs,
tensors and trust.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_keras_subclass.errors import FormatError, RebuildError
from mlflow_keras_subclass.files import ArtifactWriter
from mlflow_keras_subclass.keras_api import KerasApi
from mlflow_keras_subclass.manifest import FINGERPRINT_ARRAYS_FILE, FINGERPRINT_FILE
from mlflow_keras_subclass.specs import ArraySpec, InputSpec
from mlflow_keras_subclass.tensors import array_sha256, array_source, opened_tensors, write_tensors
from mlflow_keras_subclass.trust import VerifiedModel

__all__ = ["drawn", "verify", "verify_graph", "write"]

# Relative and absolute, for floats on another backend, processor or kind of device: float32 over many layers.
_TOLERANCE = {"rtol": 1e-3, "atol": 1e-5}
_MAX_BYTES = 16 * 2**20
_SEED = 20261124

Array = np.ndarray[Any, Any]
Arrays = Mapping[str | None, Array]
Guard = Callable[[], AbstractContextManager[None]]


def write(
    writer: ArtifactWriter, api: KerasApi, model: Any, spec: InputSpec | None, example: Arrays | None, unchanged: Guard
) -> None:
    """Ask ``model`` and write down what it answers.

    Args:
        writer: Of the artifact.
        api: The seam to Keras.
        model: The live model.
        spec: How it is called; without one nothing is asked.
        example: An input by name, used in place of a drawn one.
        unchanged: A context that puts the model's state back as it was.
    """
    record: dict[str, Any] = {**_place(api), "probe": "", "inputs": [], "entry_points": {}}
    if api.is_partitioned():
        record["device"] += ", partitioned"  # it comes back on one device
    arrays: dict[str, Array] = {}
    if spec is not None:
        probe = _small(dict(example) if example is not None else drawn(spec))
        record["probe"] = "input_example" if example is not None else f"seeded:{_SEED}"
        record["inputs"] = [_stored(array, f"inputs/{number}", arrays) for number, array in enumerate(probe.values())]
        for name, ask in _entry_points(api, model, spec).items():
            record["entry_points"][name] = _answers(ask, probe, unchanged, name, arrays)
    writer.write_json(FINGERPRINT_FILE, record)
    if arrays:
        write_tensors(writer, FINGERPRINT_ARRAYS_FILE, {name: array_source(array) for name, array in arrays.items()})


def verify(
    verified: VerifiedModel, api: KerasApi, model: Any, spec: InputSpec | None, unchanged: Guard
) -> dict[str, str]:
    """Ask a rebuilt model again; for every entry point what came of it: ``exact``, ``close``, or why it was not asked.

    Arguments are as in ``write``.

    Raises:
        RebuildError: An answer differs from the recorded one.
    """
    record = verified.read_json(FINGERPRINT_FILE)
    if spec is None:
        return {}
    stored = _reader(verified)
    exact = all(record.get(key) == value for key, value in _place(api).items())
    probe = {name: stored(item) for name, item in zip(spec.leaves(), record["inputs"], strict=True)}
    results = {}
    for name, ask in _entry_points(api, model, spec).items():
        known = record["entry_points"][name]
        if "omitted" in known:
            results[name] = known["omitted"]
        else:
            with unchanged():
                got = ask(probe)
            _compare(name, [stored(item) for item in known["outputs"]], got, exact=exact)
            results[name] = "exact" if exact else "close"
    return results


def verify_graph(
    verified: VerifiedModel,
    api: KerasApi,
    spec: InputSpec,
    ask: Callable[[Arrays], list[Array]],
    places: Sequence[int],
) -> str:
    """Ask a graph what the served class was asked: ``exact``, ``close``, or why the answers could not be compared.

    Args:
        verified: The artifact.
        api: The seam to Keras.
        spec: How the model is called.
        ask: Calls the graph.
        places: For each of its answers the place of the recorded one.

    Raises:
        RebuildError: An answer differs from the recorded one.
    """
    record = verified.read_json(FINGERPRINT_FILE)
    stored = _reader(verified)
    got = ask({name: stored(item) for name, item in zip(spec.leaves(), record["inputs"], strict=True)})
    known = record["entry_points"]["served"]
    if "omitted" in known:
        return str(known["omitted"])
    exact = all(record.get(key) == value for key, value in _place(api).items())
    _compare("graph", [stored(known["outputs"][place]) for place in places], got, exact=exact)
    return "exact" if exact else "close"


def _entry_points(api: KerasApi, model: Any, spec: InputSpec) -> dict[str, Callable[[Arrays], list[Array]]]:
    def call(arrays: Arrays) -> list[Array]:
        args, kwargs = spec.bind({name: api.tensor(array) for name, array in arrays.items()})
        return [_text(api.value(item)) for item in api.flat(model(*args, **kwargs))]

    # Once: two functions traced under one global seed draw the same numbers, and a random answer would look fixed.
    compiled = functools.cache(lambda: api.compiled(model, spec, device=None, jit_compile=False))

    def served(arrays: Arrays) -> list[Array]:
        return [np.asarray(item) for item in api.flat(compiled()(*spec.bind(arrays)))]

    return {"call": call, "served": served}


def _text(array: Array) -> Array:
    """Strings as such, where TensorFlow has bytes."""
    if array.dtype.kind != "O":
        return array
    items = [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in array.ravel()]
    found: Array = np.array(items, object).reshape(array.shape)
    return found


def _answers(
    ask: Callable[[Arrays], list[Array]], probe: Arrays, unchanged: Guard, name: str, arrays: dict[str, Array]
) -> dict[str, Any]:
    answers = []
    for _ in range(2):
        try:
            with unchanged():
                answers.append(ask(probe))
        except Exception as error:
            # The live model itself does not take this call: there is nothing to compare with.
            return {"omitted": f"the model's own call raised {type(error).__name__}"}
    first, second = answers
    if len(first) != len(second) or any(_digest(a) != _digest(b) for a, b in zip(first, second, strict=True)):
        return {"omitted": "the model draws from a random generator that is not part of it: no two calls answer alike"}
    if sum(array.nbytes for array in first) > _MAX_BYTES:
        return {"omitted": f"the answer is larger than {_MAX_BYTES} bytes"}
    return {"outputs": [_stored(array, f"{name}/{number}", arrays) for number, array in enumerate(first)]}


def _compare(name: str, expected: Sequence[Array], got: Sequence[Array], *, exact: bool) -> None:
    if len(expected) != len(got):
        raise RebuildError(f"{name}: the rebuilt model returns {len(got)} outputs, the logged one {len(expected)}.")
    for number, (left, right) in enumerate(zip(expected, got, strict=True)):
        right = right.astype(str).astype(object) if right.dtype.kind in "OU" else right
        if left.shape != right.shape or left.dtype != right.dtype:
            raise RebuildError(
                f"{name}: output {number} is {right.dtype} {right.shape}, of the logged model "
                f"{left.dtype} {left.shape}."
            )
        if _digest(left) != _digest(right) and (exact or not _close(left, right)):
            raise RebuildError(
                f"{name}: output {number} differs {_by_how_much(left, right)} on the same input. Something that the "
                "model computes with is not part of it: a global that changed, a random value drawn outside the "
                "constructor, state in a C extension. Make it an attribute or an argument of the model."
            )


def _close(left: Array, right: Array) -> bool:
    kinds = (np.floating, np.complexfloating)
    is_float = left.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2") or np.issubdtype(left.dtype, kinds[0])
    if not (is_float or np.issubdtype(left.dtype, kinds[1])):
        return False
    return bool(np.allclose(left.astype(np.complex128), right.astype(np.complex128), equal_nan=True, **_TOLERANCE))


def _by_how_much(left: Array, right: Array) -> str:
    if left.dtype.kind not in "fiuV":
        return "in its values"
    return f"by up to {np.nanmax(np.abs(left.astype(np.float64) - right.astype(np.float64))):.3g}"


def _place(api: KerasApi) -> dict[str, str]:
    """What must be the same for bits to be the same."""
    kinds = {name.partition(":")[0] for name in api.devices()}
    return {
        "backend": f"{api.backend} {api.backend_version}",
        "device": "gpu" if "gpu" in kinds else "cpu",
        "processor": _processor(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def drawn(spec: InputSpec) -> dict[str | None, Array]:
    """Inputs of this spec by name, always the same ones."""
    rng = np.random.default_rng(_SEED)
    return {name: _drawn_array(leaf, rng) for name, leaf in spec.leaves().items()}


def _drawn_array(leaf: ArraySpec, rng: np.random.Generator) -> Array:
    shape = leaf.example_shape(2)
    if leaf.dtype == "string":
        return np.full(shape, "probe", dtype=object)
    if leaf.dtype == "bool" or "int" in leaf.dtype:
        # Small: a token must be in the vocabulary, a class among the classes.
        return rng.integers(0, 2, shape).astype(leaf.dtype)
    return rng.normal(size=shape).astype(leaf.dtype)


def _small(probe: dict[str | None, Array]) -> dict[str | None, Array]:
    """The probe, or its first two rows if it is large."""
    if sum(array.nbytes for array in probe.values()) <= _MAX_BYTES:
        return probe
    return {name: array[:2] if array.ndim else array for name, array in probe.items()}


def _stored(array: Array, name: str, arrays: dict[str, Array]) -> dict[str, Any]:
    """The JSON for one array; numbers are added to ``arrays``."""
    if array.dtype.kind in "OU":
        return {"text": [str(item) for item in array.ravel()], "shape": list(array.shape)}
    arrays[name] = array
    return {"array": name, "sha256": array_sha256(array)}


def _reader(verified: VerifiedModel) -> Callable[[Any], Array]:
    def read(item: Any) -> Array:
        match item:
            case {"text": list(text), "shape": list(shape)}:
                return np.array(text, dtype=object).reshape(shape)
            case {"array": str(name), "sha256": str(sha256)}:
                with opened_tensors(verified, FINGERPRINT_ARRAYS_FILE) as tensors:
                    return tensors.read(name, sha256=sha256)
        raise FormatError(f"{FINGERPRINT_FILE}: expected an array, got {item!r:.200}.")

    return read


def _digest(array: Array) -> str:
    return array_sha256(array.astype(str) if array.dtype.kind in "OU" else array)
