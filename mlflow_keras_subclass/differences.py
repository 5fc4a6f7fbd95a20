"""What differs between two stored models: source, configuration, weights, commit, environment, signature.

Reads two verified artifacts; nothing of them is executed or unpickled. Imports the parts and trust; must import
neither Keras nor MLflow, so that the command line answers in about a second.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mlflow_keras_subclass.artifacts import provenance, state
from mlflow_keras_subclass.manifest import (
    CONFIG_FILE,
    MLMODEL_FILE,
    REQUIREMENTS_FILE,
    SOURCE_DIR,
    STATE_FILE,
    STRUCTURE_FILE,
)
from mlflow_keras_subclass.tensors import opened_tensors
from mlflow_keras_subclass.trust import TrustPolicy, VerifiedModel, verify

__all__ = ["FileDifference", "ModelDifference", "ValueDifference", "WeightDifference", "compare_models"]

# How the definitions were stored differs between two logs of one class, and says nothing about the model.
_SKIPPED = ("definitions", "opaque")
# Part of an array's spec: one shape that was seen, such as the last batch's.
_OBSERVED = "observed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDifference:
    """One source file as a unified diff."""

    path: str
    diff: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueDifference:
    """One value by its path, on both sides; ``None`` where it is not there."""

    path: str
    left: Any
    right: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightDifference:
    """One variable: what it is on both sides, its norms, and the norm of the difference where shapes agree."""

    path: str
    left: str | None
    right: str | None
    left_norm: float | None
    right_norm: float | None
    distance: float | None
    largest: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDifference:
    """What ``compare_models`` found; every part is empty where the models are the same in it."""

    source: tuple[FileDifference, ...]
    config: tuple[ValueDifference, ...]
    weights: tuple[WeightDifference, ...]
    git: tuple[ValueDifference, ...]
    environment: tuple[ValueDifference, ...]
    signature: tuple[ValueDifference, ...]

    @property
    def is_empty(self) -> bool:
        """Whether the two are the same model in the same environment."""
        return not any(getattr(self, field.name) for field in fields(self))

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


def compare_models(left: Path, right: Path, policy: TrustPolicy | None = None) -> ModelDifference:
    """Compare two model directories.

    Raises:
        IntegrityError: A file of either was changed since it was logged.
        FormatError: A file does not have the form that its format version promises.
    """
    checked = policy or TrustPolicy()
    one, other = verify(left, checked), verify(right, checked)
    return ModelDifference(
        source=tuple(_source(one, other)),
        config=tuple(_values(_configuration(one), _configuration(other))),
        weights=tuple(_weights(one, other)),
        git=tuple(_values(_git(one), _git(other))),
        environment=tuple(_values(_environment(left, one), _environment(right, other))),
        signature=tuple(_values(_signature(left), _signature(right))),
    )


def _source(one: VerifiedModel, other: VerifiedModel) -> Iterator[FileDifference]:
    names = sorted({name for model in (one, other) for name in model.names() if name.startswith(f"{SOURCE_DIR}/")})
    for name in names:
        texts = [model.read_bytes(name) if name in model.names() else b"" for model in (one, other)]
        if texts[0] != texts[1]:
            before, after = (text.decode("utf-8", "backslashreplace").splitlines() for text in texts)
            path = name.removeprefix(f"{SOURCE_DIR}/")
            lines = difflib.unified_diff(before, after, f"a/{path}", f"b/{path}", lineterm="")
            yield FileDifference(path=path, diff="\n".join(lines))


def _configuration(model: VerifiedModel) -> dict[str, Any]:
    config = {key: value for key, value in model.read_json(CONFIG_FILE).items() if key not in _SKIPPED}
    layout = model.read_json(STRUCTURE_FILE)
    return {**config, "layers": layout["layers"], "attributes": layout["attributes"]}


def _git(model: VerifiedModel) -> dict[str, Any]:
    record = provenance.read(model)
    return {"commit": record.commit, "branch": record.branch, "dirty": record.dirty, "remote_url": record.remote_url}


def _environment(root: Path, model: VerifiedModel) -> dict[str, Any]:
    path = root / REQUIREMENTS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    requirements = dict(line.partition("==")[::2] for line in lines if line.strip())
    return {"versions": asdict(model.manifest.versions), "requirements": requirements}


def _signature(root: Path) -> Any:
    path = root / MLMODEL_FILE
    described = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return described.get("signature") or {} if isinstance(described, dict) else {}


def _values(left: Any, right: Any, path: str = "") -> Iterator[ValueDifference]:
    """The leaves that differ, by path."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        skipped = {_OBSERVED} if path.startswith("input_spec") else set()
        for key in sorted({*left, *right} - skipped):
            yield from _values(left.get(key), right.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for number, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from _values(one, other, f"{path}[{number}]")
    elif left != right:
        yield ValueDifference(path=path, left=left, right=right)


def _weights(one: VerifiedModel, other: VerifiedModel) -> Iterator[WeightDifference]:
    """Variables that differ; one pair is in memory at a time, and equal digests are not read."""
    records = [{item.path: item for item in state.read_variables(model)} for model in (one, other)]
    with opened_tensors(one, STATE_FILE) as left, opened_tensors(other, STATE_FILE) as right:
        files = left, right
        for path in sorted({*records[0], *records[1]}):
            pair = [record.get(path) for record in records]
            if pair[0] is not None and pair[1] is not None and pair[0].sha256 == pair[1].sha256:
                continue
            arrays = [None if item is None else file.read(path) for file, item in zip(files, pair, strict=True)]
            yield _weight(path, arrays)


def _weight(path: str, arrays: list[Any]) -> WeightDifference:
    left, right = (None if item is None else item.astype("float64") for item in arrays)
    change = None if left is None or right is None or left.shape != right.shape else right - left
    return WeightDifference(
        path=path,
        left=_kind(arrays[0]),
        right=_kind(arrays[1]),
        left_norm=_norm(left),
        right_norm=_norm(right),
        distance=_norm(change),
        largest=None if change is None or not change.size else _finite(float(np.max(np.abs(change)))),
    )


def _kind(array: Any) -> str | None:
    return None if array is None else f"{array.dtype.name} {tuple(array.shape)}"


def _norm(array: Any) -> float | None:
    return None if array is None else _finite(float(np.linalg.norm(array.reshape(-1))))


def _finite(value: float) -> float | None:
    # JSON has no NaN.
    return value if math.isfinite(value) else None
