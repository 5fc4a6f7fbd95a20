"""Models whose code reads layers, optimizers, metrics and arrays from outside of them: globals, closures, the class."""

import keras
import numpy as np

from zoo import case
from zoo.arguments import X, called

SIZE = X.shape[1]

augmentation = keras.Sequential([keras.layers.Rescaling(0.5), keras.layers.Dense(SIZE)], name="augmentation")
encoder = keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(3, activation="tanh")], name="encoder")
loss_tracker = keras.metrics.Mean(name="loss")
optimizer = keras.optimizers.Adam(0.01)
embedding_matrix = np.linspace(-1, 1, 90_000 * 3, dtype="float32").reshape(90_000, 3)


class UsesGlobalLayers(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.dense = keras.layers.Dense(units)

    def call(self, x):
        return self.dense(augmentation(x))


@case()
def call_reads_a_global_sequential():
    return called(UsesGlobalLayers(3), X)


class Tracks(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.dense = keras.layers.Dense(units)

    def call(self, x):
        return self.dense(x) * loss_tracker.result()

    @property
    def metrics(self):
        return [loss_tracker]


@case()
def a_global_metric():
    loss_tracker.update_state([1.0, 4.0])
    return called(Tracks(2), X)


class Holds(keras.Model):
    def __init__(self):
        super().__init__()
        self.encoder = encoder
        self.out = keras.layers.Dense(1)

    def call(self, x):
        return self.out(self.encoder(x)) + keras.ops.sum(encoder(x))


@case()
def the_constructor_reads_a_global_model():
    return called(Holds(), X)


class Teacher(keras.Model):
    def __init__(self, width):
        super().__init__()
        self.hidden = [keras.layers.Dense(width), keras.layers.Dense(SIZE)]

    def call(self, x):
        for layer in self.hidden:
            x = layer(x)
        return x


teacher = Teacher(5)


def distillation(target, predicted):
    return keras.ops.mean((teacher(predicted) - target) ** 2)


@case()
def a_loss_reads_a_global_model_of_the_users_class():
    teacher(X)
    model = Teacher(2)
    model.compile(optimizer, loss=distillation, jit_compile=False)
    model.fit(X, X, verbose=0)
    return called(model, X)


class Embeds(keras.Model):
    def __init__(self, width):
        super().__init__()
        rows, columns = embedding_matrix.shape
        self.embedding = keras.layers.Embedding(
            rows, columns, embeddings_initializer=keras.initializers.Constant(embedding_matrix), trainable=False
        )
        self.out = keras.layers.Dense(width)

    def call(self, tokens):
        return self.out(self.embedding(tokens)) + embedding_matrix[0, 0]


@case()
def the_constructor_reads_a_large_global_array():
    return called(Embeds(2), np.array([[1, 2], [3, 89_999]], "int32"))


def make(units):
    inner = keras.layers.Dense(units)

    class Enclosed(keras.Model):
        def call(self, x):
            return inner(x)

    return Enclosed


@case()
def a_class_with_a_layer_in_its_closure():
    return called(make(3)(), X)


class OfTheClass(keras.Model):
    shared = keras.layers.Dense(4)

    def __init__(self):
        super().__init__()
        self.out = keras.layers.Dense(1)

    def call(self, x):
        return self.out(self.shared(x))


@case()
def a_layer_as_class_attribute():
    return called(OfTheClass(), X)


class KnowsItself(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        return {"weights": keras.ops.sum(itself.dense.kernel)}


itself = KnowsItself()


@case()
def a_global_that_is_the_model_itself():
    itself.compile()
    return called(itself, X)


layers = {"first": keras.layers.Dense(2), "later": [keras.layers.Dense(3)]}


class InContainers(keras.Model):
    def call(self, x):
        return layers["later"][0](layers["first"](x))


@case()
def a_global_dict_of_layers():
    return called(InContainers(), X)


class Helper:
    def __init__(self):
        self.layer = keras.layers.Dense(2)


helper = Helper()


class AsksAHelper(keras.Model):
    def call(self, x):
        return helper.layer(x)


@case()
def a_global_object_that_holds_a_layer():
    return called(AsksAHelper(), X)
