"""The safetensors layout: other readers open it, and no damaged header makes us read or allocate beyond the file."""

import contextlib
import io
import json
import struct

import ml_dtypes
import numpy as np
import pytest

from mlflow_keras_subclass.errors import CaptureError, FormatError, IntegrityError
from mlflow_keras_subclass.files import ArtifactWriter
from mlflow_keras_subclass.tensors import TensorFile, TensorSource, array_source, opened_tensors, write_tensors

ARRAYS = {
    "a.kernel": np.arange(6, dtype="float32").reshape(2, 3),
    "b": np.array(7, dtype="int64"),
    "empty": np.empty((0, 3), dtype="float16"),
    "half": np.array([1.5, -2.0], dtype=ml_dtypes.bfloat16),
    "flags": np.array([True, False]),
}


def written(tmp_path, arrays):
    writer = ArtifactWriter(tmp_path, "keras_subclass")
    digests = write_tensors(writer, "t.safetensors", {key: array_source(array) for key, array in arrays.items()})
    return (tmp_path / "keras_subclass/t.safetensors").read_bytes(), digests


def opened(data):
    return TensorFile(io.BytesIO(data), len(data), "t.safetensors")


def with_header(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_arrays_come_back_with_shape_dtype_and_bytes(tmp_path):
    data, digests = written(tmp_path, ARRAYS)
    file = opened(data)

    for key, array in ARRAYS.items():
        back = file.read(key, sha256=digests[key])
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert back.tobytes() == array.tobytes()


def test_bytes_of_a_small_file(tmp_path):
    data, _ = written(tmp_path, {"w": np.array([1], dtype="int8")})

    assert data == with_header(b'{"w":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}   ', b"\x01")


def test_array_changed_after_the_file_was_checked_is_named(tmp_path):
    data, digests = written(tmp_path, ARRAYS)
    damaged = bytearray(data)
    damaged[data.index(ARRAYS["a.kernel"].tobytes())] ^= 1

    with pytest.raises(IntegrityError, match=r"changed: 'a.kernel'"):
        opened(bytes(damaged)).read("a.kernel", sha256=digests["a.kernel"])


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "header of -1 bytes does not fit a file of 0 bytes"),
        (struct.pack("<Q", 2**60) + b"{}", "does not fit a file of 10 bytes"),
        (with_header(b"[]"), "header must be an object, got list"),
        (with_header(b"{"), "is not valid JSON"),
        (with_header(b'{"a":{},"a":{}}'), "'a' appears twice"),
        (with_header({"a": entry(dtype="X9")}, b"0000"), "'a': expected dtype, shape and data_offsets"),
        (with_header({"a": entry(shape=(-1,))}, b"0000"), "'a': expected dtype"),
        (with_header({"a": entry(shape=(True,))}, b"0000"), "'a': expected dtype"),
        (with_header({"a": entry(shape=(2**40, 2**40))}, b"0000"), "'a' needs .* bytes, its offsets are 0 to 4"),
        (with_header({"a": entry(offsets=(4, 0))}, b"0000"), "'a' needs 4 bytes, its offsets are 4 to 0"),
        (with_header({"a": entry(), "b": entry()}, b"0000"), "gap or overlap"),
        (with_header({"a": entry(offsets=(4, 8))}, b"00000000"), "gap or overlap at byte 0"),
        (with_header({"a": entry()}, b"00000"), "take 4 bytes, the file holds 5"),
        (with_header({"a": entry()}, b"000"), "take 4 bytes, the file holds 3"),
    ],
)
def test_damaged_file_is_refused_before_anything_is_allocated(data, text):
    with pytest.raises(FormatError, match=text):
        opened(data)


def test_unknown_array_is_refused(tmp_path):
    with pytest.raises(FormatError, match="has no array 'other'"):
        opened(written(tmp_path, ARRAYS)[0]).read("other")


def test_dtype_without_a_code_is_refused_by_name(tmp_path):
    with pytest.raises(CaptureError, match="names: dtype object cannot be stored"):
        written(tmp_path, {"names": np.array(["a"], dtype=object)})


def test_value_that_changed_while_saving_is_refused(tmp_path):
    moving = TensorSource(shape=(2,), dtype="float32", value=lambda: np.zeros(3, "float32"))

    with pytest.raises(CaptureError, match=r"w: expected float32 \(2,\), got float32 \(3,\): the model changed"):
        write_tensors(ArtifactWriter(tmp_path, "x"), "t.safetensors", {"w": moving})


class Folder:
    """Reads what ``ArtifactWriter`` wrote."""

    def __init__(self, root):
        self.root = root

    def names(self):
        return tuple(path.name for path in self.root.iterdir())

    def read_json(self, name):
        return json.loads((self.root / name).read_text())

    @contextlib.contextmanager
    def open(self, name):
        data = (self.root / name).read_bytes()
        yield io.BytesIO(data), len(data)


def sharded(tmp_path, limit):
    writer = ArtifactWriter(tmp_path, "d")
    arrays = {name: np.arange(size, dtype="float32") for name, size in (("a", 10), ("b", 10), ("c", 50), ("d", 1))}
    sources = {key: array_source(array) for key, array in arrays.items()}
    return arrays, write_tensors(writer, "t.safetensors", sources, shard_bytes=limit), tmp_path / "d"


def test_large_states_are_cut_into_files_of_a_size(tmp_path):
    """Only a single array that is larger has a file that is."""
    arrays, digests, folder = sharded(tmp_path, 100)

    names = [f"t-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "t.safetensors.index.json"]
    index = json.loads((folder / "t.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 284},
        "weight_map": {"a": names[0], "b": names[0], "c": names[1], "d": names[2]},
    }
    with opened_tensors(Folder(folder), "t.safetensors") as tensors:
        assert set(tensors.arrays) == set(arrays)
        assert tensors.arrays is tensors.arrays  # asked for once for each variable
        for key, array in arrays.items():
            assert np.array_equal(tensors.read(key, sha256=digests[key]), array)
        assert tensors.sample("c", 100).size == 50
        with pytest.raises(FormatError, match="no array 'x'"):
            tensors.read("x")


@pytest.mark.parametrize("limit", [None, 284, 10**9])
def test_what_fits_is_one_file(tmp_path, limit):
    _, _, folder = sharded(tmp_path, limit)
    assert [path.name for path in folder.iterdir()] == ["t.safetensors"]


@pytest.mark.parametrize(
    "change",
    [
        lambda places: places.pop("a"),
        lambda places: places.update(a=places["c"]),
        lambda places: places.update(x=places["c"]),
        lambda places: places.update(a=7),
        lambda places: places.clear(),
    ],
)
def test_index_that_is_not_what_the_files_hold_is_refused(tmp_path, change):
    _, _, folder = sharded(tmp_path, 100)
    path = folder / "t.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))

    with pytest.raises(FormatError, match="index"), opened_tensors(Folder(folder), "t.safetensors"):
        pass
