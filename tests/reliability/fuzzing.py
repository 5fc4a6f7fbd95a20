"""A mutation fuzzer over every reader of the format: either the value that was written, or one of our errors.

``python fuzzing.py 100000`` prints its counts (``make test-fuzz``). It imports no Keras.
"""

import dataclasses
import io
import json
import random
import sys
import tempfile
from pathlib import Path

import numpy as np

from mlflow_keras_subclass.artifacts.class_definition import DefinitionRecord
from mlflow_keras_subclass.artifacts.graph import GraphRecord
from mlflow_keras_subclass.artifacts.provenance import GitRecord
from mlflow_keras_subclass.errors import KerasSubclassError
from mlflow_keras_subclass.files import ArtifactWriter
from mlflow_keras_subclass.manifest import Manifest, Versions, parse_json, parse_manifest, write_manifest
from mlflow_keras_subclass.pickles import scan
from mlflow_keras_subclass.specs import ArraySpec, InputSpec
from mlflow_keras_subclass.tensors import TensorFile, TensorSource, write_tensors
from mlflow_keras_subclass.trust import TrustPolicy, verify

PICKLE = (
    b"\x80\x04\x95#\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x94\x8c\x05slice\x94\x93\x94K\x01K\x02N\x87\x94R\x94."
)
DEFINITION = {
    "serialization_format": "cloudpickle",
    "routes": {"cloudpickle": "", "source": "", "import": "no"},
    "python_magic": "a70d0d0a",
    "definitions": {"m:N": ["m", "N"]},
    "registrations": {"p>N": "m:N"},
    "modules": [{"name": "m", "path": "source/m.py", "is_package": False}],
    "main_lines": [[1, 2]],
    "third_party": ["numpy"],
    "notes": ["a note"],
}
GRAPH = {
    "format": "stablehlo",
    "outputs": "dict",
    "names": ["a", "b"],
    "places": [1, 0],
    "variables": ["dense.kernel"],
    "changed": [0],
}


def artifact(root):
    """A small artifact with a file of every kind; what is in the pickle is never read."""
    writer = ArtifactWriter(root, "keras_subclass")
    array = np.arange(300, dtype="float32").reshape(20, 15)
    sources = {
        "dense.kernel": TensorSource(shape=array.shape, dtype="float32", value=lambda: array),
        "dense.bias": TensorSource(shape=(15,), dtype="float32", value=lambda: array[0]),
    }
    write_tensors(writer, "state.safetensors", sources)
    writer.write_bytes("class.cloudpickle", PICKLE)
    writer.write_json("config.json", {"definitions": DEFINITION, "input_spec": None})
    writer.write_json("git.json", GitRecord(status="off").to_json())
    writer.write_text("source/m.py", "class N:\n    pass\n")
    versions = Versions(**{field.name: "1" for field in dataclasses.fields(Versions)})
    manifest = Manifest(
        format_version=1, created_at="2026-11-24T08:00:00Z", model_class="m:N", versions=versions, files=writer.entries
    )
    write_manifest(writer.directory, manifest)
    return root


def read_all(root):
    """All that a load takes from the artifact, as bytes."""
    verified = verify(root, TrustPolicy())
    found = {}
    for name in verified.names():
        with verified.open(name) as (file, _):
            found[name] = file.read()
    return found


def _tensors(data):
    file = TensorFile(io.BytesIO(data), len(data), "state.safetensors")
    return {key: (shape, dtype, file.read(key).tobytes()) for key, (shape, dtype) in sorted(file.arrays.items())}


def _spec(data):
    return InputSpec.from_json(parse_json(data, "config.json"))


def _readers(root):
    """Name, bytes and reader of every form of data that comes out of an artifact."""
    folder = root / "keras_subclass"
    spec = InputSpec(args=(ArraySpec(shape=(None, 3), dtype="float32"),), kwargs={}, parameters=("x",))
    return [
        ("manifest", (folder / "manifest.json").read_bytes(), parse_manifest),
        ("tensors", (folder / "state.safetensors").read_bytes(), _tensors),
        ("git", (folder / "git.json").read_bytes(), lambda d: GitRecord.from_json(parse_json(d, "git.json"))),
        ("definition", json.dumps(DEFINITION).encode(), lambda d: DefinitionRecord.from_json(parse_json(d, "c"))),
        ("graph", json.dumps(GRAPH).encode(), lambda d: GraphRecord.from_json(parse_json(d, "graph.json"))),
        ("spec", json.dumps(spec.to_json()).encode(), _spec),
        ("pickle", PICKLE, lambda d: scan(d, "class.cloudpickle")),
    ]


def changed(data, chosen):
    """``data`` with one to three edits: bits, bytes, cuts, copies, and values that parsers trip over."""
    data = bytearray(data)
    for _ in range(chosen.choice((1, 1, 1, 2, 3))):
        position = chosen.randrange(len(data) + 1)
        match chosen.randrange(7):
            case 0 if data:
                data[min(position, len(data) - 1)] ^= 1 << chosen.randrange(8)
            case 1 if data:
                data[min(position, len(data) - 1)] = chosen.randrange(256)
            case 2:
                del data[position:]
            case 3:
                del data[position : position + chosen.randrange(1, 40)]
            case 4:
                data[position:position] = data[position : position + chosen.randrange(1, 40)]
            case 5:
                data[position:position] = chosen.choice(_TROUBLE)
            case _:
                data[position : position + 8] = chosen.randbytes(8)
    return bytes(data)


_TROUBLE = (
    b"null",
    b"-1",
    b"1e400",
    b"NaN",
    b"[[",
    b"{}",
    b'"',
    b"\xff",
    b"\0",
    b"99999999999999999999",
    b"\\ud800",
    b"true",
)


def mutated(whole, *, seed, rounds):
    """Counts over ``rounds`` mutations; one in four changes a file of a whole artifact, the rest one reader's input.

    Raises:
        Exception: Of a kind that is not ours: a reader let it through.
    """
    chosen = random.Random(seed)
    readers = _readers(whole)
    counts = {"mutations": 0, "unchanged": 0, "refused": 0, "accepted": 0, "silent": 0}
    files = sorted(path for path in (whole / "keras_subclass").rglob("*") if path.is_file())
    expected = read_all(whole)
    for number in range(rounds):
        counts["mutations"] += 1
        if number % 4 == 0:
            counts[_whole_artifact(whole, chosen.choice(files), expected, chosen)] += 1
            continue
        _name, data, read = chosen.choice(readers)
        other = changed(data, chosen)
        if other == data:
            counts["unchanged"] += 1
            continue
        try:
            read(other)
        except KerasSubclassError:
            counts["refused"] += 1
        else:
            # Well-formed and different: it is the digest that refuses it, as the whole artifacts show.
            counts["accepted"] += 1
    return counts


def _whole_artifact(whole, path, expected, chosen):
    before = path.read_bytes()
    path.write_bytes(changed(before, chosen))
    try:
        found = read_all(whole)
    except KerasSubclassError:
        return "refused"
    finally:
        path.write_bytes(before)
    return "unchanged" if found == expected else "silent"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        result = mutated(artifact(Path(folder) / "model"), seed=20261126, rounds=int(sys.argv[1]))
    print(json.dumps(result, sort_keys=True))
    sys.exit(result["silent"] != 0)
