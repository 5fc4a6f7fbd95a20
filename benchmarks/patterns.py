"""Subclassed models as people write them, for ``comparison.py``.

Imported where models are stored; where they are loaded only if the way of storing them ships this file or needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import keras
import mlflow
import tensorflow as tf


class NoArgument(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)


class RequiredArgument(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.dense = keras.layers.Dense(units)

    def call(self, x):
        return self.dense(x)


class DefaultsChanged(keras.Model):
    def __init__(self, units=3, temperature=1.0, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(units)
        self.temperature = temperature

    def call(self, x):
        return self.dense(x) / self.temperature


class CustomLayer(keras.layers.Layer):
    def __init__(self, param1, param2):
        super().__init__()
        self.dense = keras.layers.Dense(param1)
        self.param2 = param2

    def call(self, x):
        return self.dense(x) * self.param2


class DictArgument(keras.Model):
    def __init__(self, config):
        super().__init__()
        self.custom_layer = CustomLayer(**config["custom_layer"])

    def call(self, x):
        return self.custom_layer(x)


class Backbone:
    """No Keras class: Keras does not look into it."""

    def __init__(self):
        self.dense = keras.layers.Dense(8)


class HiddenLayer(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.backbone = Backbone()
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(self.backbone.dense(x))


class AttributeSetLater(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(3)
        self.threshold = 0.0

    def call(self, x):
        return keras.ops.maximum(self.dense(x), self.threshold)


class OwnTrainStep(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(1)
        self.noise = keras.random.SeedGenerator(1)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            noisy = x + keras.random.normal(keras.ops.shape(x), stddev=0.1, seed=self.noise)
            loss = keras.ops.mean(keras.ops.square(y - self(noisy, training=True)))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


class Text(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.vectorize = keras.layers.TextVectorization(output_sequence_length=4)
        self.embed = keras.layers.Embedding(20, 3)

    def call(self, texts):
        return keras.ops.mean(self.embed(self.vectorize(texts)), axis=1)


class Dropout(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(16, activation="relu")
        self.dropout = keras.layers.Dropout(0.5)
        self.out = keras.layers.Dense(1)

    def call(self, x, training=False):
        return self.out(self.dropout(self.hidden(x), training=training))


@keras.saving.register_keras_serializable()
class ByTheBook(keras.Model):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = keras.layers.Dense(units)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Case(NamedTuple):
    """A model, and what is special about it."""

    description: str
    build: Callable[[], keras.Model]
    text: bool = False
    trains: bool = False


def attribute_set_later():
    model = AttributeSetLater()
    model.threshold = 0.25
    return model


def text():
    model = Text()
    model.vectorize.adapt(["a good film", "a bad film", "good"])
    return model


CASES = {
    "no argument": Case("`Model()`", NoArgument),
    "required argument": Case("`Model(5)`", lambda: RequiredArgument(5)),
    "defaults changed": Case(
        "`Model(temperature=7.0)`, where all arguments have defaults; takes `**kwargs`",
        lambda: DefaultsChanged(temperature=7.0),
    ),
    "dict argument": Case(
        '`Model({"custom_layer": {"param1": 10, "param2": 0.5}})`',
        lambda: DictArgument({"custom_layer": {"param1": 10, "param2": 0.5}}),
    ),
    "layer in a plain object": Case("a layer is an attribute of an object that is no Keras class", HiddenLayer),
    "attribute set later": Case("`model.threshold = 0.25` after construction", attribute_set_later),
    "own `train_step`": Case(
        "draws noise from a `SeedGenerator`; training goes on afterwards", OwnTrainStep, trains=True
    ),
    "`TextVectorization`": Case("adapted; strings go in", text, text=True),
    "dropout": Case("training goes on afterwards with the next random numbers", Dropout, trains=True),
    "by the book": Case("registered, takes `**kwargs`, overrides `get_config`", lambda: ByTheBook(5)),
}

CLASSES = {
    item.__name__: item
    for item in list(globals().values())
    if isinstance(item, type) and issubclass(item, keras.layers.Layer)
}


class Predictor(mlflow.pyfunc.PythonModel):
    """How a model is handed to ``mlflow.pyfunc``."""

    def __init__(self, model):
        self.model = model

    def predict(self, context, model_input, params=None):
        return self.model.predict(model_input, verbose=0)
