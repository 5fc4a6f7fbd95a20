"""The safetensors layout: other readers open it, and no damaged header makes us read or allocate beyond the file."""

import io
import json
import struct

import ml_dtypes
import numpy as np
import pytest

from mlflow_keras_subclass.errors import CaptureError, FormatError, IntegrityError
from mlflow_keras_subclass.files import ArtifactWriter
from mlflow_keras_subclass.tensors import TensorFile, TensorSource, write_tensors

ARRAYS = {
    "a.kernel": np.arange(6, dtype="float32").reshape(2, 3),
    "b": np.array(7, dtype="int64"),
    "empty": np.empty((0, 3), dtype="float16"),
    "half": np.array([1.5, -2.0], dtype=ml_dtypes.bfloat16),
    "flags": np.array([True, False]),
}


def source(array):
    return TensorSource(shape=array.shape, dtype=array.dtype.name, value=lambda: array)


def written(tmp_path, arrays):
    writer = ArtifactWriter(tmp_path, "keras_subclass")
    digests = write_tensors(writer, "t.safetensors", {key: source(array) for key, array in arrays.items()})
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
