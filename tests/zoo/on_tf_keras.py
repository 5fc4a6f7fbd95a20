"""Keras 2 subclasses as the public stock of them is written, on tf_keras through ``tf.keras``."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow import keras
from tensorflow.keras import layers

from zoo import case

BACKENDS = ("tf_keras",)

X = np.linspace(-1, 1, 24, dtype="float32").reshape(6, 4)
IMAGES = np.linspace(0, 1, 2 * 6 * 6 * 2, dtype="float32").reshape(2, 6, 6, 2)
SEQUENCES = np.linspace(-1, 1, 2 * 5 * 4, dtype="float32").reshape(2, 5, 4)


def called(model, *inputs):
    model(*inputs)
    return model, inputs


class Required(tf.keras.Model):
    def __init__(self, config):
        super(Required, self).__init__()  # noqa: UP008 - as it was written then
        self.hidden = tf.keras.layers.Dense(config["units"], activation="relu")
        self.out = layers.Dense(2)

    def call(self, inputs, training=None):
        return self.out(self.hidden(inputs))


@case()
def dict_argument():
    return called(Required({"units": 5}), X)


class Defaults(keras.Model):
    def __init__(self, units=2, temperature=1.0, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(units)
        self.temperature = temperature

    def call(self, x):
        return self.dense(x) / self.temperature


@case()
def defaults_changed_and_name():
    return called(Defaults(3, temperature=7.0, name="hot"), X)


class Containers(keras.Model):
    def __init__(self):
        super().__init__()
        self.stack = [layers.Dense(4), [layers.Dense(4)]]
        self.named = {"b": layers.Dense(4), "a": layers.Dense(4)}
        self.pair = (layers.Dense(4), layers.BatchNormalization())

    def call(self, x, training=False):
        x = self.stack[1][0](self.stack[0](x))
        x = self.named["a"](self.named["b"](x))
        return self.pair[1](self.pair[0](x), training=training)


@case()
def layers_in_lists_dicts_and_tuples():
    model = Containers()
    model(X, training=True)
    return called(model, X)


class Weighted(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.w = self.add_weight("w", shape=[int(input_shape[-1]), self.units], initializer="glorot_uniform")
        self.steps = self.add_weight("steps", shape=[], dtype=tf.int32, initializer="zeros", trainable=False)

    def call(self, inputs):
        return tf.matmul(inputs, self.w)


class WithWeighted(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.first = Weighted(units)
        self.second = Weighted(2, name="second")

    def call(self, x):
        return self.second(self.first(x))


@case()
def weights_added_in_build():
    model, inputs = called(WithWeighted(3), X)
    model.first.steps.assign(7)
    return model, inputs


class MadeInCall(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.units = units
        self.dense = None

    def call(self, x):
        if self.dense is None:
            self.dense = layers.Dense(self.units)
        return self.dense(x)


@case()
def layer_made_in_call():
    return called(MadeInCall(3), X)


class Tokens(keras.Model):
    def __init__(self):
        super().__init__()
        self.token = tf.Variable(tf.random.normal((1, 4)), name="token")
        self.gain = tf.Variable(2.0, trainable=False)
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense((x + self.token) * self.gain)


@case()
def plain_variables_as_attributes():
    model, inputs = called(Tokens(), X)
    model.gain.assign(3.0)
    return model, inputs


class Stepping(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.hidden = layers.Dense(units, activation="relu")
        self.drop = layers.Dropout(0.3)
        self.norm = layers.BatchNormalization()
        self.head = layers.Dense(2)
        self.tracker = keras.metrics.Mean(name="loss")

    def call(self, x, training=False):
        return self.head(self.norm(self.drop(self.hidden(x), training=training), training=training))

    @property
    def metrics(self):
        return [self.tracker]

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_weights), self.trainable_weights, strict=True)
        )
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}


@case()
def custom_train_step():
    model = Stepping(5)
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    model.fit(X, np.ones((6, 2), "float32"), verbose=0)
    return model, (X,)


@case()
def legacy_optimizer():
    model = Stepping(5)
    model.compile(optimizer=keras.optimizers.legacy.Adam(0.01))
    model.fit(X, np.ones((6, 2), "float32"), verbose=0)
    return model, (X,)


class Plain(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.hidden = layers.Dense(units, kernel_regularizer=keras.regularizers.l2(0.01))
        self.head = layers.Dense(2)

    def call(self, x):
        return self.head(self.hidden(x))


def distance(y_true, y_pred):
    return tf.reduce_mean(tf.abs(y_true - y_pred), axis=-1)


class Focal(keras.losses.Loss):
    def __init__(self, gamma, **kwargs):
        super().__init__(**kwargs)
        self.gamma = gamma

    def call(self, y_true, y_pred):
        return tf.reduce_mean(tf.abs(y_true - y_pred) ** self.gamma, axis=-1)


@case()
def compiled_with_loss_class_metric_function_and_schedule():
    model = Plain(3)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9), loss=Focal(1.5), metrics=[distance, "mae"])
    model.fit(X, np.ones((6, 2), "float32"), verbose=0)
    return model, (X,)


@case()
def lambda_loss():
    model = Plain(3)
    model.compile("rmsprop", loss=lambda t, p: tf.reduce_mean(tf.abs(t - p)))
    model.fit(X, np.ones((6, 2), "float32"), verbose=0)
    return model, (X,)


class Gan(keras.Model):
    def __init__(self, discriminator, generator, latent_dim):
        super().__init__()
        self.discriminator = discriminator
        self.generator = generator
        self.latent_dim = latent_dim

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile()
        self.d_optimizer = d_optimizer
        self.g_optimizer = g_optimizer
        self.loss_fn = loss_fn

    def train_step(self, real):
        size = tf.shape(real)[0]
        generated = self.generator(tf.random.normal(shape=(size, self.latent_dim)))
        with tf.GradientTape() as tape:
            loss = self.loss_fn(tf.ones((size, 1)), self.discriminator(generated))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return {"d_loss": loss}


@case()
def gan_without_call():
    discriminator = keras.Sequential([keras.Input(shape=(4,)), layers.Dense(3), layers.LeakyReLU(), layers.Dense(1)])
    generator = keras.Sequential([keras.Input(shape=(2,)), layers.Dense(4)], name="generator")
    model = Gan(discriminator, generator, latent_dim=2)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.02), loss)
    model.fit(X, verbose=0)
    return model, ()


class Sampling(layers.Layer):
    def call(self, inputs):
        mean, spread = inputs
        return mean + tf.exp(0.5 * spread)


class Vae(keras.Model):
    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder
        self.decoder = decoder
        self.total = keras.metrics.Mean(name="total")

    def call(self, x):
        return self.decoder(self.encoder(x)[2])


@case()
def functional_models_with_custom_layers_as_arguments():
    inputs = keras.Input(shape=(4,))
    hidden = layers.Dense(5, activation="relu")(inputs)
    mean, spread = layers.Dense(2, name="mean")(hidden), layers.Dense(2, name="spread")(hidden)
    encoder = keras.Model(inputs, [mean, spread, Sampling()([mean, spread])], name="encoder")
    latent = keras.Input(shape=(2,))
    decoder = keras.Model(latent, layers.Dense(4, activation="sigmoid")(latent), name="decoder")
    return called(Vae(encoder, decoder), X)


class Inside(keras.Model):
    def __init__(self, width):
        super().__init__()
        inputs = keras.Input(shape=(6, 6, 2))
        x = layers.Conv2D(width, 3, activation="relu")(inputs)
        x = layers.BatchNormalization()(x)
        self.features = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
        self.head = layers.Dense(2)

    def call(self, x, training=False):
        return self.head(self.features(x, training=training))


@case()
def functional_model_inside():
    model = Inside(3)
    model(IMAGES, training=True)
    return called(model, IMAGES)


class FunctionalSubclass(keras.Model):
    def __init__(self, width):
        inputs = keras.Input(shape=(4,))
        super().__init__(inputs=inputs, outputs=layers.Dense(2)(layers.Dense(width, activation="relu")(inputs)))
        self.width = width


@case()
def functional_subclass():
    return called(FunctionalSubclass(7), X)


class Recurrent(keras.Model):
    def __init__(self):
        super().__init__()
        self.both = layers.Bidirectional(layers.LSTM(3, return_sequences=True))
        self.cells = layers.RNN([layers.GRUCell(3), layers.LSTMCell(2)])
        self.time = layers.TimeDistributed(layers.Dense(3))

    def call(self, x):
        return self.cells(self.time(self.both(x)))


@case()
def recurrent_wrappers_and_cells():
    return called(Recurrent(), SEQUENCES)


CHECKPOINT = Path(tempfile.gettempdir(), "a folder of the training machine", "encoder")


def encoder():
    return keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="tanh")])


class Warm(keras.Model):
    """Starts from a checkpoint of another training, which is gone when the model is loaded."""

    def __init__(self):
        super().__init__()
        self.encoder = encoder()
        self.encoder.load_weights(CHECKPOINT).expect_partial()

    def call(self, x):
        return self.encoder(x)


@case()
def checkpoint_loaded_in_the_constructor():
    encoder().save_weights(CHECKPOINT, save_format="tf")
    model = Warm()
    shutil.rmtree(CHECKPOINT.parent)
    return called(model, X)


class StatefulGru(keras.Model):
    def __init__(self):
        super().__init__()
        self.rnn = layers.GRU(3, stateful=True)

    def call(self, x):
        return self.rnn(x)


@case(stateful=True)
def stateful_rnn():
    model = StatefulGru()
    model(SEQUENCES)
    return model, (SEQUENCES,)


class Attention(keras.Model):
    def __init__(self, heads):
        super().__init__()
        self.attention = layers.MultiHeadAttention(heads, 3)
        self.norm = layers.LayerNormalization(epsilon=1e-6)
        self.embed = layers.Embedding(10, 4)

    def call(self, tokens):
        x = self.embed(tokens)
        return self.norm(x + self.attention(x, x))


@case()
def attention_and_embedding_of_tokens():
    return called(Attention(2), np.array([[1, 2, 3], [4, 5, 9]], dtype="int32"))


class Text(keras.Model):
    def __init__(self):
        super().__init__()
        self.vectorize = layers.TextVectorization(max_tokens=20, output_mode="int", output_sequence_length=4)
        self.embed = layers.Embedding(20, 3)
        self.pool = layers.GlobalAveragePooling1D()
        self.head = layers.Dense(2)

    def call(self, texts):
        return self.head(self.pool(self.embed(self.vectorize(texts))))


@case()
def adapted_text_vectorization():
    texts = np.array([["the cat"], ["a dog and a cat"]], dtype=object)
    model = Text()
    model.vectorize.adapt(texts[:, 0])
    model(tf.constant(texts.tolist()))
    return model, (texts,)


class Normalized(keras.Model):
    def __init__(self):
        super().__init__()
        self.normalize = layers.Normalization()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(self.normalize(x))


@case()
def adapted_normalization():
    model = Normalized()
    model.normalize.adapt(X)
    return called(model, X)


class PartialConfig(keras.Model):
    def __init__(self, units, scale):
        super().__init__()
        self.units, self.scale = units, scale
        self.dense = layers.Dense(units)

    def get_config(self):
        return {"units": self.units}

    def call(self, x):
        return self.dense(x) * self.scale


@case()
def incomplete_get_config():
    return called(PartialConfig(3, 0.5), X)


@case()
def mixed_precision():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = Plain(3)
        model.compile("adam", loss="mse")
        model.fit(X, np.ones((6, 2), "float32"), verbose=0)
        return model, (X,)
    finally:
        keras.mixed_precision.set_global_policy("float32")


class Graph(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4)

    @tf.function
    def call(self, x):
        if tf.reduce_sum(x) > 0:
            x = -x
        return self.dense(x)


@case()
def call_as_tf_function_with_a_branch():
    return called(Graph(), X)


class Generating(keras.Model):
    def __init__(self):
        super().__init__()
        self.generator = tf.random.Generator.from_seed(3)
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x + self.generator.normal(tf.shape(x)))


@case(stateful=True)
def random_generator():
    return called(Generating(), X)


@case()
def frozen_layer_and_changed_attribute():
    model, inputs = called(Defaults(3), X)
    model.dense.trainable = False
    model.temperature = 0.5
    model.notes = {"best": 3, "losses": [0.5]}
    return model, inputs


class TwoInputs(keras.Model):
    def __init__(self):
        super().__init__()
        self.user = keras.Sequential([layers.Dense(4, activation="relu"), layers.Dense(3)])
        self.item = keras.Sequential([layers.Dense(3)])

    def call(self, inputs):
        return tf.reduce_sum(self.user(inputs["user"]) * self.item(inputs["item"]), axis=1)


@case()
def dict_inputs_and_unbuilt_sequentials():
    return called(TwoInputs(), {"user": X, "item": X[:, :2]})


generator = keras.Sequential([layers.Input((4,)), layers.Dense(3), layers.Dense(2)])
generator_optimizer = keras.optimizers.Adam(0.01)
loss_tracker = keras.metrics.Mean(name="loss")


class UsesGlobals(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.dense(generator(x)) * loss_tracker.result()

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self(data) ** 2) + tf.reduce_mean(generator(data))
        weights = [*self.trainable_variables, *generator.trainable_variables]
        generator_optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        loss_tracker.update_state(loss)
        return {"loss": loss_tracker.result()}


@case()
def globals_in_call_and_train_step():
    loss_tracker.update_state(2.0)
    model, inputs = called(UsesGlobals(3), X)
    model.compile()
    model.fit(X, epochs=2, verbose=0)
    return model, inputs
