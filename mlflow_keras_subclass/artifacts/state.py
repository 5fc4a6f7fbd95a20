"""All state of a model: every variable, the vocabularies, the optimizers; written streaming, restored by path.

Variables are matched by attribute path, shape and dtype, none missing and none left over: Keras' own
``load_weights`` raises nothing on a model with unbuilt layers, and leaves random weights in it. Imports errors,
files, manifest, model_tree, keras_api, tensors and trust.
"""

from __future__ import annotations

import csv
import fnmatch
import functools
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlflow_keras_subclass.errors import CaptureError, FormatError, KerasSubclassError, RebuildError
from mlflow_keras_subclass.files import ArtifactWriter
from mlflow_keras_subclass.keras_api import KerasApi
from mlflow_keras_subclass.manifest import (
    OPTIMIZER_FILE,
    STATE_FILE,
    STRUCTURE_FILE,
    VOCABULARIES_DIR,
    WEIGHTS_TABLE_FILE,
)
from mlflow_keras_subclass.model_tree import ModelTree, is_global
from mlflow_keras_subclass.tensors import Tensors, TensorSource, array_sha256, opened_tensors, write_tensors
from mlflow_keras_subclass.trust import VerifiedModel

__all__ = [
    "VariableRecord",
    "compare_values",
    "matching_paths",
    "memory_orders",
    "parameter_counts",
    "read_values",
    "read_variables",
    "restore_memory_orders",
    "restore_optimizers",
    "restore_variables",
    "restore_vocabularies",
    "write_optimizers",
    "write_variables",
    "write_vocabularies",
]

_WEIGHT_KINDS = ("layer", "untracked")
_BLOCK = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableRecord:
    """One row of ``weights.csv``; ``kind`` is what owns the variable: layer, seed, metric or untracked."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool
    kind: str
    sha256: str

    @property
    def parameters(self) -> int:
        """Number of scalars."""
        return math.prod(self.shape)


_COLUMNS = ("path", "shape", "dtype", "parameters", "trainable", "kind", "sha256")


def write_variables(
    api: KerasApi, tree: ModelTree, writer: ArtifactWriter, shard_bytes: int | None
) -> tuple[tuple[VariableRecord, ...], tuple[str, ...]]:
    """Write ``state.safetensors``, in several files above ``shard_bytes``, and ``weights.csv``.

    Returns:
        The rows of the table, and the paths of the weights that hold NaN or an infinity.
    """
    not_finite: list[str] = []

    def noted(path: str, value: Callable[[], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        array = value()
        if tree.kinds[path] in _WEIGHT_KINDS and not _is_finite(array):
            not_finite.append(path)
        return array

    sources = {}
    for path, variable in tree.variables.items():
        source = _source(api, variable)
        sources[path] = replace(source, value=functools.partial(noted, path, source.value))
    digests = write_tensors(writer, STATE_FILE, sources, shard_bytes=shard_bytes)
    records = tuple(
        VariableRecord(
            path=path,
            shape=source.shape,
            dtype=source.dtype,
            trainable=api.is_trainable(tree.variables[path]),
            kind=tree.kinds[path],
            sha256=digests[path],
        )
        for path, source in sources.items()
    )
    writer.write_text(WEIGHTS_TABLE_FILE, _table(records))
    return records, tuple(not_finite)


def _source(api: KerasApi, variable: Any) -> TensorSource:
    shape, dtype = api.shape_and_dtype(variable)
    return TensorSource(shape=shape, dtype=dtype, value=functools.partial(api.snapshot, variable))


def _is_finite(value: np.ndarray[Any, Any]) -> bool:
    if value.dtype.kind in "biu":
        return True
    wide = np.complex64 if value.dtype.kind == "c" else np.promote_types(value.dtype, np.float32)
    with np.errstate(all="ignore"):
        # A sum takes no memory and is not finite where a term is not; it may also have overflowed.
        if np.isfinite(value.sum(dtype=wide)):
            return True
    flat = value.reshape(-1)
    blocks = (flat[start : start + _BLOCK].astype(wide) for start in range(0, flat.size, _BLOCK))
    return all(np.isfinite(block).all() for block in blocks)


def _table(records: Iterable[VariableRecord]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    for item in records:
        shape = "x".join(map(str, item.shape))
        trainable = "yes" if item.trainable else "no"
        rows.writerow([item.path, shape, item.dtype, item.parameters, trainable, item.kind, item.sha256])
    return text.getvalue()


def read_variables(verified: VerifiedModel) -> tuple[VariableRecord, ...]:
    """The rows of ``weights.csv``.

    Raises:
        FormatError: A row does not have the promised form.
    """
    text = verified.read_bytes(WEIGHTS_TABLE_FILE).decode("utf-8")
    header, *rows = csv.reader(io.StringIO(text))
    if tuple(header) != _COLUMNS:
        raise FormatError(f"{WEIGHTS_TABLE_FILE}: expected the columns {', '.join(_COLUMNS)}, got {', '.join(header)}.")
    return tuple(_row(row) for row in rows)


def _row(row: list[str]) -> VariableRecord:
    try:
        path, shape, dtype, _, trainable, kind, sha256 = row
        sizes = tuple(int(size) for size in shape.split("x")) if shape else ()
    except ValueError:
        raise FormatError(f"{WEIGHTS_TABLE_FILE}: a row does not fit its columns: {row!r:.200}.") from None
    return VariableRecord(path=path, shape=sizes, dtype=dtype, trainable=trainable == "yes", kind=kind, sha256=sha256)


def read_values(verified: VerifiedModel, paths: Sequence[str]) -> list[np.ndarray[Any, Any]]:
    """The stored values of the variables with these paths, each checked against its own digest."""
    digests = {item.path: item.sha256 for item in read_variables(verified)}
    if missing := sorted(set(paths) - digests.keys()):
        raise FormatError(f"{WEIGHTS_TABLE_FILE}: the variables {', '.join(missing[:8])} are not in it.")
    with opened_tensors(verified, STATE_FILE) as tensors:
        return [tensors.read(path, sha256=digests[path]) for path in paths]


def parameter_counts(records: Iterable[VariableRecord]) -> tuple[int, int]:
    """Number of parameters, all and trainable; seeds, metrics and what is reached through globals are none of its."""
    weights = [item for item in records if item.kind in _WEIGHT_KINDS and not is_global(item.path)]
    return sum(item.parameters for item in weights), sum(item.parameters for item in weights if item.trainable)


def memory_orders(api: KerasApi, tree: ModelTree) -> dict[str, list[int]]:
    """For each variable whose axes lie in memory in another order than their own, that order."""
    orders = {path: api.memory_order(variable) for path, variable in tree.variables.items()}
    return {path: list(order) for path, order in orders.items() if order is not None}


def restore_memory_orders(api: KerasApi, orders: Mapping[str, Iterable[int]], tree: ModelTree) -> None:
    """Lay the variables out in memory as they were; they get their values afterwards.

    Raises:
        FormatError: An order is not one of the variable's axes.
    """
    for path, order in orders.items():
        variable = tree.variables.get(path)
        if variable is None:
            continue  # said by restore_variables, which compares all of them
        axes = list(range(len(api.shape_and_dtype(variable)[0])))
        if sorted(order) != axes:
            raise FormatError(f"{STRUCTURE_FILE}: memory_orders: {path}: expected the axes {axes}, got {order!r}.")
        api.set_memory_order(variable, tuple(order))


def matching_paths(records: Iterable[VariableRecord], patterns: Iterable[str]) -> frozenset[str]:
    """The paths of the variables that one of the patterns names.

    Args:
        records: The rows of ``weights.csv``.
        patterns: Shell patterns of attribute paths; ``/`` may stand for the dots: ``encoder/*``.

    Raises:
        KerasSubclassError: A pattern names no variable.
    """
    paths = [item.path for item in records]
    found: set[str] = set()
    for pattern in patterns:
        # A bracket in a path is an index.
        named = fnmatch.filter(paths, pattern.replace("/", ".").replace("[", "[[]"))
        if not named:
            raise KerasSubclassError(
                f"variables: expected patterns of attribute paths, got {pattern!r}, which names none. The paths are in "
                f"{WEIGHTS_TABLE_FILE}, such as {', '.join(paths[:5])}."
            )
        found.update(named)
    return frozenset(found)


def restore_variables(
    api: KerasApi,
    verified: VerifiedModel,
    records: Iterable[VariableRecord],
    tree: ModelTree,
    *,
    compiled: bool,
    only: frozenset[str] | None = None,
) -> None:
    """Set every variable of ``tree`` to its stored value.

    Args:
        api: The seam to Keras.
        verified: The artifact.
        records: The rows of ``weights.csv``.
        tree: The rebuilt model's tree.
        compiled: Whether the model was compiled; else metrics that ``compile`` makes may be missing.
        only: The paths of the variables to set; ``None`` for all.

    Raises:
        RebuildError: A variable is missing, left over, or of another shape or dtype.
    """
    expected = {item.path: item for item in records}
    if not compiled:
        expected = {path: item for path, item in expected.items() if item.kind != "metric" or path in tree.variables}
    stored_on = verified.manifest.versions.backend
    _compare_variables(api, expected, tree, stored_on)
    with opened_tensors(verified, STATE_FILE) as tensors:
        for path, item in expected.items():
            if only is not None and path not in only:
                continue
            # The same bytes under another dtype or shape are another value.
            shape, stored_as = tensors.arrays.get(path, (item.shape, item.dtype))
            if (shape, stored_as) != (item.shape, item.dtype):
                raise FormatError(
                    f"{STATE_FILE}: {path!r} is {stored_as} {shape}; {WEIGHTS_TABLE_FILE} says {item.dtype} "
                    f"{item.shape}. Download the model again, or log it again if it was edited."
                )
            value = tensors.read(path, sha256=item.sha256)
            dtype = api.shape_and_dtype(tree.variables[path])[1]
            api.hand_over(tree.variables[path], _exactly(value, dtype, path))
    for layer in tree.layers.values():
        api.finalize_state(layer)


def compare_values(api: KerasApi, records: Iterable[VariableRecord], tree: ModelTree) -> None:
    """Raise ``RebuildError`` unless every variable has the recorded bytes."""
    for item in records:
        if array_sha256(api.snapshot(tree.variables[item.path])) != item.sha256:
            raise RebuildError(f"{item.path}: the rebuilt variable does not have the stored value.")


def _compare_variables(api: KerasApi, expected: Mapping[str, VariableRecord], tree: ModelTree, stored_on: str) -> None:
    missing, extra = sorted(expected.keys() - tree.variables.keys()), sorted(tree.variables.keys() - expected.keys())
    changed = []
    for path in expected.keys() & tree.variables.keys():
        shape, dtype = api.shape_and_dtype(tree.variables[path])
        item = expected[path]
        if shape != item.shape or not _is_same_kind(api, dtype, item.dtype, stored_on):
            changed.append(f"{path} is {dtype} {shape}, was {item.dtype} {item.shape}")
    if missing or extra or changed:
        raise RebuildError(
            "The rebuilt model does not have the variables of the one that was logged; missing: "
            f"{', '.join(missing[:8]) or 'none'}; extra: {', '.join(extra[:8]) or 'none'}; changed: "
            f"{'; '.join(changed[:8]) or 'none'}. The constructor must make the same variables from the same arguments."
        )


def _is_same_kind(api: KerasApi, dtype: str, stored: str, stored_on: str) -> bool:
    """Whether a variable of ``dtype`` can take a stored value exactly.

    On another backend than the model was logged on, integers may be of another width: seeds are int64 in TensorFlow,
    uint32 in JAX and int32 in torch, counters int64 and int32.
    """
    return dtype == stored or (api.backend != stored_on and "int" in dtype and "int" in stored)


def _exactly(value: np.ndarray[Any, Any], dtype: str, where: str) -> np.ndarray[Any, Any]:
    """``value`` in another integer dtype, or an error if it does not fit."""
    if value.dtype.name == dtype:
        return value
    found = value.astype(dtype)
    if not np.array_equal(found, value):
        raise RebuildError(f"{where}: the stored {value.dtype} does not fit the {dtype} that this backend has for it.")
    return found


# --- vocabularies


def write_vocabularies(api: KerasApi, tree: ModelTree, writer: ArtifactWriter) -> dict[str, str]:
    """Write the vocabulary of each lookup layer as JSON; returns its file by layer path.

    Keras stores them as lines of text, which changes terms that hold a line separator, and loses a trailing empty one.
    """
    files = {}
    for number, (path, layer) in enumerate(tree.vocabularies.items()):
        terms = [_term(term) for term in api.vocabulary(layer)]
        files[path] = f"{VOCABULARIES_DIR}/{number}.json"
        writer.write_json(files[path], {"layer": path, "terms": terms})
    return files


def _term(term: Any) -> Any:
    return term.decode("utf-8") if isinstance(term, bytes) else term if isinstance(term, str) else int(term)


def restore_vocabularies(api: KerasApi, verified: VerifiedModel, files: Mapping[str, str], tree: ModelTree) -> None:
    """Set the vocabulary of each lookup layer; ``RebuildError`` if the layer is not there."""
    for path, name in files.items():
        if path not in tree.vocabularies:
            raise RebuildError(f"{path}: the rebuilt model has no lookup layer there to take its vocabulary.")
        layer, terms = tree.vocabularies[path], verified.read_json(name)["terms"]
        current = [_term(term) for term in api.vocabulary(layer)]
        if current != terms:
            _set_vocabulary(layer, terms)
        restored = [_term(term) for term in api.vocabulary(layer)]
        if restored != terms:
            raise RebuildError(f"{path}: the vocabulary could not be set: {len(restored)} terms of {len(terms)}.")


def _set_vocabulary(layer: Any, terms: list[Any]) -> None:
    if getattr(layer, "output_mode", None) == "tf_idf":
        # Any weights: they are variables, and restored with these.
        layer.set_vocabulary(terms, idf_weights=[1.0] * len(terms))
    else:
        layer.set_vocabulary(terms)


# --- optimizers


def write_optimizers(api: KerasApi, tree: ModelTree, writer: ArtifactWriter, shard_bytes: int | None) -> dict[str, Any]:
    """Write ``optimizer.safetensors`` with every optimizer's iterations and slots; returns a record by path."""
    paths = tree.variable_paths()
    sources: dict[str, TensorSource] = {}
    records: dict[str, Any] = {}
    for path, optimizer in tree.optimizers.items():
        trained, variables = (
            api.trained_variables(optimizer, tree.variables.values()),
            api.optimizer_variables(optimizer),
        )
        unknown = [api.name_of(variable) for variable in trained if id(variable) not in paths]
        if unknown:
            raise CaptureError(
                f"{path}: the optimizer trains {', '.join(unknown[:4])}, which is no variable of the model. Keep what "
                "it trains as an attribute of the model."
            )
        keys = [f"{path}/{number}" for number in range(len(variables))]
        sources.update({key: _source(api, item) for key, item in zip(keys, variables, strict=True)})
        records[path] = {"count": len(keys), "trains": [paths[id(variable)] for variable in trained]}
    digests = write_tensors(writer, OPTIMIZER_FILE, sources, shard_bytes=shard_bytes) if sources else {}
    for path, record in records.items():
        record["sha256"] = [digests[f"{path}/{number}"] for number in range(record.pop("count"))]
    return records


def restore_optimizers(api: KerasApi, verified: VerifiedModel, records: Mapping[str, Any], tree: ModelTree) -> None:
    """Build every optimizer on the variables it trained, in their order, and restore its slots and iterations.

    Raises:
        RebuildError: An optimizer is missing or has other variables.
    """
    if not records:
        return
    with opened_tensors(verified, OPTIMIZER_FILE) as tensors:
        for path, record in records.items():
            if path not in tree.optimizers:
                raise RebuildError(f"{path}: the rebuilt model has no optimizer there; compile() must set it.")
            _restore_optimizer(api, tensors, path, record, tree, verified.manifest.versions.backend)


def _restore_optimizer(
    api: KerasApi, tensors: Tensors, path: str, record: Mapping[str, Any], tree: ModelTree, stored_on: str
) -> None:
    optimizer = tree.optimizers[path]
    if record["trains"]:
        api.build_optimizer(optimizer, [tree.variables[name] for name in record["trains"]])
    variables = api.optimizer_variables(optimizer)
    if len(variables) != len(record["sha256"]):
        raise RebuildError(
            f"{path}: the rebuilt optimizer has {len(variables)} variables, {len(record['sha256'])} are stored."
        )
    for number, (variable, sha256) in enumerate(zip(variables, record["sha256"], strict=True)):
        value = tensors.read(f"{path}/{number}", sha256=sha256)
        shape, dtype = api.shape_and_dtype(variable)
        if shape != value.shape or not _is_same_kind(api, dtype, value.dtype.name, stored_on):
            raise RebuildError(
                f"{path}: variable {api.name_of(variable)} is {dtype} {shape}, stored is {value.dtype} {value.shape}."
            )
        api.hand_over(variable, _exactly(value, dtype, path))
