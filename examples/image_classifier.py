"""An image classifier with layers of its own and constructor arguments, on scikit-learn's digits.

It is trained, logged, loaded where this file cannot be imported, and served.
"""

from __future__ import annotations

import keras
import mlflow
import numpy as np
from elsewhere import in_fresh_process, require_equal, score, serving, use_local_store
from sklearn.datasets import load_digits

import mlflow_keras_subclass as mks


class ResidualBlock(keras.layers.Layer):
    """Two convolutions beside a shortcut."""

    def __init__(self, filters, dropout):
        super().__init__()
        self.first = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")
        self.second = keras.layers.Conv2D(filters, 3, padding="same")
        self.shortcut = keras.layers.Conv2D(filters, 1)
        self.dropout = keras.layers.Dropout(dropout)

    def call(self, features, training=False):
        changed = self.dropout(self.second(self.first(features)), training=training)
        return keras.ops.relu(self.shortcut(features) + changed)


class AttentionPooling(keras.layers.Layer):
    """One vector for an image: the mean over its places, each weighted by what is there."""

    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature
        self.score = keras.layers.Dense(1)

    def call(self, features):
        places = keras.ops.reshape(features, (-1, features.shape[1] * features.shape[2], features.shape[3]))
        weights = keras.ops.softmax(self.score(places) / self.temperature, axis=1)
        return keras.ops.sum(places * weights, axis=1)


class DigitClassifier(keras.Model):
    """Probabilities of the ten digits for images of 8 x 8 pixels."""

    def __init__(self, filters, *, temperature=1.0, dropout=0.1):
        super().__init__()
        self.blocks = [ResidualBlock(count, dropout) for count in filters]
        self.pool = AttentionPooling(temperature)
        self.head = keras.layers.Dense(10, activation="softmax")

    def call(self, images, training=False):
        features = images / 16.0
        for block in self.blocks:
            features = block(features, training=training)
        return self.head(self.pool(features))


def train(epochs: int = 10) -> tuple[DigitClassifier, np.ndarray, float]:
    """The trained model, the images that it never saw, and its accuracy on them."""
    digits = load_digits()
    images = digits.images.astype(np.float32)[..., None]
    keras.utils.set_random_seed(1)
    model = DigitClassifier([16, 32], temperature=0.5)
    model.compile(keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images[:1400], digits.target[:1400], epochs=epochs, verbose=0)
    accuracy = model.evaluate(images[1400:], digits.target[1400:], verbose=0)[1]
    return model, images[1400:], accuracy


def main() -> None:
    use_local_store("image-classifier")
    model, images, accuracy = train()
    print(f"Accuracy on {len(images)} images that it never saw: {accuracy:.3f}")

    with mlflow.start_run():
        mlflow.log_metric("accuracy", accuracy)
        info = mks.log_model(model, name="digits", input_example=images[:2])
    print(f"Logged as {info.model_uri}")

    reloaded = in_fresh_process(info.model_uri, images, source=__file__)
    require_equal(model.predict(images, verbose=0), reloaded.native)
    print("A process that cannot import this file predicts the same, bit for bit.")

    with serving(info.model_uri) as url:
        answer = score(url, images)
    require_equal(reloaded.pyfunc, answer)
    print(f"So does the scoring server: {answer[:8].argmax(axis=1).tolist()} are the first digits.")


if __name__ == "__main__":
    main()
