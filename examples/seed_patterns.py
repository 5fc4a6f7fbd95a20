"""Three ways in which people write subclassed models, none of which has to be changed.

No class overrides ``get_config``, takes ``**kwargs`` or is registered with Keras.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import keras
import mlflow
import numpy as np
from elsewhere import in_fresh_process, require_equal, score, serving, use_local_store
from sklearn.datasets import load_diabetes

import mlflow_keras_subclass as mks


class SimpleModel(keras.Model):
    """No arguments."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(16, activation="relu")
        self.out = keras.layers.Dense(1)

    def call(self, x):
        return self.out(self.hidden(x))


class CustomLayer(keras.layers.Layer):
    """A layer of the user's own."""

    def __init__(self, param1, param2):
        super().__init__()
        self.dense = keras.layers.Dense(param1, activation="relu")
        self.param2 = param2

    def call(self, x):
        return self.dense(x) * self.param2


class ComplexModel(keras.Model):
    """One argument, a dict: Keras and MLflow's own flavors cannot even save it."""

    def __init__(self, config):
        super().__init__()
        self.custom_layer = CustomLayer(**config["custom_layer"])
        self.out = keras.layers.Dense(1)

    def call(self, x):
        return self.out(self.custom_layer(x))


class ScaledModel(keras.Model):
    """``model.save()`` appears to work, but it stores the default of ``scale`` and the file cannot be loaded."""

    def __init__(self, units=16, scale=1.0):
        super().__init__()
        self.dense = keras.layers.Dense(units, activation="relu")
        self.out = keras.layers.Dense(1)
        self.scale = scale

    def call(self, x):
        return self.out(self.dense(x)) * self.scale


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    data, target = load_diabetes(return_X_y=True)
    return data.astype(np.float32), target.astype(np.float32)


def train(epochs: int = 5) -> tuple[list[keras.Model], np.ndarray]:
    """The three models, trained on the diabetes data, and its features."""
    features, target = diabetes()
    keras.utils.set_random_seed(5)
    models = [SimpleModel(), ComplexModel({"custom_layer": {"param1": 10, "param2": 0.5}}), ScaledModel(scale=100.0)]
    for model in models:
        model.compile("adam", "mse")
        model.fit(features, target, epochs=epochs, verbose=0)
    return models, features


def by_way_of_keras_file(model: ScaledModel) -> str:
    """What becomes of the model that way, even with its class at hand."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        try:
            copy = keras.models.load_model(path, custom_objects={"ScaledModel": ScaledModel})
        except TypeError as error:
            return f"load_model() raises {type(error).__name__}"
        return f"load_model() returns one with scale={copy.scale}"


def main() -> None:
    use_local_store("seed-patterns")
    models, features = train()
    for model in models:
        name = type(model).__name__
        with mlflow.start_run():
            info = mks.log_model(model, name=name, input_example=features[:2])
        reloaded = in_fresh_process(info.model_uri, features, source=__file__)
        require_equal(model.predict(features, verbose=0), reloaded.native)
        with serving(info.model_uri) as url:
            require_equal(reloaded.pyfunc, score(url, features))
        print(f"{name}: a process without this file predicts the same, bit for bit; so does the scoring server.")

    outcome = by_way_of_keras_file(models[-1])
    print(
        f"For comparison: model.save() of ScaledModel(scale={models[-1].scale}) succeeds, then keras.models.{outcome}."
    )


if __name__ == "__main__":
    main()
