"""A variational autoencoder with a ``train_step`` of its own, on scikit-learn's digits.

It is logged in the middle of training. What comes back goes on training from there, exactly as the original does:
``train_step``, optimizer state, metrics and the state of the random numbers are all part of it.
"""

from __future__ import annotations

import keras
import mlflow
import numpy as np
import tensorflow as tf
from elsewhere import in_fresh_process, require_equal, use_local_store
from sklearn.datasets import load_digits

import mlflow_keras_subclass as mks


class VariationalAutoencoder(keras.Model):
    """Pixels to a few numbers and back."""

    def __init__(self, latent_size, beta=1.0):
        super().__init__()
        self.latent_size = latent_size
        self.beta = beta
        self.encoder = keras.Sequential([keras.layers.Dense(64, "relu"), keras.layers.Dense(2 * latent_size)])
        self.decoder = keras.Sequential([keras.layers.Dense(64, "relu"), keras.layers.Dense(64, "sigmoid")])
        self.noise = keras.random.SeedGenerator(7)
        self.loss_tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self):
        return [self.loss_tracker]

    def encode(self, pixels):
        return keras.ops.split(self.encoder(pixels), 2, axis=-1)

    def call(self, pixels):
        mean, _ = self.encode(pixels)
        return self.decoder(mean)

    def train_step(self, pixels):
        with tf.GradientTape() as tape:
            mean, log_variance = self.encode(pixels)
            noise = keras.random.normal(keras.ops.shape(mean), seed=self.noise)
            decoded = self.decoder(mean + keras.ops.exp(log_variance / 2) * noise)
            error = keras.ops.sum(keras.ops.square(pixels - decoded), axis=-1)
            divergence = keras.ops.sum(keras.ops.exp(log_variance) + mean**2 - 1 - log_variance, axis=-1) / 2
            loss = keras.ops.mean(error + self.beta * divergence)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}


def train(epochs: int = 20) -> tuple[VariationalAutoencoder, np.ndarray]:
    """The model after ``epochs``, and the pixels."""
    pixels = (load_digits().data / 16).astype(np.float32)
    keras.utils.set_random_seed(2)
    model = VariationalAutoencoder(latent_size=4, beta=0.1)
    model.compile(keras.optimizers.Adam(0.002))
    model.fit(pixels, epochs=epochs, verbose=0)
    return model, pixels


def train_on(model: VariationalAutoencoder, pixels: np.ndarray) -> list[float]:
    """The losses of two more epochs."""
    return model.fit(pixels, epochs=2, shuffle=False, verbose=0).history["loss"]


def main() -> None:
    use_local_store("variational-autoencoder")
    model, pixels = train()
    with mlflow.start_run():
        info = mks.log_model(model, name="autoencoder", input_example=pixels[:2])
    print(f"Logged as {info.model_uri}")

    reloaded = in_fresh_process(info.model_uri, pixels, source=__file__)
    require_equal(model.predict(pixels, verbose=0), reloaded.native)
    print("A process that cannot import this file decodes the same pixels, bit for bit.")

    losses = train_on(mks.load_model(info.model_uri), pixels)
    require_equal(train_on(model, pixels), losses)
    print(f"Original and copy go on training with the same losses: {losses}")


if __name__ == "__main__":
    main()
