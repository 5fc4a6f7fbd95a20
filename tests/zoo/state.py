"""State that is more than weights."""

import keras
import numpy as np

from zoo import case
from zoo.arguments import X, called


class Counting(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.table = np.zeros(3, dtype="float32")
        self.threshold = 0.5
        self.activation = keras.activations.relu
        self.history = []

    def call(self, x):
        return self.activation(keras.ops.add(self.dense(x), self.table)) * self.threshold


@case()
def attributes_changed_after_construction():
    model, inputs = called(Counting(), X)
    model.table = np.array([1, 2, 3], dtype="float32")
    model.threshold = 0.25
    model.activation = keras.activations.tanh
    model.history.append({"loss": 0.5})
    model.labels = ["a", "b"]
    return model, inputs


@case(refused="activation")
def activation_swapped_for_a_lambda():
    model, inputs = called(Counting(), X)
    model.activation = lambda x: x * 2
    model(X)
    return model, inputs


class TwoLambdas(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.score = lambda x: x + 1

    def call(self, x):
        return self.dense(x)


@case(refused="score")
def lambda_that_call_does_not_reach_swapped():
    model, inputs = called(TwoLambdas(), X)
    model.score = lambda x: x + 2
    return model, inputs


@case()
def lambda_made_in_the_constructor():
    return called(TwoLambdas(), X)


class RandomMask(keras.Model):
    def __init__(self):
        super().__init__()
        self.mask = np.random.rand(4).astype("float32")
        self.noise = keras.random.normal((4,))
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x * self.mask + self.noise)


@case()
def random_constants_drawn_in_the_constructor():
    return called(RandomMask(), X)


class Regularized(keras.Model):
    def __init__(self, rate):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.drop = keras.layers.Dropout(rate, seed=3)
        self.norm = keras.layers.BatchNormalization()

    def call(self, x, training=False):
        return self.norm(self.drop(self.dense(x), training=training), training=training)


@case()
def freeze_after_construction():
    model, inputs = called(Regularized(0.1), X)
    model.dense.trainable = False
    model.norm.trainable = False
    return model, inputs


@case()
def layer_setting_changed():
    model, inputs = called(Regularized(0.1), X)
    model.drop.rate = 0.7
    model.norm.momentum = 0.5
    return model, inputs


@case()
def trained_with_optimizer_metrics_and_ema():
    model = Regularized(0.3)
    model.compile(keras.optimizers.AdamW(1e-2, use_ema=True), loss="mse", metrics=["mae"])
    model.fit(X, np.ones((6, 3), "float32"), epochs=2, verbose=0)
    return model, (X,)


@case()
def lambda_loss():
    model = Regularized(0.3)
    model.compile("sgd", loss=lambda t, p: keras.ops.mean(keras.ops.abs(t - p)))
    model.fit(X, np.ones((6, 3), "float32"), verbose=0)
    return model, (X,)


class Focal(keras.losses.Loss):
    def __init__(self, gamma):
        super().__init__()
        self.gamma = gamma

    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_true - y_pred) ** self.gamma)


class Count(keras.metrics.Metric):
    def __init__(self, scale):
        super().__init__(name="count")
        self.scale = scale
        self.total = self.add_weight(name="total", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(self.scale)

    def result(self):
        return keras.ops.convert_to_tensor(self.total)


@case()
def custom_loss_metric_and_schedule():
    model = Regularized(0.3)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9), loss=Focal(1.5), metrics=[Count(2.0)])
    model.fit(X, np.ones((6, 3), "float32"), verbose=0)
    return model, (X,)


class OwnMetric(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.tracker = keras.metrics.Mean(name="tracker")

    def call(self, x):
        return self.dense(x)


@case()
def model_metric():
    model, inputs = called(OwnMetric(), X)
    model.tracker.update_state([1.0, 5.0])
    return model, inputs


class Stateful(keras.Model):
    def __init__(self):
        super().__init__()
        self.rnn = keras.layers.GRU(3, stateful=True)

    def call(self, x):
        return self.rnn(x)


@case(stateful=True)
def stateful_rnn():
    model = Stateful()
    x = np.ones((2, 3, 4), "float32")
    model(x)
    return model, (x,)


class Normalized(keras.Model):
    def __init__(self):
        super().__init__()
        self.normalize = keras.layers.Normalization()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(self.normalize(x))


@case()
def adapted_normalization():
    model = Normalized()
    model.normalize.adapt(X)
    return called(model, X)


@case()
def mixed_precision_from_the_global_policy():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return called(Regularized(0.1), X)
    finally:
        keras.config.set_dtype_policy("float32")


class Tied(keras.layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.units = units

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], self.units), name="w")

    def call(self, x):
        return keras.ops.matmul(keras.ops.matmul(x, self.w), keras.ops.transpose(self.w))

    def save_own_variables(self, store):
        store["tied"] = self.w

    def load_own_variables(self, store):
        self.w.assign(store["tied"])


class TiedModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.tied = Tied(3)

    def call(self, x):
        return self.tied(x)


@case()
def tied_weights_with_own_variables():
    return called(TiedModel(), X)


class Derived(keras.Model):
    def __init__(self):
        super().__init__()
        start = keras.initializers.GlorotUniform(seed=7)((4, 3))
        self.start_norm = float(keras.ops.sum(start))
        self.w = self.add_weight(shape=(4, 3), initializer=keras.initializers.GlorotUniform(seed=7))

    def call(self, x):
        return (x @ self.w) * self.start_norm


@case()
def value_derived_from_a_seeded_initializer():
    return called(Derived(), X)


class PredictStep(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)

    def predict_step(self, data):
        return keras.ops.argmax(self(data[0] if isinstance(data, tuple) else data), axis=-1)


@case()
def predict_step_overridden():
    return called(PredictStep(), X)


class Warming(keras.optimizers.schedules.LearningRateSchedule):
    """Without a config, as schedules are written in tutorials; the optimizer that holds it is Keras' own."""

    def __init__(self, width, steps=10):
        super().__init__()
        self.width = keras.ops.cast(width, "float32")
        self.steps = steps

    def __call__(self, step):
        return keras.ops.rsqrt(self.width) * keras.ops.minimum(1.0, (keras.ops.cast(step, "float32") + 1) / self.steps)


@case()
def schedule_without_a_config_in_an_optimizer_of_keras():
    model = Regularized(0.1)
    model.compile(keras.optimizers.Adam(Warming(4, steps=5), beta_2=0.98), loss="mse")
    model.fit(X, np.ones((len(X), 3)), epochs=2, verbose=0)
    return called(model, X)


class Tracked(keras.Model):
    """Makes its metric and another optimizer in ``compile``, and is served without either."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def compile(self, second, **options):
        super().compile(**options)
        self.second = second
        self.tracker = keras.metrics.Mean(name="tracker")
        self.temperature = 0.5

    def call(self, x):
        return self.dense(x) / getattr(self, "temperature", 1.0)


@case()
def metric_and_attribute_made_in_compile():
    model = Tracked()
    model.compile(keras.optimizers.SGD(0.1), optimizer="adam", loss="mse")
    model.fit(X, np.ones((len(X), 2)), verbose=0)
    return called(model, X)
