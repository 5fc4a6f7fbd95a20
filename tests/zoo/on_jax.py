"""What a class can do with JAX only: its own functions, stateless training steps, random keys."""

import jax
import jax.numpy as jnp
import keras
import numpy as np

from zoo import case
from zoo.arguments import X, called

BACKENDS = ("jax",)


class Direct(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.dense = keras.layers.Dense(units)
        self.mask = jax.random.bernoulli(jax.random.PRNGKey(3), 0.5, (units,))
        self.shift = jnp.asarray(np.random.default_rng().normal(size=(units,)), dtype="float32")

    def call(self, x):
        return jnp.where(self.mask, jax.nn.gelu(self.dense(x)), 0.0) + self.shift


@case()
def functions_and_arrays_of_jax():
    return called(Direct(3), X)


class Stepping(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.hidden = keras.layers.Dense(units, activation="relu")
        self.drop = keras.layers.Dropout(0.3)
        self.head = keras.layers.Dense(2)
        self.tracker = keras.metrics.Mean(name="loss")

    def call(self, x, training=False):
        return self.head(self.drop(self.hidden(x), training=training))

    @property
    def metrics(self):
        return [self.tracker]

    def loss_and_updates(self, trainable, non_trainable, x, y):
        predicted, non_trainable = self.stateless_call(trainable, non_trainable, x, training=True)
        return jnp.mean((predicted - y) ** 2), non_trainable

    def train_step(self, state, data):
        trainable, non_trainable, slots, metrics = state
        x, y = data
        gradient = jax.value_and_grad(self.loss_and_updates, has_aux=True)
        (loss, non_trainable), gradients = gradient(trainable, non_trainable, x, y)
        trainable, slots = self.optimizer.stateless_apply(slots, gradients, trainable)
        metrics = self.tracker.stateless_update_state(metrics, loss)
        return {"loss": self.tracker.stateless_result(metrics)}, (trainable, non_trainable, slots, metrics)


@case()
def stateless_training_step():
    model = Stepping(5)
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    model.fit(X, np.ones((6, 2), "float32"), verbose=0)
    return model, (X,)


class Keyed(keras.Model):
    def __init__(self):
        super().__init__()
        self.key = jax.random.PRNGKey(7)
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x) + jax.random.normal(self.key, (3,))


@case()
def random_key_as_attribute():
    model, inputs = called(Keyed(), X)
    model.key = jax.random.fold_in(model.key, 1)
    return model, inputs


class Gan(keras.Model):
    def __init__(self, latent):
        super().__init__()
        self.generator = keras.Sequential([keras.Input((latent,)), keras.layers.Dense(4)])
        self.discriminator = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile(loss=loss_fn)
        self.d_optimizer = d_optimizer
        self.g_optimizer = g_optimizer
        self.d_optimizer.build(self.discriminator.trainable_variables)
        self.g_optimizer.build(self.generator.trainable_variables)


@case()
def gan_without_call():
    model = Gan(2)
    model.compile(keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.02), keras.losses.BinaryCrossentropy())
    model.d_optimizer.apply([jnp.ones_like(item.value) for item in model.discriminator.trainable_variables])
    return model, ()
