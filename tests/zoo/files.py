"""Models whose constructors read files that are gone when they are loaded."""

import tempfile
from pathlib import Path

import keras
import numpy as np

from zoo import case
from zoo.arguments import X

IMAGES = np.linspace(0, 1, 2 * 32 * 32 * 3, dtype="float32").reshape(2, 32, 32, 3)
FOLDER = Path(tempfile.gettempdir(), "a folder of the training machine")


def kept(model, name):
    """Write the weights of ``model`` where the constructor looks for them."""
    FOLDER.mkdir(exist_ok=True)
    model.save_weights(FOLDER / name)


def gone(model, *inputs):
    """The model called, after its files were taken away."""
    model(*inputs)
    for path in FOLDER.iterdir():
        path.unlink()
    FOLDER.rmdir()
    return model, inputs


def base(weights):
    return keras.applications.MobileNetV2((32, 32, 3), 0.35, include_top=False, pooling="avg", weights=weights)


class Transfer(keras.Model):
    def __init__(self, classes):
        super().__init__()
        self.base = base(str(FOLDER / "base.weights.h5"))
        self.base.trainable = False
        self.out = keras.layers.Dense(classes)

    def call(self, x):
        return self.out(self.base(x, training=False))


@case()
def pretrained_application():
    kept(base(None), "base.weights.h5")
    return gone(Transfer(3), IMAGES)


def encoder():
    return keras.Sequential([keras.Input((X.shape[1],)), keras.layers.Dense(4, activation="tanh")])


class Warm(keras.Model):
    """Starts from weights of another training, and reads a number off them."""

    def __init__(self):
        super().__init__()
        self.encoder = encoder()
        self.encoder.load_weights(FOLDER / "encoder.weights.h5")
        self.scale = float(np.abs(self.encoder.get_weights()[0]).mean())
        self.out = keras.layers.Dense(1)

    def call(self, x):
        return self.out(self.encoder(x)) * self.scale


@case()
def weights_loaded_in_the_constructor():
    kept(encoder(), "encoder.weights.h5")
    return gone(Warm(), X)
