"""What a class can do with TensorFlow only: raw variables and modules, text, training steps of its own."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from zoo import case
from zoo.arguments import X, called

BACKENDS = ("tensorflow",)


class Holder:
    def __init__(self):
        self.dense = keras.layers.Dense(3)


@dataclasses.dataclass
class Parts:
    first: object
    second: object


class Untracked(keras.Model):
    def __init__(self):
        super().__init__()
        self.holder = Holder()
        self.parts = Parts(keras.layers.Dense(3), tf.Variable(2.0))
        inner = keras.layers.Dense(2)
        self.apply_inner = lambda x: inner(x)

    def call(self, x):
        return self.apply_inner(self.parts.first(self.holder.dense(x)) * self.parts.second)


@case()
def layers_in_objects_and_closures():
    model, inputs = called(Untracked(), X)
    model.parts.second.assign(5.0)
    return model, inputs


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(tf.random.normal((4, 3)))

    def __call__(self, x):
        return x @ self.w


class RawTensorFlow(keras.Model):
    def __init__(self):
        super().__init__()
        self.module = Module()
        self.token = tf.Variable(tf.random.normal((1, 3)), name="token")
        self.frozen = tf.Variable(2.0, trainable=False)

    def call(self, x):
        return (self.module(x) + self.token) * self.frozen


@case()
def raw_variables_and_modules():
    model, inputs = called(RawTensorFlow(), X)
    model.frozen.assign(3.0)
    return model, inputs


class Gan(keras.Model):
    def __init__(self, latent):
        super().__init__()
        self.generator = keras.Sequential([keras.Input((latent,)), keras.layers.Dense(4)])
        self.discriminator = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile()
        self.d_optimizer = d_optimizer
        self.g_optimizer = g_optimizer
        self.loss_fn = loss_fn
        self.d_metric = keras.metrics.Mean(name="d")

    def train_step(self, data):
        noise = tf.random.normal((tf.shape(data)[0], 2))
        with tf.GradientTape() as tape:
            loss = self.loss_fn(tf.zeros((1, 1)), self.discriminator(self.generator(noise)))
        self.d_optimizer.apply_gradients(
            zip(
                tape.gradient(loss, self.discriminator.trainable_weights),
                self.discriminator.trainable_weights,
                strict=True,
            )
        )
        self.d_metric.update_state(loss)
        return {"d": self.d_metric.result()}


@case()
def gan_without_call():
    model = Gan(2)
    model.compile(
        d_optimizer=keras.optimizers.Adam(0.01),
        g_optimizer=keras.optimizers.SGD(0.02),
        loss_fn=keras.losses.BinaryCrossentropy(from_logits=True),
    )
    model.fit(X, verbose=0)
    return model, ()


class Custom(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.dense = keras.layers.Dense(units)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((self(x, training=True) - y) ** 2)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


@case()
def custom_train_step():
    model = Custom(2)
    model.compile("adam")
    model.fit(X, np.ones((6, 2), "float32"), verbose=0)
    return model, (X,)


class Text(keras.Model):
    def __init__(self, mode="int"):
        super().__init__()
        self.vectorize = keras.layers.TextVectorization(max_tokens=50, output_mode=mode, standardize=None, split=None)
        self.lookup = keras.layers.StringLookup()
        self.dense = keras.layers.Dense(2)

    def call(self, texts):
        counted = keras.ops.cast(self.vectorize(texts), "float32")
        index = keras.ops.cast(self.lookup(texts), "float32")
        return self.dense(counted) + keras.ops.reshape(index, (-1, 1))


TEXTS = np.array([["a"], ["b c"], ["line\u2028separator"], ["x\x85y"], ["with\nnewline"]], dtype=object)


def adapted(mode):
    model = Text(mode)
    model.vectorize.adapt(TEXTS[:, 0])
    model.lookup.adapt(TEXTS[:, 0])
    model(tf.constant(TEXTS.tolist()))
    return model, (TEXTS,)


@case()
def vocabulary_with_line_separators():
    return adapted("int")


@case()
def tf_idf_vocabulary():
    return adapted("tf_idf")


class Adapted(keras.Model):
    def __init__(self):
        super().__init__()
        self.normalize = keras.layers.Normalization()
        self.bins = keras.layers.Discretization(num_bins=4)
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(self.normalize(x)) + keras.ops.cast(self.bins(x), "float32")[:, :2]


@case()
def adapted_normalization_and_discretization():
    model = Adapted()
    model.normalize.adapt(X)
    model.bins.adapt(X)
    return called(model, X)
