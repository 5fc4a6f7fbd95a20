"""The class definition of real Keras models: written in one process, read in another where the source is gone or lies.

Two processes that import TensorFlow do all the work; the tests look at what they reported.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

LAYERS = """
    import keras
    @keras.saving.register_keras_serializable("p40")
    class Scaled(keras.layers.Layer):
        def __init__(self, factor=2.0, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor
        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], 2), name="w")
        def call(self, x):
            return keras.ops.matmul(x, self.w) * self.factor
        def get_config(self):
            return {**super().get_config(), "factor": self.factor}
    """

FILES = {
    "p40/__init__.py": "from .net import Net\n",
    "p40/layers.py": LAYERS,
    "p40/net.py": """
        import keras
        from keras import layers as L, ops
        from p40 import layers
        INIT = keras.initializers.HeNormal(seed=1)
        REG = keras.regularizers.L2(1e-4)
        LOSS = keras.losses.MeanSquaredError()
        @keras.saving.register_keras_serializable("p40")
        class Net(keras.Model):
            def __init__(self, units=3):
                super().__init__()
                self.dense = L.Dense(units, kernel_initializer=INIT, kernel_regularizer=REG)
                self.scaled = layers.Scaled(3.0)
            def call(self, x):
                return ops.relu(self.scaled(self.dense(x))) + LOSS(x, x)
        """,
    "s41.py": """
        import tensorflow as tf
        from tensorflow import keras
        TABLE = tf.constant([1.0, 2.0])
        STEP = tf.Variable(3.0)
        class Net(keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = tf.keras.layers.Dense(2, kernel_initializer=keras.initializers.Ones())
            def call(self, x):
                return tf.nn.relu(self.dense(x)) * TABLE + STEP
        """,
    "s42.py": """
        import keras, tensorflow as tf
        class Net(keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = keras.layers.Dense(1)
                self.dense.build((None, 3))  # Inside tf.function, Keras traces the initial values of new weights.
            @tf.function
            def call(self, x):
                y = self.dense(x)
                if tf.reduce_sum(y) > 0:
                    y = y * 2.0
                else:
                    y = y - 1.0
                return y
        """,
    "s43.py": """
        import keras
        from keras.saving import register_keras_serializable
        BACKBONE = keras.Sequential([keras.layers.Dense(2)])
        @register_keras_serializable()
        def act(x):
            return keras.ops.tanh(x) * 2
        def unused():
            return BACKBONE
        class Metric(keras.metrics.Mean):
            def update_state(self, y, p, sample_weight=None):
                return super().update_state(keras.ops.abs(y - p))
        class Net(keras.Model):
            metric_class = Metric
            def __init__(self, fn=act):
                super().__init__()
                self.d = keras.layers.Dense(2, activation=fn)
            def call(self, x, training=False):
                return self.d(x)
            def train_step(self, data):
                return super().train_step(data)
        """,
    "s44.py": """
        import keras, numpy as np, tensorflow as tf
        BACKBONE = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
        NORM = {"n": keras.layers.Normalization()}
        EMBEDDING = tf.ones((600, 600))
        WEIGHT = keras.Variable(np.ones((600, 600), "float32"))
        MEAN = keras.metrics.Mean()
        class Helper:
            def __init__(self):
                self.layer = keras.layers.Dense(2)
        HELPER = Helper()
        class Net(keras.Model):
            def call(self, x, *, norm=keras.layers.Dense(2)):
                y = BACKBONE(NORM["n"](x)) + EMBEDDING[0, 0] + WEIGHT[0, 0] + MEAN.result()
                return HELPER.layer(y)
        """,
    "script45.py": """
        import os, sys
        import keras
        SCALE = 4.0
        class Net(keras.Model):
            def __init__(self):
                super().__init__()
                self.d = keras.layers.Dense(2)
            def call(self, x):
                return self.d(x) * SCALE
        """,
}

ROOTS = {"registered package": "p40.net", "tensorflow.keras": "s41", "autograph": "s42", "functions and metrics": "s43"}

COMMON = """
import dataclasses, importlib, json, os, sys, traceback
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from pathlib import Path
root, repository = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, repository)
import keras, numpy as np
from mlflow_keras_subclass.artifacts import class_definition
from mlflow_keras_subclass.artifacts.class_definition import DefinitionRecord
from mlflow_keras_subclass.errors import ClassDefinitionError
from mlflow_keras_subclass.files import ArtifactWriter

class Folder:
    def __init__(self, folder):
        self.folder = folder
    def names(self):
        return tuple(sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file()))
    def read_bytes(self, name):
        return (self.folder / name).read_bytes()

def value(cls):
    model = cls()
    x = np.array([[1.0, 2.0, -3.0], [0.5, -1.0, 4.0]], "float32")
    model(x)
    for number, weight in enumerate(model.weights):
        weight.assign(np.linspace(-1, 1, int(np.prod(weight.shape)), dtype="float32").reshape(weight.shape) + number)
    return np.asarray(model(x)).tolist()

def state():
    return dict(keras.saving.get_custom_objects()), list(sys.path)

report = {}
"""

WRITER = (
    COMMON
    + """
sys.path.insert(0, str(root / "projects"))
for name, module in json.loads((root / "roots.json").read_text()).items():
    try:
        module = importlib.import_module(module)
        definitions = {k: v for k, v in vars(module).items() if class_definition.is_user_defined(v) and k != "unused"}
        registrations = {keras.saving.get_registered_name(v): k for k, v in definitions.items()}
        before = state()
        surveyed = class_definition.survey(
            definitions, registrations=registrations, objects={"fn": lambda x: keras.ops.relu(x) * 3},
        )
        written = class_definition.write(ArtifactWriter(root / "artifacts", name), surveyed)
        live = module.Net
        calls = vars(live)["call"]
        report[name] = {"value": value(live), "record": written.record.to_json(), "keys": sorted(definitions)}
        for route in ("cloudpickle", "source"):
            record = dataclasses.replace(written.record, serialization_format=route)
            back = class_definition.read(record, Folder(root / "artifacts" / name))
            assert back.definitions["Net"] is not live and vars(live)["call"] is calls
            assert value(back.definitions["Net"]) == report[name]["value"], route
        assert state() == before
        assert {keras.saving.get_registered_name(v): k for k, v in definitions.items()} == registrations
    except BaseException:
        report[name] = {"error": traceback.format_exc()}
import s44
surveyed = class_definition.survey({"Net": s44.Net}, objects={}, registrations={})
report["globals"] = {name: type(value).__name__ for name, value in surveyed.global_values.items()}
for route in ("cloudpickle", "source"):
    try:
        surveyed = class_definition.survey(
            {"Net": s44.Net}, objects={}, registrations={}, serialization_format=route
        )
        class_definition.write(ArtifactWriter(root / "artifacts", "refused"), surveyed)
    except ClassDefinitionError as error:
        report[f"refused {route}"] = str(error)
(root / "written.json").write_text(json.dumps(report))
"""
)

READER = (
    COMMON
    + """
sys.path.insert(0, str(root / "projects"))
written = json.loads((root / "written.json").read_text())
for name in json.loads((root / "roots.json").read_text()):
    for route in ("cloudpickle", "source"):
        try:
            record = DefinitionRecord.from_json(written[name]["record"])
            before = state()
            modules = set(sys.modules)
            record = dataclasses.replace(record, serialization_format=route)
            back = class_definition.read(record, Folder(root / "artifacts" / name))
            new = {m.partition(".")[0] for m in set(sys.modules) - modules if not m.startswith(("keras", "tensorflow"))}
            assert state() == before
            report[f"{name}/{route}"] = {
                "value": value(back.definitions["Net"]), "new": sorted(new),
                "registrations": dict(back.registrations), "fn": float(back.objects["fn"](2.0)),
            }
        except BaseException:
            report[f"{name}/{route}"] = {"error": traceback.format_exc()}
(root / "read.json").write_text(json.dumps(report))
"""
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    root = tmp_path_factory.mktemp("keras")
    for path, text in FILES.items():
        file = root / "projects" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text).lstrip())
    (root / "roots.json").write_text(json.dumps(ROOTS))
    isolated(WRITER, str(root), str(REPOSITORY))
    for path in FILES:
        (root / "projects" / path).unlink()
    # Autograph would execute this text, were it not for the stored one.
    edited = textwrap.dedent(FILES["s42.py"]).lstrip().replace("y * 2.0", "y * 100.0").replace("y - 1.0", "y - 50.0")
    (root / "projects" / "s42.py").write_text(edited)
    isolated(READER, str(root), str(REPOSITORY))
    return json.loads((root / "written.json").read_text()), json.loads((root / "read.json").read_text())


def isolated(script: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-I", "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("route", ["cloudpickle", "source"])
@pytest.mark.parametrize("name", ROOTS)
def test_model_is_the_same_elsewhere(outcome: Any, name: str, route: str) -> None:
    """The class gives equal predictions where its source is gone, and Keras' registries stay as they were."""
    written, read = outcome[0][name], outcome[1][f"{name}/{route}"]
    assert "error" not in written, written["error"]
    assert written["record"]["routes"][route] == ""
    assert "error" not in read, read["error"]
    assert read["value"] == written["value"]
    assert read["fn"] == 6.0
    assert not {"p40", "s41", "s42", "s43"} & set(read["new"])


def test_registrations_come_back(outcome: Any) -> None:
    """The names under which Keras knew the classes are carried along; unpickling does not run decorators."""
    read = outcome[1]["registered package/cloudpickle"]
    assert read["registrations"] == {"p40>Net": "Net"}
    assert outcome[1]["functions and metrics/source"]["registrations"]["Custom>act"] == "act"


def test_third_party_is_recorded(outcome: Any) -> None:
    """The requirements can be made from what the user's modules import.

    Python 3.13 knows the text of a program that was given with -c, where the stored lambda is from: its imports count.
    """
    found = [set(outcome[0][name]["record"]["third_party"]) for name in ("tensorflow.keras", "registered package")]
    if sys.version_info < (3, 13):
        assert found == [{"tensorflow"}, {"keras"}]
    else:
        program = {"keras", "mlflow_keras_subclass", "numpy"}
        assert found[0] >= {"tensorflow"} | program
        assert found[1] >= program


def test_live_keras_objects_and_large_arrays_are_not_in_the_pickle(outcome: Any) -> None:
    """Whoever writes the model stores them beside it."""
    assert outcome[0]["globals"] == {
        "s44.BACKBONE": "Sequential",
        "s44.EMBEDDING": "EagerTensor",
        "s44.HELPER": "Helper",
        "s44.MEAN": "Mean",
        "s44.NORM": "dict",
    }


@pytest.mark.parametrize(
    ("route", "text"),
    [
        ("cloudpickle", "s44.WEIGHT is a Variable of 1.4 MB (1440000 bytes)"),
        ("cloudpickle", "s44.Net.call (its default 'norm') is a live Keras layer (Dense)"),
        (
            "source",
            "s44.BACKBONE, s44.EMBEDDING, s44.HELPER, s44.MEAN, s44.NORM: running the text would make them anew",
        ),
    ],
)
def test_what_holds_state_and_cannot_travel_is_refused(outcome: Any, route: str, text: str) -> None:
    """A variable, a layer as the default of an argument; by the source route everything with a state."""
    assert text in outcome[0][f"refused {route}"]
