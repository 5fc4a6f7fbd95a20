"""Hypothesis writes subclassed models: nesting, containers, sharing, dtypes, arguments, structures of inputs, outputs.

Each is a module of source text; it is imported, built and saved, the module is taken away, and the model must come back
bit for bit by both routes. ``make test-random`` tries many more.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

import mlflow_keras_subclass as mks
from mlflow_keras_subclass import model_dir
from mlflow_keras_subclass.trust import TrustPolicy, verify

WIDTH = 4
EXAMPLES = int(os.environ.get("MKS_EXAMPLES", "20"))

HEAD = """
import collections, dataclasses
import keras
import numpy as np

Pair = collections.namedtuple("Pair", ["first", "second"])

@dataclasses.dataclass
class Settings:
    units: int
    rate: float = 0.5

class Scale(keras.layers.Layer):
    def __init__(self, factor, early=False):
        super().__init__()
        self.factor = factor
        self.weight = self.add_weight(shape=(4,), initializer="ones", name="early") if early else None
    def build(self, shape):
        if self.weight is None:
            self.weight = self.add_weight(shape=(shape[-1],), initializer="random_normal", name="late")
    def call(self, x):
        return x * self.weight * self.factor
"""

LAYERS = st.sampled_from(
    [
        "keras.layers.Dense(4)",
        "keras.layers.Dense(4, activation='tanh', use_bias=False)",
        "keras.layers.Dense(4, activation=lambda x: x * 0.5)",
        "keras.layers.BatchNormalization()",
        "keras.layers.LayerNormalization()",
        "keras.layers.Dropout(0.3)",
        "keras.layers.Dropout(0.3, seed=5)",
        "Scale(2.0)",
        "Scale(factor=0.5, early=True)",
        "keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(4)])",
        "keras.Sequential([keras.Input((4,)), Scale(3.0), keras.layers.Dense(4)])",
        "keras.layers.Dense(4, dtype='float64')",
        "keras.layers.Dense(4, dtype='mixed_bfloat16')",
    ]
)
# How a block keeps its layers, and how it goes through them.
HOLDERS = {
    "attributes": ("self.l{0} = {1}", "[{0}]", "self.l{0}"),
    "list": ("self.items.append({1})", "self.items", None),
    "nested list": ("self.items.append([{1}])", "[inner for outer in self.items for inner in outer]", None),
    "dict": ("self.table['k{0}'] = {1}", "self.table.values()", None),
    "tuple": ("self.fixed = (*self.fixed, {1})", "self.fixed", None),
    "plain object": ("self.holder.items.append({1})", "self.holder.items", None),
}
START = {
    "attributes": "pass",
    "list": "self.items = []",
    "nested list": "self.items = []",
    "dict": "self.table = {}",
    "tuple": "self.fixed = ()",
    "plain object": "self.holder = Holder()",
}
# The constructor's parameters, an expression of an int of them, and how it is called.
ARGUMENTS = [
    ("self, units", "units", "({0})"),
    ("self, units=1, **kwargs", "units", "(units={0})"),
    ("self, *sizes", "sum(sizes)", "({0}, 0)"),
    ("self, units, /", "units", "({0})"),
    ("self, config", "config['a']['units']", "({{'a': {{'units': {0}}}, 'b': (1, None)}})"),
    ("self, settings", "settings.units", "(Settings({0}))"),
    ("self, pair", "pair.first", "(Pair({0}, 'x'))"),
    ("self, array", "int(array.sum())", "(np.array([{0}]))"),
    ("self, table", "table[{0}]", "({{{0}: {0}}})"),
    ("self, units, function=None", "function(units)", "({0}, lambda value: value)"),
]
INPUTS = {
    "single": ("self, x", "x", (0,)),
    "training": ("self, x, training=False", "x", (0,)),
    "two": ("self, x, y", "x + y", (0, 1)),
    "optional": ("self, x, y=None", "x if y is None else x - y", (0,)),
    "dict": ("self, inputs", "inputs['a'] * inputs['b']", {"a": 0, "b": 1}),
    "nested": ("self, inputs", "inputs['a']['b'] + inputs['c'][1]", {"a": {"b": 0}, "c": [1, 2]}),
    "list": ("self, inputs", "inputs[0] + inputs[1]", [0, 1]),
}
OUTPUTS = ["x", "(x, x * 2.0)", "{'main': x, 'aux': [x[:, 0], x]}", "[x]"]


@st.composite
def blocks(draw: st.DrawFn, number: int) -> tuple[str, str]:
    """The source of one layer class, and how to construct it."""
    holder = draw(st.sampled_from(sorted(HOLDERS)))
    layers = draw(st.lists(LAYERS, min_size=1, max_size=3))
    parameters, units, call = draw(st.sampled_from(ARGUMENTS))
    width = draw(st.integers(1, 5))
    put, through, attribute = HOLDERS[holder]
    lines = [START[holder], *(put.format(index, layer) for index, layer in enumerate(layers))]
    names = ", ".join(str(attribute).format(index) for index in range(len(layers)))
    through = f"[{names}]" if attribute is not None else through
    shared = draw(st.booleans())
    body = f"""
class Block{number}(keras.layers.Layer):
    def __init__({parameters}):
        super().__init__()
        self.inner = keras.layers.Dense({units.format(width)})
        self.outer = keras.layers.Dense(4)
        {"".join(chr(10) + "        " + line for line in lines).strip()}
    def call(self, x):
        for layer in {through}:
            x = layer(x)
        x = self.outer(self.inner(x))
        return {"x + self.outer(self.inner(x))" if shared else "x"}
"""
    return body, f"Block{number}{call.format(width)}"


@st.composite
def modules(draw: st.DrawFn) -> tuple[str, Any]:
    """The source of a module with a class ``Net``, and the structure of its inputs."""
    parts = [draw(blocks(number)) for number in range(draw(st.integers(1, 3)))]
    made = [construct for _, construct in parts]
    signature, combined, structure = INPUTS[draw(st.sampled_from(sorted(INPUTS)))]
    passed = draw(st.booleans())
    frozen = draw(st.booleans())
    text = HEAD + "\nclass Holder:\n    def __init__(self):\n        self.items = []\n"
    text += "".join(body for body, _ in parts)
    text += f"""
class Net(keras.Model):
    def __init__({"self, stages" if passed else "self"}):
        super().__init__()
        self.stages = {"stages" if passed else "[" + ", ".join(made) + "]"}
        self.seen = 0
    def call({signature}):
        x = keras.ops.cast({combined}, "float32")
        for stage in self.stages:
            x = keras.ops.cast(stage(x), "float32")
        return {draw(st.sampled_from(OUTPUTS))}

def make():
    return Net({"[" + ", ".join(made) + "]" if passed else ""})

FROZEN = {frozen}
"""
    return text, structure


def filled(structure: Any) -> Any:
    if isinstance(structure, int):
        return np.random.default_rng(structure).normal(size=(3, WIDTH)).astype("float32")
    if isinstance(structure, dict):
        return {key: filled(item) for key, item in structure.items()}
    return type(structure)(filled(item) for item in structure)


def arrays(value: Any) -> list[Any]:
    return [np.asarray(item) for item in keras.tree.flatten(value)]


@settings(
    max_examples=EXAMPLES,
    phases=[Phase.generate],
    deadline=None,
    derandomize="MKS_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(modules())
def test_a_random_model_comes_back(case: tuple[str, Any]) -> None:
    text, structure = case
    note(text)
    folder = Path(tempfile.mkdtemp())
    name = f"random_{folder.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(name)
        model = module.make()
        inputs = filled(structure)
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        model(*inputs)
        for number, variable in enumerate(model.variables):
            if "float" in str(variable.dtype):
                variable.assign(variable + 0.01 * (number + 1))
        if module.FROZEN:
            model.stages[0].trainable = False
        model.seen = 7
        expected = arrays(model(*inputs))
        mks.save_model(model, folder / "m", prove=False)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(name, None)
        (folder / f"{name}.py").unlink()

    routes = ["cloudpickle"] if "lambda" in text else ["cloudpickle", "source"]
    for route in routes:
        loaded = model_dir.rebuild(verify(folder / "m", TrustPolicy()), route=route)
        assert type(loaded) is not type(model)
        assert loaded.seen == 7
        pairs = list(zip(model.variables, loaded.variables, strict=True))
        assert all((a.name, a.trainable, a.dtype) == (b.name, b.trainable, b.dtype) for a, b in pairs)
        assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
        found = arrays(loaded(*inputs))
        assert [item.dtype for item in found] == [item.dtype for item in expected]
        assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
    shutil.rmtree(folder)
