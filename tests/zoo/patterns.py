"""How public examples construct, hold and call things: generative models, trainers and vision parts."""

import math

import keras
import numpy as np
import tensorflow as tf

from zoo import case
from zoo.arguments import X, called

BACKENDS = ("tensorflow",)

SIZE = 4
WIDTHS = [3, 5]
FREQUENCIES = {"low": {"minimum": 1.0, "maximum": 10.0}}

IMAGES = np.linspace(0, 1, 2 * 6 * 6 * 2, dtype="float32").reshape(2, 6, 6, 2)
SEQUENCES = np.linspace(-1, 1, 2 * 5 * 4, dtype="float32").reshape(2, 5, 4)


@keras.saving.register_keras_serializable()
def sinusoidal(x):
    frequencies = keras.ops.exp(keras.ops.linspace(0.0, math.log(FREQUENCIES["low"]["maximum"]), SIZE))
    return keras.ops.sin(frequencies * x)


def denoiser(widths):
    noisy, rate = keras.Input((SIZE,)), keras.Input((1,))
    x = keras.layers.Concatenate()([noisy, keras.layers.Lambda(sinusoidal, output_shape=(SIZE,))(rate)])
    for width in widths:
        x = keras.layers.Dense(width, activation=keras.activations.swish)(x)
    return keras.Model([noisy, rate], keras.layers.Dense(SIZE, kernel_initializer="zeros")(x), name="unet")


class Distance(keras.metrics.Metric):
    def __init__(self, name="distance", **kwargs):
        super().__init__(name=name, **kwargs)
        self.tracker = keras.metrics.Mean()
        self.encoder = keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(3)], name="encoder")

    def update_state(self, real, generated, sample_weight=None):
        self.tracker.update_state(keras.ops.abs(self.encoder(real) - self.encoder(generated)))

    def result(self):
        return self.tracker.result()

    def reset_state(self):
        self.tracker.reset_state()


class Diffusion(keras.Model):
    def __init__(self, widths):
        super().__init__()
        self.normalizer = keras.layers.Normalization()
        self.network = denoiser(widths)
        self.ema_network = keras.models.clone_model(self.network)
        self.initial_noise = None

    def compile(self, **kwargs):
        super().compile(**kwargs)
        self.loss_tracker = keras.metrics.Mean(name="n_loss")
        self.distance = Distance()

    @property
    def metrics(self):
        return [self.loss_tracker, self.distance]

    def call(self, x, training=False):
        x = self.normalizer(x)
        return (self.network if training else self.ema_network)([x, x[:, :1] ** 2], training=training)

    def train_step(self, images):
        images = self.normalizer(images)
        noises = tf.random.normal(tf.shape(images))
        with tf.GradientTape() as tape:
            predicted = self.network([images + noises, images[:, :1] ** 2], training=True)
            loss = self.loss(noises, predicted)
        weights = self.network.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.loss_tracker.update_state(loss)
        for weight, ema_weight in zip(self.network.weights, self.ema_network.weights, strict=True):
            ema_weight.assign(0.9 * ema_weight + 0.1 * weight)
        self.distance.update_state(images, predicted)
        return {metric.name: metric.result() for metric in self.metrics}


@case()
def clone_with_averaged_weights_and_metric_that_holds_a_model():
    model = Diffusion(WIDTHS)
    model.normalizer.adapt(X)
    model.compile(optimizer=keras.optimizers.AdamW(1e-2), loss=keras.losses.mean_absolute_error)
    model.fit(X, verbose=0)
    return called(model, X)


class Quantizer(keras.layers.Layer):
    def __init__(self, number, size, beta=0.25, **kwargs):
        super().__init__(**kwargs)
        self.number, self.size, self.beta = number, size, beta
        start = tf.random_uniform_initializer()
        self.embeddings = tf.Variable(start(shape=(size, number), dtype="float32"), trainable=True, name="codes")

    def call(self, x):
        flat = tf.reshape(x, [-1, self.size])
        distances = tf.reduce_sum(flat**2, 1, keepdims=True) + tf.reduce_sum(self.embeddings**2, 0)
        codes = tf.argmin(distances - 2 * tf.matmul(flat, self.embeddings), axis=1)
        quantized = tf.matmul(tf.one_hot(codes, self.number), self.embeddings, transpose_b=True)
        quantized = tf.reshape(quantized, tf.shape(x))
        self.add_loss(self.beta * tf.reduce_mean((tf.stop_gradient(quantized) - x) ** 2))
        return x + tf.stop_gradient(quantized - x)


def quantized_autoencoder(size, number):
    inputs = keras.Input((SIZE,))
    encoded = keras.layers.Dense(size)(inputs)
    decoded = keras.layers.Dense(SIZE)(Quantizer(number, size, name="quantizer")(encoded))
    return keras.Model(inputs, decoded, name="vq")


class QuantizedTrainer(keras.models.Model):
    def __init__(self, train_variance, latent_dim=3, number=8, **kwargs):
        super().__init__(**kwargs)
        self.train_variance = train_variance
        self.vqvae = quantized_autoencoder(latent_dim, number)
        self.total = keras.metrics.Mean(name="total_loss")

    @property
    def metrics(self):
        return [self.total]

    def train_step(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((x - self.vqvae(x)) ** 2) / self.train_variance + sum(self.vqvae.losses)
        variables = self.vqvae.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        self.total.update_state(loss)
        return {"loss": self.total.result()}

    def call(self, x):
        return self.vqvae(x)


@case()
def trainer_around_a_functional_factory_with_raw_variables():
    model = QuantizedTrainer(np.var(X), number=6)
    model.compile(optimizer=keras.optimizers.Adam())
    model.fit(X, verbose=0)
    return called(model, X)


class Builder:
    """Keeps symbolic inputs and blocks, and grows models out of them."""

    def __init__(self, stages):
        self.stages = stages
        self.blocks, self.heads = [], []
        self.start = keras.Input((SIZE,), name="start")
        for number in range(stages):
            block = keras.Input((SIZE,), name=f"block_{number}")
            self.blocks.append(keras.Model(block, keras.layers.Dense(SIZE, activation="relu")(block)))
            self.heads.append(keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(2)], name=f"head_{number}"))

    def grow(self, stage):
        x = self.start
        for block in self.blocks[:stage]:
            x = block(x)
        return keras.Model(self.start, self.heads[stage - 1](x), name=f"generator_{stage}")


class Growing(keras.Model):
    def __init__(self, stages=2, builder=None):
        super().__init__()
        self.alpha = keras.Variable(1.0, trainable=False, name="alpha")
        self.builder = Builder(stages) if builder is None else builder
        self.generator = self.builder.grow(1)
        self.phase = None

    def call(self, x):
        return self.generator(x) * self.alpha


@case()
def builder_that_keeps_symbolic_inputs():
    model, inputs = called(Growing(3), X)
    model.alpha.assign(0.5)
    return model, inputs


@case(refused="generator")
def model_grown_after_construction():
    model = Growing(3)
    model.generator = model.builder.grow(2)
    return called(model, X)


class Spade(keras.layers.Layer):
    def __init__(self, filters, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.conv = keras.layers.Conv2D(2, 3, padding="same", activation="relu")
        self.gamma = keras.layers.Conv2D(filters, 3, padding="same")

    def build(self, input_shape):
        self.resize_shape = input_shape[1:3]

    def call(self, inputs, mask):
        mask = tf.image.resize(mask, self.resize_shape, method="nearest")
        mean, variance = tf.nn.moments(inputs, axes=(0, 1, 2), keepdims=True)
        return self.gamma(self.conv(mask)) * (inputs - mean) / tf.sqrt(variance + self.epsilon)


class SpadeBlock(keras.layers.Layer):
    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, input_shape):
        self.spade = Spade(input_shape[-1])
        self.conv = keras.layers.Conv2D(self.filters, 3, padding="same")
        self.learned_skip = False
        if self.filters != input_shape[-1]:
            self.learned_skip = True
            self.skip = keras.layers.Conv2D(self.filters, 3, padding="same")

    def call(self, inputs, mask):
        x = self.conv(tf.nn.leaky_relu(self.spade(inputs, mask), 0.2))
        return x + (self.skip(inputs) if self.learned_skip else inputs)


def painter(shape):
    latent, mask = keras.Input(shape), keras.Input((3, 3, 2))
    x = SpadeBlock(filters=3)(latent, mask)
    x = SpadeBlock(filters=3)(x, mask)
    return keras.Model([latent, mask], keras.activations.tanh(keras.layers.Conv2D(2, 2, padding="same")(x)))


class FeatureLoss(keras.losses.Loss):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.weights = [0.5, 1.0]
        inputs = keras.Input((6, 6, 2))
        first = keras.layers.Conv2D(2, 3)(inputs)
        self.features = keras.Model(inputs, [first, keras.layers.Conv2D(1, 3)(first)], name="features")
        self.mae = keras.losses.MeanAbsoluteError()

    def call(self, y_true, y_pred):
        pairs = zip(self.weights, self.features(y_true), self.features(y_pred), strict=True)
        return sum(weight * self.mae(real, fake) for weight, real, fake in pairs)


class Painting(keras.Model):
    def __init__(self, image_shape):
        super().__init__()
        self.image_shape = image_shape
        self.generator = painter(image_shape)
        inputs = keras.Input(image_shape)
        self.discriminator = keras.Model(inputs, [keras.layers.Conv2D(1, 3)(inputs), keras.layers.Conv2D(2, 3)(inputs)])
        self.patch_size, self.combined = self.combine()

    def combine(self):
        self.discriminator.trainable = False
        latent, mask = keras.Input(self.image_shape), keras.Input((3, 3, 2))
        image = self.generator([latent, mask])
        judged = self.discriminator(image)
        return judged[-1].shape[1], keras.Model([latent, mask], [judged, image])

    def compile(self, rate=1e-4, **kwargs):
        super().compile(**kwargs)
        self.generator_optimizer = keras.optimizers.Adam(rate, beta_1=0.0)
        self.feature_loss = FeatureLoss()

    def train_step(self, data):
        latent, mask = data[0]
        self.discriminator.trainable = False
        with tf.GradientTape() as tape:
            judged, image = self.combined([latent, mask])
            loss = self.feature_loss(latent, image) + tf.reduce_mean(judged[0])
        variables = self.combined.trainable_variables
        self.generator_optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return {"loss": loss}

    def call(self, inputs):
        return self.generator(inputs)


@case()
def blocks_made_in_build_combined_model_and_loss_that_holds_a_model():
    model = Painting((6, 6, 2))
    model.compile(rate=0.01)
    model.fit([IMAGES, IMAGES[:, :3, :3]], verbose=0)
    return called(model, [IMAGES, IMAGES[:, :3, :3]])


class Halved(keras.layers.Layer):
    def call(self, inputs):
        mean, spread = inputs
        return mean + keras.ops.exp(0.5 * spread)


class Molecules(keras.Model):
    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder
        self.decoder = decoder
        self.tracker = keras.metrics.Mean(name="train_loss")

    def train_step(self, data):
        x = data[0] if isinstance(data, tuple) else data
        self.batch_size = tf.shape(x)[0]
        with tf.GradientTape() as tape:
            mean, _, decoded = self(x, training=True)
            loss = tf.reduce_mean((decoded - x) ** 2) + tf.reduce_mean(mean**2)
            self.last_loss = loss
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_weights), self.trainable_weights, strict=True)
        )
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}

    def call(self, inputs):
        mean, spread = self.encoder(inputs)
        return mean, spread, self.decoder(Halved()([mean, spread]))


@case()
def layer_made_in_call_and_symbolic_tensors_left_by_train_step():
    inputs = keras.Input((SIZE,))
    encoder = keras.Model(inputs, [keras.layers.Dense(2, name="mean")(inputs), keras.layers.Dense(2)(inputs)])
    decoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(SIZE)])
    model = Molecules(encoder, decoder, name="molecules")
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(X, verbose=0)
    return called(model, X)


class Sampling(keras.layers.Layer):
    def call(self, inputs):
        mean, spread = inputs
        return mean + tf.exp(0.5 * spread) * tf.random.normal(tf.shape(mean))


class Variational(keras.Model):
    def __init__(self, latent_dim):
        super().__init__()
        self.mean = keras.layers.Dense(latent_dim)
        self.spread = keras.layers.Dense(latent_dim)
        self.sampling = Sampling()
        self.decoder = keras.layers.Dense(SIZE)

    def call(self, x):
        return self.decoder(self.sampling([self.mean(x), self.spread(x)]))


@case(random=True)
def sampling_from_the_global_generator():
    return called(Variational(3), X)


class Seeded(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        return inputs + keras.random.normal(keras.ops.shape(inputs), seed=self.seed_generator)


class SeededModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.noise = [Seeded(), Seeded(name="second")]
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        for layer in self.noise:
            x = layer(x)
        return self.dense(x)


@case(stateful=True)
def sampling_from_own_seed_generators():
    return called(SeededModel(), X)


class Queue(keras.Model):
    def __init__(self, temperature, queue_size, settings=FREQUENCIES["low"], widths=WIDTHS):
        super().__init__()
        self.augmenter = keras.Sequential([keras.Input((SIZE,)), keras.layers.Rescaling(settings["maximum"])])
        self.encoder = keras.Sequential([keras.Input((SIZE,)), *[keras.layers.Dense(width) for width in widths]])
        self.temperature = temperature
        start = keras.random.normal((queue_size, self.encoder.output_shape[1]))
        self.feature_queue = keras.Variable(keras.utils.normalize(start, axis=1, order=2), trainable=False)
        self.accuracy = keras.metrics.SparseCategoricalAccuracy()
        self.probe_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def compile(self, contrastive_optimizer, probe_optimizer, **kwargs):
        super().compile(**kwargs)
        self.contrastive_optimizer = contrastive_optimizer
        self.probe_optimizer = probe_optimizer

    def call(self, x):
        return keras.ops.matmul(self.encoder(self.augmenter(x)), keras.ops.transpose(self.feature_queue))

    def train_step(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self(x) ** 2) / self.temperature
        weights = self.encoder.trainable_weights
        self.contrastive_optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.feature_queue.assign(self.feature_queue * 0.5)
        return {"loss": loss}


@case()
def queue_variable_defaults_from_globals_and_two_optimizers():
    model = Queue(temperature=0.1, queue_size=5)
    model.compile(contrastive_optimizer=keras.optimizers.Adam(), probe_optimizer=keras.optimizers.Adam())
    model.fit(X, verbose=0)
    return called(model, X)


class Decoder(keras.layers.Layer):
    def __init__(self, width, heads, **kwargs):
        super().__init__(**kwargs)
        self.attention_1 = keras.layers.MultiHeadAttention(heads, width)
        self.attention_2 = keras.layers.MultiHeadAttention(heads, width)
        self.project = keras.Sequential([keras.layers.Dense(width, activation="relu"), keras.layers.Dense(SIZE)])
        self.drop = keras.layers.Dropout(0.1)
        self.supports_masking = True

    def call(self, inputs, encoded, training, mask=None):
        x = self.attention_1(query=inputs, value=inputs, key=inputs, attention_mask=mask)
        x = self.drop(inputs + x, training=training)
        return self.project(x + self.attention_2(query=x, value=encoded, key=encoded))


class Captioning(keras.Model):
    def __init__(self, cnn, encoder, decoder, per_image=2):
        super().__init__()
        self.cnn, self.encoder, self.decoder, self.per_image = cnn, encoder, decoder, per_image
        self.tracker = keras.metrics.Mean(name="loss")

    def train_step(self, data):
        images, sequences = data
        features = self.cnn(images)
        for _ in range(self.per_image):
            with tf.GradientTape() as tape:
                decoded = self.decoder(sequences, self.encoder(features), training=True, mask=None)
                loss = self.loss(sequences, decoded)
            variables = self.encoder.trainable_variables + self.decoder.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}

    @property
    def metrics(self):
        return [self.tracker]


@case()
def parts_called_by_train_step_only():
    inputs = keras.Input((5, SIZE))
    cnn = keras.Model(inputs, keras.layers.Conv1D(SIZE, 1)(inputs))
    cnn.trainable = False
    model = Captioning(cnn=cnn, encoder=keras.layers.Dense(SIZE), decoder=Decoder(3, heads=2))
    model.compile(keras.optimizers.Adam(), loss=keras.losses.MeanSquaredError(reduction="none"))
    model.fit(SEQUENCES, SEQUENCES, verbose=0)
    return model, ()


class Anchors:
    def __init__(self, count):
        self.ratios = [0.5, 1.0, 2.0]
        self.areas = [x**2 for x in [2.0, 4.0]]
        self._count = count
        self._dims = self._compute()

    def _compute(self):
        return [tf.stack([tf.math.sqrt(r * a) for r in self.ratios], axis=-1) for a in self.areas]


def head(filters, bias):
    model = keras.Sequential([keras.Input((None, None, 2))])
    kernel = keras.initializers.RandomNormal(0.0, 0.01)
    for _ in range(2):
        model.add(keras.layers.Conv2D(2, 3, padding="same", kernel_initializer=kernel))
        model.add(keras.layers.ReLU())
    model.add(keras.layers.Conv2D(filters, 3, 1, padding="same", kernel_initializer=kernel, bias_initializer=bias))
    return model


class Detector(keras.Model):
    def __init__(self, number, backbone=None, **kwargs):
        super().__init__(name="Detector", **kwargs)
        self.backbone = backbone if backbone else keras.layers.Conv2D(2, 3)
        self.number = number
        prior = tf.constant_initializer(-np.log((1 - 0.01) / 0.01))
        self.classes = head(3 * number, prior)
        self.boxes = head(12, "zeros")
        self._anchors = Anchors(number)

    def call(self, image, training=False):
        features = self.backbone(image, training=training)
        size = tf.shape(image)[0]
        boxes = tf.reshape(self.boxes(features), [size, -1, 4])
        classes = tf.reshape(self.classes(features), [size, -1, self.number])
        return tf.concat([boxes, classes], axis=-1) * self._anchors._dims[0][0]


@case()
def plain_helper_with_tensors_fixed_name_and_foreign_initializer():
    return called(Detector(2), IMAGES)


class MaskedConv(keras.layers.Layer):
    def __init__(self, mask_type, **kwargs):
        super().__init__()
        self.mask_type = mask_type
        self.conv = keras.layers.Conv2D(**kwargs)

    def build(self, input_shape):
        self.conv.build(input_shape)
        shape = tuple(self.conv.kernel.shape)
        self.mask = np.zeros(shape=shape)
        self.mask[: shape[0] // 2, ...] = 1.0
        if self.mask_type == "B":
            self.mask[shape[0] // 2, shape[1] // 2, ...] = 1.0

    def call(self, inputs):
        self.conv.kernel.assign(self.conv.kernel * self.mask)
        return self.conv(inputs)


class Pixels(keras.Model):
    def __init__(self, filters):
        super().__init__()
        self.masked = [MaskedConv(t, filters=filters, kernel_size=3, activation="relu", padding="same") for t in "AB"]
        self.out = keras.layers.Conv2D(1, 1, activation="sigmoid")

    def call(self, x):
        for layer in self.masked:
            x = layer(x)
        return self.out(x)


@case()
def kernel_masked_in_call_and_built_by_hand():
    return called(Pixels(3), IMAGES)


def coupling(size):
    inputs = keras.Input((size,))
    hidden = keras.layers.Dense(6, activation="relu", kernel_regularizer=keras.regularizers.l2(0.01))(inputs)
    return keras.Model(inputs, [keras.layers.Dense(size, activation="tanh")(hidden), keras.layers.Dense(size)(hidden)])


class Flow(keras.Model):
    def __init__(self, number):
        super().__init__()
        self.masks = np.array([[0, 1, 0, 1], [1, 0, 1, 0]] * (number // 2), dtype="float32")
        self.layers_list = [coupling(SIZE) for _ in range(number)]

    def call(self, x, training=True):
        total = 0
        for number, layer in enumerate(self.layers_list):
            masked = x * self.masks[number]
            scale, shift = layer(masked)
            x = (1 - self.masks[number]) * (x * keras.ops.exp(scale) + shift) + masked
            total = total + keras.ops.sum(scale, [1])
        return x, total


@case()
def list_of_functional_models_and_masks():
    return called(Flow(4), X)
