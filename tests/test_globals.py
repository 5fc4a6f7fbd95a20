"""A training step that uses what lies outside of the model: it goes on after a load, with the same state."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

TRAINER = """
    import keras, numpy as np, tensorflow as tf

    discriminator = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    generator_optimizer = keras.optimizers.Adam(0.01)
    discriminator_optimizer = keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), 0.9)
    trackers = {"generator": keras.metrics.Mean(), "discriminator": keras.metrics.Mean()}
    prior = np.linspace(0, 1, 300_000).astype("float32")

    class Generator(keras.Model):
        "Trains against a discriminator that is no part of it."

        def __init__(self, width):
            super().__init__()
            self.hidden, self.out = keras.layers.Dense(width, activation="tanh"), keras.layers.Dense(4)

        def call(self, x):
            return self.out(self.hidden(x))

        def train_step(self, real):
            with tf.GradientTape(persistent=True) as tape:
                scores = discriminator(tf.concat([real, self(real + prior[7])], 0))
                loss = tf.reduce_mean(scores ** 2)
                adversarial = -tf.reduce_mean(scores[tf.shape(real)[0]:])
            for item, optimizer, weights in (
                (loss, discriminator_optimizer, discriminator.trainable_weights),
                (adversarial, generator_optimizer, self.trainable_weights),
            ):
                optimizer.apply_gradients(zip(tape.gradient(item, weights), weights, strict=True))
            trackers["generator"].update_state(adversarial)
            trackers["discriminator"].update_state(loss)
            return {name: tracker.result() for name, tracker in trackers.items()}

    def trained(model):
        x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
        history = model.fit(x, epochs=2, batch_size=8, shuffle=False, verbose=0).history
        weights = [np.asarray(item).tolist() for item in (*model.weights, *discriminator.weights)]
        return {"history": history, "weights": weights}
"""

LOG = """
    import json, sys
    sys.path.insert(0, sys.argv[1])
    import mlflow_keras_subclass as mks
    import keras
    keras.utils.set_random_seed(3)
    import train
    model = train.Generator(5)
    model.compile()
    train.trained(model)
    mks.save_model(model, sys.argv[2])
    print(json.dumps({**train.trained(model), "count": model.count_params()}))
"""

LOAD = """
    import json, sys
    import mlflow_keras_subclass as mks
    import numpy as np
    model = mks.load_model(sys.argv[1], verify=True)
    variables = type(model).train_step.__globals__
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    history = model.fit(x, epochs=2, batch_size=8, shuffle=False, verbose=0).history
    weights = [np.asarray(item).tolist() for item in (*model.weights, *variables["discriminator"].weights)]
    mks.save_model(model, sys.argv[2])
    print(json.dumps({"history": history, "weights": weights}))
"""

OWN = """
    import json, sys
    sys.path.insert(0, sys.argv[1])
    import mlflow_keras_subclass as mks
    import numpy as np, train
    before = [item.numpy() for item in train.discriminator.weights]
    model = mks.load_model(sys.argv[2], custom_objects={"Generator": train.Generator})
    same = all(np.array_equal(a, b.numpy()) for a, b in zip(before, train.discriminator.weights, strict=True))
    print(json.dumps({"own": isinstance(model, train.Generator), "untouched": same}))
"""


def run(script: str, *arguments: Path) -> tuple[Any, str]:
    command = [sys.executable, "-I", "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    root = tmp_path_factory.mktemp("globals")
    (root / "project").mkdir()
    (root / "project" / "train.py").write_text(textwrap.dedent(TRAINER))
    return root, run(LOG, root / "project", root / "model")[0]


def test_training_goes_on_with_the_state_of_globals(logged: tuple[Path, Any]) -> None:
    """Weights of a global model, slots of global optimizers, a schedule, metrics in a dict, a large array."""
    root, expected = logged
    found, _ = run(LOAD, root / "model", root / "again")

    assert found["history"] == expected["history"]
    assert found["weights"] == expected["weights"]
    config = json.loads((root / "again" / "keras_subclass" / "config.json").read_text())
    assert sorted(config["globals"]) == [
        "train.discriminator",
        "train.discriminator_optimizer",
        "train.generator_optimizer",
        "train.prior",
        "train.trackers",
    ]


def test_globals_are_named_and_sized_and_not_in_the_pickle(logged: tuple[Path, Any]) -> None:
    """A reader sees what travels with the model; its own parameters are counted without."""
    root, expected = logged
    card = (root / "model" / "README.md").read_text()
    assert (root / "model" / "keras_subclass" / "class.cloudpickle").stat().st_size < 50_000
    assert "`train.discriminator` (Sequential, 19 parameters)" in card
    assert "`train.prior` (array, 1,200,000 bytes)" in card
    assert f"{expected['count']:,}" in card


def test_a_class_of_the_callers_own_reads_its_own_globals(logged: tuple[Path, Any]) -> None:
    """They are not overwritten, and it is said that the stored ones are not used."""
    root, _ = logged
    found, errors = run(OWN, root / "project", root / "model")

    assert found == {"own": True, "untouched": True}
    assert "train.discriminator" in errors
