"""Arrays in one file of the safetensors layout: 8 bytes of header size, a JSON header, then the bytes.

Written streaming and read array by array, so that no second copy of the weights is in memory. Imports errors, files
and manifest. Written here because the well-kept library holds a full second copy when it writes (measured:
1,024 MB more for 1 GB, against 128 MB), and takes three times as long; any reader of the ecosystem opens the result.
Format: https://huggingface.co/docs/safetensors/index#format (no gaps, no overlaps, header first).

Above a size, arrays go to several files, ``state-00001-of-00003.safetensors``, and ``state.safetensors.index.json``
says which file holds which: as the ecosystem's readers of large models expect it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import ml_dtypes
import numpy as np

from mlflow_keras_subclass.errors import CaptureError, FormatError, IntegrityError
from mlflow_keras_subclass.files import ArtifactWriter
from mlflow_keras_subclass.manifest import parse_json
from mlflow_keras_subclass.progress import progress

__all__ = [
    "ALIGNMENT",
    "TensorFile",
    "TensorReader",
    "TensorSource",
    "Tensors",
    "aligned",
    "array_sha256",
    "array_source",
    "opened_tensors",
    "write_tensors",
]

# After the name of what is in several files.
INDEX_SUFFIX = ".index.json"

# Of the memory of an array that a backend computes with, in bytes: the widest vector registers.
ALIGNMENT = 64

_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
}
_NAMES = {code: name for name, code in _CODES.items()}
_SAMPLED_BLOCKS = 64
_PIECE_BYTES = 2**20
_MAX_HEADER_BYTES = 100 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSource:
    """An array to be written: what the header says of it, and where its value comes from when its turn comes."""

    shape: tuple[int, ...]
    dtype: str
    value: Callable[[], np.ndarray[Any, Any]]

    @property
    def size_bytes(self) -> int:
        """Bytes of the array in the file."""
        return math.prod(self.shape) * _numpy_dtype(self.dtype).itemsize


def array_source(array: np.ndarray[Any, Any]) -> TensorSource:
    """An array that is in memory already."""
    return TensorSource(shape=array.shape, dtype=array.dtype.name, value=lambda: array)


def write_tensors(
    writer: ArtifactWriter, name: str, sources: Mapping[str, TensorSource], *, shard_bytes: int | None = None
) -> dict[str, str]:
    """Write ``sources`` to the file ``name``; returns the sha256 of the bytes of each.

    With ``shard_bytes``, more bytes than that go to several files, none larger unless a single array is.

    Raises:
        CaptureError: An array's dtype has no code in the layout, or a value is not what its source announced.
    """
    groups = _groups(sources, shard_bytes)
    if len(groups) < 2:
        return _write_file(writer, name, sources)
    stem, _, suffix = name.rpartition(".")
    digests: dict[str, str] = {}
    places: dict[str, str] = {}
    for number, keys in enumerate(groups, 1):
        shard = f"{stem}-{number:05}-of-{len(groups):05}.{suffix}"
        digests |= _write_file(writer, shard, {key: sources[key] for key in keys})
        places |= dict.fromkeys(keys, shard)
    total = sum(source.size_bytes for source in sources.values())
    writer.write_json(f"{name}{INDEX_SUFFIX}", {"metadata": {"total_size": total}, "weight_map": places})
    return digests


def _groups(sources: Mapping[str, TensorSource], shard_bytes: int | None) -> list[list[str]]:
    """The keys, in their order, cut so that no group but one of a single array has more bytes."""
    groups: list[list[str]] = [[]]
    filled = 0
    for key, source in sources.items():
        filled += source.size_bytes
        if shard_bytes is not None and filled > shard_bytes and groups[-1]:
            groups.append([])
            filled = source.size_bytes
        groups[-1].append(key)
    return groups


def _write_file(writer: ArtifactWriter, name: str, sources: Mapping[str, TensorSource]) -> dict[str, str]:
    header: dict[str, Any] = {}
    offset = 0
    for key, source in sources.items():
        if source.dtype not in _CODES:
            raise CaptureError(f"{key}: dtype {source.dtype} cannot be stored; expected one of {', '.join(_CODES)}.")
        end = offset + source.size_bytes
        header[key] = {"dtype": _CODES[source.dtype], "shape": list(source.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    digests = {}
    with writer.open(name) as file, progress(offset, f"Writing {name}") as advance:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for key, source in sources.items():
            data = _bytes_of(key, source)
            digest = hashlib.sha256()
            # In pieces, which are still in the processor's cache when they are hashed the second time.
            for start in range(0, len(data), _PIECE_BYTES):
                piece = data[start : start + _PIECE_BYTES]
                file.write(piece)
                digest.update(piece)
                advance(len(piece))
            digests[key] = digest.hexdigest()
    return digests


def array_sha256(array: np.ndarray[Any, Any]) -> str:
    """The digest of the bytes of an array, of which no copy is made."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _bytes_of(key: str, source: TensorSource) -> memoryview:
    value = np.ascontiguousarray(source.value())
    if value.shape != source.shape and value.size == math.prod(source.shape):
        value = value.reshape(source.shape)
    if value.shape != source.shape or value.dtype != _numpy_dtype(source.dtype):
        raise CaptureError(
            f"{key}: expected {source.dtype} {source.shape}, got {value.dtype} {value.shape}: the model changed while "
            "it was being saved. Save when no other thread trains it."
        )
    if value.dtype.byteorder == ">":
        value = value.astype(value.dtype.newbyteorder("<"))
    return value.reshape(-1).view(np.uint8).data


class TensorReader(Protocol):
    """Where ``opened_tensors`` reads from."""

    def names(self) -> tuple[str, ...]:
        """The files that there are."""

    def read_json(self, name: str) -> Any:
        """The content of one JSON file."""

    def open(self, name: str) -> AbstractContextManager[tuple[BinaryIO, int]]:
        """One file, and its size in bytes."""


@contextlib.contextmanager
def opened_tensors(reader: TensorReader, name: str) -> Iterator[Tensors]:
    """What ``write_tensors`` wrote as ``name``, in one file or several.

    Raises:
        FormatError: The files do not hold what the index says.
    """
    with contextlib.ExitStack() as stack:
        index = f"{name}{INDEX_SUFFIX}"
        if index not in reader.names():
            yield TensorFile(*stack.enter_context(reader.open(name)), name)
            return
        places, size_bytes = _weight_map(reader.read_json(index), index)
        shards = {
            shard: TensorFile(*stack.enter_context(reader.open(shard)), shard) for shard in sorted(set(places.values()))
        }
        yield _Shards(name, shards, places, size_bytes)


def _weight_map(index: Any, name: str) -> tuple[dict[str, str], int]:
    """The file of each array, and the bytes of all arrays."""
    match index:
        case {"metadata": {"total_size": int(size_bytes)}, "weight_map": dict(places)} if all(
            isinstance(shard, str) for shard in places.values()
        ):
            return places, size_bytes
    raise FormatError(
        f"{name}: expected an object with metadata.total_size, and weight_map from array to file, got {index!r:.200}."
    )


class Tensors(Protocol):
    """Arrays by name, read when they are asked for."""

    @property
    def arrays(self) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype name of every array."""

    def read(self, key: str, *, sha256: str | None = None) -> np.ndarray[Any, Any]:
        """The array ``key`` in memory of its own, checked against ``sha256`` where one is given."""

    def sample(self, key: str, count: int) -> np.ndarray[Any, Any]:
        """At most ``count`` values of the array ``key``, flat, from all over it."""


class _Shards:
    """Several files as one."""

    def __init__(self, name: str, shards: Mapping[str, TensorFile], places: Mapping[str, str], size_bytes: int) -> None:
        self._name = name
        self._shards = shards
        self._places = places
        held = {key: shard for shard, tensors in shards.items() for key in tensors.arrays}
        sizes = [math.prod(shape) * _numpy_dtype(dtype).itemsize for shape, dtype in self.arrays.values()]
        if held != places or sum(sizes) != size_bytes:
            differing = sorted(held.items() ^ places.items())
            raise FormatError(
                f"{name}: the files do not hold what the index says: {differing[:4]!r}, {sum(sizes)} bytes of "
                f"{size_bytes}."
            )

    @functools.cached_property
    def arrays(self) -> Mapping[str, tuple[tuple[int, ...], str]]:
        return {key: entry for tensors in self._shards.values() for key, entry in tensors.arrays.items()}

    def read(self, key: str, *, sha256: str | None = None) -> np.ndarray[Any, Any]:
        return self._at(key).read(key, sha256=sha256)

    def sample(self, key: str, count: int) -> np.ndarray[Any, Any]:
        return self._at(key).sample(key, count)

    def _at(self, key: str) -> TensorFile:
        if key not in self._places:
            raise FormatError(f"{self._name}: has no array {key!r}.")
        return self._shards[self._places[key]]


class TensorFile:
    """Reads arrays from an open file; every offset is checked against the file's size before anything is read."""

    def __init__(self, file: BinaryIO, size_bytes: int, name: str) -> None:
        """Read and check the header.

        Raises:
            FormatError: The header is not what the layout promises, or does not fit ``size_bytes``.
        """
        self._file = file
        self._name = name
        file.seek(0)
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 0 <= length <= min(_MAX_HEADER_BYTES, size_bytes - 8):
            raise FormatError(f"{name}: a header of {length} bytes does not fit a file of {size_bytes} bytes.")
        self._start = 8 + length
        header = parse_json(file.read(length), name)
        if not isinstance(header, dict):
            raise FormatError(f"{name}: the header must be an object, got {type(header).__name__}.")
        self._arrays = {key: self._entry(key, entry) for key, entry in header.items() if key != "__metadata__"}
        self._check_cover(size_bytes - self._start)

    @functools.cached_property
    def arrays(self) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype name of every array."""
        return {key: (shape, dtype) for key, (shape, dtype, _) in self._arrays.items()}

    def read(self, key: str, *, sha256: str | None = None) -> np.ndarray[Any, Any]:
        """The array ``key`` in memory of its own, checked against ``sha256`` where one is given.

        Raises:
            FormatError: There is no such array.
            IntegrityError: The bytes just read are not those of the digest.
        """
        if key not in self._arrays:
            raise FormatError(f"{self._name}: has no array {key!r}.")
        shape, dtype, offset = self._arrays[key]
        array = aligned(shape, _numpy_dtype(dtype), np.empty)
        data = array.reshape(-1).view(np.uint8).data
        self._file.seek(self._start + offset)
        if self._file.readinto(data) != len(data):  # type: ignore[attr-defined] # every open file has it
            raise IntegrityError(f"{self._name}: ended within {key!r} while it was being read.")
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise IntegrityError(f"{self._name}: changed: {key!r} does not have the sha256 recorded for it.")
        return array

    def sample(self, key: str, count: int) -> np.ndarray[Any, Any]:
        """At most ``count`` values of the array ``key``, flat, from all over it; of a large one little is read."""
        shape, dtype, offset = self._arrays[key]
        total, item = math.prod(shape), _numpy_dtype(dtype)
        if total <= count:
            return self.read(key).reshape(-1)
        block = count // _SAMPLED_BLOCKS
        starts = [number * (total - block) // (_SAMPLED_BLOCKS - 1) for number in range(_SAMPLED_BLOCKS)]
        pieces = []
        for start in starts:
            self._file.seek(self._start + offset + start * item.itemsize)
            pieces.append(np.frombuffer(self._file.read(block * item.itemsize), dtype=item))
        return np.concatenate(pieces)

    def _entry(self, key: str, entry: Any) -> tuple[tuple[int, ...], str, int]:
        match entry:
            case {"dtype": str(code), "shape": list(shape), "data_offsets": [int(start), int(end)]} if (
                code in _NAMES and all(type(size) is int and size >= 0 for size in shape)
            ):
                expected = math.prod(shape) * _numpy_dtype(_NAMES[code]).itemsize
                if start < 0 or end - start != expected:
                    raise FormatError(
                        f"{self._name}: {key!r} needs {expected} bytes, its offsets are {start} to {end}."
                    )
                return tuple(shape), _NAMES[code], start
        raise FormatError(f"{self._name}: {key!r}: expected dtype, shape and data_offsets, got {entry!r:.200}.")

    def _check_cover(self, size_bytes: int) -> None:
        position = 0
        spans = sorted(
            (start, math.prod(shape) * _numpy_dtype(dtype).itemsize) for shape, dtype, start in self._arrays.values()
        )
        for start, length in spans:
            if start != position:
                raise FormatError(f"{self._name}: the arrays leave a gap or overlap at byte {min(start, position)}.")
            position += length
        if position != size_bytes:
            raise FormatError(f"{self._name}: the arrays take {position} bytes, the file holds {size_bytes}.")


def aligned(
    shape: Sequence[int], dtype: np.dtype[Any], make: Callable[[int, type], np.ndarray[Any, Any]]
) -> np.ndarray[Any, Any]:
    """An array of ``make`` (``np.empty``, ``np.zeros``) with memory of its own that a backend can take over."""
    size = math.prod(shape) * dtype.itemsize
    raw = make(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _numpy_dtype(name: str) -> np.dtype[Any]:
    scalar: Any = getattr(ml_dtypes, name) if name.startswith(("bfloat", "float8")) else name
    dtype: np.dtype[Any] = np.dtype(scalar)
    return dtype
