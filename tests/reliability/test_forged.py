"""Artifacts changed together with all their digests: what a digest in the same place cannot find.

Either the model that the description says, or one of our errors; no code that a description names is imported, no
file that it names is opened, and no model comes back whose predictions differ without an error where the model has
an anchor. The tests of signatures and pinned digests are in tests/fast/test_trust.py.
"""

import hashlib
import importlib
import json
import logging
import pickle
import shutil
import sys
from pathlib import Path

import h5py
import keras
import mlflow
import numpy as np
import pytest
import yaml
from forgery import edit_json, forged, reseal
from mlflow.exceptions import MlflowException

import mlflow_keras_subclass as mks

CLASS = "keras_subclass/class.cloudpickle"
X = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")


class Net(keras.Model):
    def __init__(self, units, layer=None, policy=None):
        super().__init__()
        self.dense = keras.layers.Dense(units, activation="relu")
        self.layer = layer or keras.layers.Dropout(0.5)

    def call(self, x):
        return self.layer(self.dense(x))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    keras.utils.set_random_seed(2)
    model = Net(5, keras.layers.Dense(5))
    model(X)
    model.dense.bias.assign([1, 2, 3, 4, 5])
    path = tmp_path_factory.mktemp("saved") / "net"
    mks.save_model(model, path, prove=False)
    digest = hashlib.sha256((path / "keras_subclass/manifest.json").read_bytes()).hexdigest()
    return path, np.asarray(model(X)), digest


def argument(value):
    """Put ``value`` in the place of the layer among the constructor's arguments."""

    def change(content):
        spec = content["constructor"]
        spec["args"][1:2] = [value]

    return edit_json("config.json", change)


LAMBDA = {
    "module": "builtins",
    "class_name": "function",
    "config": {"class_name": "__lambda__", "config": {"value": ["4wEAAAA=", None, None]}},
}


def keras_config(name, config, module="keras.layers"):
    return {"$keras": {"module": module, "class_name": name, "config": config, "registered_name": None}}


UNSAFE = {
    "46 Lambda": keras_config("Lambda", {"name": "l", "function": LAMBDA["config"]}),
    "46 __lambda__ as activation": keras_config("Dense", {"units": 5, "activation": LAMBDA["config"]}),
    "46 TFSMLayer": keras_config("TFSMLayer", {"filepath": "/etc", "call_endpoint": "serve"}),
    "46 TorchModuleWrapper": keras_config("TorchModuleWrapper", {"module": {"class_name": "__bytes__"}}),
    "46 vocabulary": keras_config("StringLookup", {"vocabulary": "/etc/passwd"}),
    "46 TFSMLayer constructed": {"$construct": {"keras_layer": "TFSMLayer", "args": ["/etc"], "kwargs": {}}},
    "46 vocabulary constructed": {
        "$construct": {"keras_layer": "StringLookup", "args": [], "kwargs": {"vocabulary": "/etc/passwd"}}
    },
    "44 another module": keras_config("system", {"command": "true"}, module="os"),
    "44 a module that would be imported": keras_config("Evil", {}, module="antigravity"),
    "44 function of Keras that downloads": keras_config("get_file", {"origin": "http://x"}, module="keras.utils"),
    "44 switch of the safe mode": keras_config("enable_unsafe_deserialization", {}, module="keras.config"),
    "44 layer that is none": {"$construct": {"keras_layer": "os", "args": [], "kwargs": {}}},
    "44 from_config of Keras": {"$from_config": {"keras_layer": "Lambda", "config": {"function": LAMBDA["config"]}}},
    "44 default of a dict": {"$dict": [], "type": "defaultdict", "default": "exec"},
    "44 definition that was not shipped": {"$definition": "os:system"},
    "44 object that was not shipped": {"$object": "7"},
    "44 unknown tag": {"$evil": 1},
}


@pytest.mark.parametrize("name", UNSAFE)
def test_description_cannot_name_code_or_files(saved, tmp_path, name):
    root = forged(saved[0], tmp_path / "m", argument(UNSAFE[name]))

    with pytest.raises(MlflowException) as raised:
        mks.load_model(root)
    assert isinstance(raised.value, mks.KerasSubclassError), raised.value
    assert "antigravity" not in sys.modules


def test_dtype_policy_cannot_name_code_either(saved, tmp_path):
    policy = {"module": "os", "class_name": "system", "config": {}, "registered_name": None}
    root = forged(saved[0], tmp_path / "m", edit_json("config.json", lambda c: c.update(dtype_policy=policy)))

    with pytest.raises(mks.FormatError, match="not Keras' own"):
        mks.load_model(root)


def drop(key):
    return lambda content: content.pop(key)


def tensors(change):
    def edit(root):
        path = root / "keras_subclass/state.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return edit


def header_of(data):
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(header, body):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def swapped(data):
    """The biases of two layers, which have one shape, in each other's place."""
    header, body = header_of(data)
    (a, b), (c, d) = (header[name]["data_offsets"] for name in ("dense.bias", "layer.bias"))
    assert b - a == d - c
    parts = bytearray(body)
    parts[a:b], parts[c:d] = body[c:d], body[a:b]
    return with_header(header, bytes(parts))


def extra(data):
    header, body = header_of(data)
    header["evil"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
    return with_header(header, body + bytes(4))


def overlapping(data):
    header, body = header_of(data)
    header["layer.bias"]["data_offsets"] = header["dense.bias"]["data_offsets"]
    return with_header(header, body)


def of_sibling(root):
    keras.utils.set_random_seed(3)
    model = Net(5, keras.layers.Dense(5))
    model(X)
    mks.save_model(model, root.parent / "sibling", prove=False)
    shutil.copy(root.parent / "sibling/keras_subclass/state.safetensors", root / "keras_subclass")


def hdf5(fill):
    """A file of HDF5 where our layout is expected: it is read by no library that would follow what is in it."""

    def edit(root):
        path = root / "keras_subclass/state.safetensors"
        path.unlink()
        with h5py.File(path, "w") as file:
            fill(file)

    return edit


def virtual(file):
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(4,))
    file.create_virtual_dataset("dense.kernel", layout)


def truncated_header(data):
    return (2**40).to_bytes(8, "little") + data[8:]


DAMAGED = {
    "45 configuration that is no object": lambda root: (root / "keras_subclass/config.json").write_text("[]"),
    "45 configuration too large": lambda root: (root / "keras_subclass/config.json").write_bytes(b" " * (2**26 + 1)),
    "43 no constructor": edit_json("config.json", drop("constructor")),
    "43 no definitions": edit_json("config.json", drop("definitions")),
    "43 other units": edit_json("config.json", lambda c: c["constructor"]["args"].__setitem__(0, 6)),
    "43 no layers": edit_json("structure.json", drop("layers")),
    "30 header that promises a terabyte": tensors(truncated_header),
    "30 shape that promises a terabyte": tensors(lambda data: data.replace(b"[3,5]", b"[%d]" % 2**40)),
    "31 HDF5 with external storage": hdf5(
        lambda file: file.create_dataset("dense.kernel", (4,), "f4", external=[("/etc/passwd", 0, 16)])
    ),
    "32 HDF5 with an external link": hdf5(
        lambda file: file.__setitem__("dense.kernel", h5py.ExternalLink("/etc/passwd", "/x"))
    ),
    "33 HDF5 with a virtual dataset": hdf5(virtual),
    "34 HDF5 with objects": hdf5(lambda file: file.create_dataset("x", (1,), h5py.string_dtype())),
    "34 dtype of objects": tensors(lambda data: data.replace(b'"F32"', b'"OBJ"', 1)),
    "34 pickled array": lambda root: np.save(
        (root / "keras_subclass/state.safetensors").open("wb"), np.array([{}]), allow_pickle=True
    ),
    "35 arrays that overlap": tensors(overlapping),
    "35 bytes after the arrays": tensors(lambda data: data + b"\0" * 8),
    "36 array missing": tensors(lambda data: data.replace(b'"dense.kernel"', b'"dense.kernal"')),
    "37 other shape": tensors(lambda data: data.replace(b"[3,5]", b"[5,3]")),
    "38 other dtype of the same size": tensors(lambda data: data.replace(b'"F32"', b'"I32"', 1)),
    "38 wider dtype": tensors(lambda data: data.replace(b'"F32"', b'"F64"', 1)),
    "38 narrower dtype": tensors(lambda data: data.replace(b'"F32"', b'"F16"', 1)),
    "39 two layers of one shape in each other's place": tensors(swapped),
    "40 weights of another run": of_sibling,
    "41 NaN": tensors(lambda data: data[:-4] + np.float32("nan").tobytes()),
    "42 weights times 1.01, array digests left": tensors(lambda data: data[:-4] + b"\0\0\x80\x3f"),
    "53 pickle of something else": lambda root: (root / "keras_subclass/class.cloudpickle").write_bytes(
        pickle.dumps([])
    ),
    "52 pickle cut": lambda root: (root / "keras_subclass/class.cloudpickle").write_bytes(b"\x80\x04"),
    "55 flavor of another": lambda root: _mlmodel(root, lambda flavors: flavors.pop("keras_subclass")),
}


def _mlmodel(root, change):
    described = yaml.safe_load((root / "MLmodel").read_text())
    change(described["flavors"])
    (root / "MLmodel").write_text(yaml.safe_dump(described))


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_with_new_digests_is_one_of_our_errors(saved, tmp_path, name):
    root = tmp_path / "m"
    shutil.copytree(saved[0], root)
    DAMAGED[name](root)
    if not name.startswith("55"):
        reseal(root)

    with pytest.raises(mks.KerasSubclassError):
        mks.load_model(root)


def test_54_tags_in_mlmodel_make_nothing(saved, tmp_path):
    canary = tmp_path / "canary"
    shutil.copytree(saved[0], tmp_path / "m")
    evil = f'!!python/object/apply:builtins.open ["{canary}", "w"]'
    with (tmp_path / "m/MLmodel").open("a") as file:
        file.write(f"evil: {evil}\n")

    with pytest.raises(Exception, match=r"constructor|tag"):
        mks.load_model(tmp_path / "m")
    assert not canary.exists()


def test_any_change_is_found_by_who_knows_the_digest(saved, tmp_path):
    """42: an attacker who recomputes everything meets the anchor outside the artifact."""
    path, expected, digest = saved
    edit = tensors(lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    root = forged(path, tmp_path / "m", edit)

    with pytest.raises(mks.IntegrityError, match="as the trust policy names it"):
        mks.load_model(root, trust_policy=mks.TrustPolicy(level="known", manifest_sha256=digest))
    policy = mks.TrustPolicy(level="known", manifest_sha256=digest)
    np.testing.assert_array_equal(mks.load_model(path, trust_policy=policy)(X), expected)


def test_51_never_through_the_server(saved, monkeypatch):
    monkeypatch.setenv("MLFLOW_KERAS_SUBCLASS_TRUST", "never")

    with pytest.raises(MlflowException, match="level 'never'"):
        mlflow.pyfunc.load_model(str(saved[0]))


def test_48_stored_source_keeps_its_bytes(saved):
    modules = json.loads((saved[0] / "keras_subclass/config.json").read_text())["definitions"]["modules"]
    stored = next(module["path"] for module in modules if module["path"].endswith("test_forged.py"))

    assert (saved[0] / "keras_subclass" / stored).read_bytes() == Path(__file__).read_bytes()


def test_35_array_too_many_has_no_effect(saved, tmp_path):
    root = forged(saved[0], tmp_path / "m", tensors(extra))

    np.testing.assert_array_equal(mks.load_model(root)(X), saved[1])


@pytest.mark.parametrize("values", [[0.0, np.nan], [np.inf, -np.inf], [0.0, -np.inf]])
def test_41_nan_that_was_saved_comes_back_with_a_recorded_warning(tmp_path, caplog, values):
    model = Net(2)
    model(X)
    model.dense.bias.assign(values)

    with caplog.at_level(logging.WARNING, "mlflow_keras_subclass"):
        mks.save_model(model, tmp_path / "m", prove=False)
        assert "NaN or infinite values are in the weights dense.bias, and are stored so" in caplog.text
        loaded = mks.load_model(tmp_path / "m")

    np.testing.assert_array_equal(loaded(X), model(X))
    assert "NaN or infinite values were logged in the weights dense.bias." in caplog.text
    assert "NaN or infinite values in: `dense.bias`" in (tmp_path / "m" / "README.md").read_text()


def test_41_numbers_that_are_large_are_no_infinities(tmp_path, caplog):
    """Their sum is one."""
    model = Net(2)
    model(X)
    model.dense.bias.assign([3e38, 3e38])

    with caplog.at_level(logging.WARNING, "mlflow_keras_subclass"):
        mks.save_model(model, tmp_path / "m", prove=False)
        mks.load_model(tmp_path / "m")

    assert "NaN" not in caplog.text


@pytest.fixture(scope="module")
def by_source(tmp_path_factory):
    """A model whose class comes back by its text."""
    folder = tmp_path_factory.mktemp("by source")
    text = "import keras\n\nclass OfText(keras.Model):\n\tdef call(self, x):\n\t\treturn x * 2\n"
    # Tabs, a byte order mark and line ends of Windows are the user's affair.
    (folder / "of_text.py").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        model = importlib.import_module("of_text").OfText()
        model(X)
        mks.save_model(model, folder / "m", prove=False, serialization_format="source")
        patch.delitem(sys.modules, "of_text")
    return folder / "m"


def test_48_source_with_a_byte_order_mark_and_crlf_loads(by_source):
    np.testing.assert_array_equal(mks.load_model(by_source)(X), X * 2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"class OfText(:\n", "SyntaxError"),
        (b"x = '\xff'\n", "SyntaxError"),
        (b"if 1:\n\tx = 1\n        y = 1\n", "TabError"),
        (b"import no_such_package\nclass OfText(no_such_package.Model): pass\n", "no_such_package"),
        (b"raise SystemExit('bye')\n", "SystemExit: bye"),
        (b"x = 1\n", "has no attribute 'OfText'"),
    ],
    ids=["48 syntax", "48 not UTF-8", "48 tabs", "49 missing package", "50 exit", "53 without the class"],
)
def test_source_that_cannot_be_run_is_named(by_source, tmp_path, text, named):
    def edit(root):
        next((root / "keras_subclass/source").rglob("of_text.py")).write_bytes(text)

    with pytest.raises(mks.ClassDefinitionError, match=rf"of_text.OfText cannot be brought back.*({named})"):
        mks.load_model(forged(by_source, tmp_path / "m", edit))
    assert not [name for name in sys.modules if name.endswith(".of_text") and not hasattr(sys.modules[name], "OfText")]


def test_47_50_edited_source_does_not_run_before_the_check(by_source, tmp_path):
    """With new digests, it is who knows the old one that finds it."""
    canary = tmp_path / "canary"
    digest = hashlib.sha256((by_source / "keras_subclass/manifest.json").read_bytes()).hexdigest()
    known = mks.TrustPolicy(level="known", manifest_sha256=digest)

    def edit(root):
        file = next((root / "keras_subclass/source").rglob("of_text.py"))
        file.write_bytes(file.read_bytes() + f"open({str(canary)!r}, 'w').close()\n".encode())

    shutil.copytree(by_source, tmp_path / "m")
    edit(tmp_path / "m")
    with pytest.raises(mks.IntegrityError, match=r"changed: .*of_text\.py"):
        mks.load_model(tmp_path / "m")
    with pytest.raises(mks.IntegrityError, match="as the trust policy names it"):
        mks.load_model(forged(by_source, tmp_path / "forged", edit), trust_policy=known)
    assert not canary.exists()
    mks.load_model(tmp_path / "forged")
    assert canary.exists(), "the canary would sing"


def test_55_56_57_what_is_of_mlflow_does_not_change_the_model(saved, tmp_path):
    """MLmodel, requirements and environment are not covered by our manifest, and our loader follows none of them."""
    root = tmp_path / "m"
    shutil.copytree(saved[0], root)
    _mlmodel(root, lambda flavors: flavors["python_function"].update(loader_module="antigravity"))
    described = yaml.safe_load((root / "MLmodel").read_text())
    described["signature"]["inputs"] = '[{"type": "string", "name": "other"}]'
    (root / "MLmodel").write_text(yaml.safe_dump(described))
    for name in ("requirements.txt", "conda.yaml", "python_env.yaml"):
        (root / name).write_text("")

    np.testing.assert_array_equal(mks.load_model(root)(X), saved[1])
    assert "antigravity" not in sys.modules
