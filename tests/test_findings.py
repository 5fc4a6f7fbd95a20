"""One error lists everything that keeps a model from coming back, each with the line of the user's source."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zoo import CASES, modules, names_of_cases

import mlflow_keras_subclass as mks

X = np.ones((2, 3), "float32")

NET = """
import keras

class Net(keras.Model):
    def __init__(self, tensor, generator, units=2):
        super().__init__()
        self.dense = keras.layers.Dense(units)
        self.layer_set = {
            keras.layers.Dense(2),
            keras.layers.Dense(2),
        }
        self.writer = None

    def call(self, x):
        return sum(layer(self.dense(x)) for layer in self.layer_set)

class Plain(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)
        self.writer = None

    def call(self, x):
        return self.dense(x)
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("source")
    (folder / "findings_net.py").write_text(NET)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("findings_net")


def test_all_findings_in_one_error_with_their_lines(net: Any, tmp_path: Path) -> None:
    """Two arguments that cannot be stored, a set of layers, and a loss: nothing is left for the second try."""
    import keras

    symbolic = keras.Input((3,))
    model = net.Net(symbolic, {"deep": [symbolic]})
    model.compile("sgd", loss=symbolic)
    model(X)

    with pytest.raises(mks.CaptureError) as caught:
        mks.save_model(model, tmp_path / "m")

    found = {finding.path: finding for finding in caught.value.findings}
    assert found["layer_set"].source == "findings_net.py:8"
    assert found["argument(0)"].source == "findings_net.py:5"
    assert {"argument(1)['deep'][0]", "compile(loss)"} <= found.keys()
    for finding in found.values():
        assert str(finding) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_put_on_afterwards_and_has_no_data_form_is_named(
    net: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not come back, and nobody has to find that out later."""
    model = net.Plain()
    model(X)
    model.writer = iter([1])
    with caplog.at_level(logging.WARNING, "mlflow_keras_subclass"):
        mks.save_model(model, tmp_path / "m")

    assert "Plain: these attributes were set after construction" in caplog.text
    assert "writer" in caplog.text
    assert mks.load_model(tmp_path / "m").writer is None


# Where the finding of each refused case of the zoo is, and what stands on the line of the source that it names.
REFUSED = {
    "activation_swapped_for_a_lambda": ("activation", "self.activation = "),
    "lambda_that_call_does_not_reach_swapped": ("score", "self.score = "),
    "layer_added_that_nothing_describes": ("head", "self.head = None"),
    "model_grown_after_construction": ("layers[0]", "def __init__(self, stages"),
    "never_called": ("model", "def __init__(self):"),
    "set_of_layers": ("layer_set", "self.layer_set = {"),
}


def test_every_case_that_is_refused_has_its_line() -> None:
    assert {name for name, refused in names_of_cases("tensorflow") if refused} == REFUSED.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_check_finds_before_training_what_is_refused_when_it_is_logged(name: str) -> None:
    (module,) = [module for module, source in modules("tensorflow") if name in {_name(node) for node in source.body}]
    defined = importlib.import_module(f"zoo.{module}")
    model, _ = CASES[name].build()

    result = mks.check(model)

    assert not result.ok
    (finding,) = result.findings
    path, text = REFUSED[name]
    assert finding.path == path
    assert str(CASES[name].refused) in str(finding)
    file, _, line = str(finding.source).partition(":")
    assert file == f"{module}.py"
    assert text in Path(str(defined.__file__)).read_text(encoding="utf-8").splitlines()[int(line) - 1]


def test_check_calls_a_model_that_was_never_called() -> None:
    importlib.import_module("zoo.structure")
    model, inputs = CASES["never_called"].build()

    assert mks.check(model, inputs[0]).ok


def _name(node: Any) -> str:
    return str(getattr(node, "name", ""))
