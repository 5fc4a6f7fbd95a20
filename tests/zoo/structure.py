"""Where models keep their layers, and how these are built."""

import collections
import contextlib

import keras
import numpy as np

from zoo import case
from zoo.arguments import X, called


class Autoencoder(keras.Model):
    def __init__(self):
        super().__init__()
        self.encoder = keras.layers.Dense(2)
        self.decoder = keras.layers.Dense(4)

    def call(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)


@case()
def decoder_not_reached_by_call():
    model = Autoencoder()
    model.decode(model(X))
    return model, (X,)


class TrainingBranch(keras.Model):
    def __init__(self):
        super().__init__()
        self.main = keras.layers.Dense(3)
        self.auxiliary = keras.layers.Dense(2)

    def call(self, x, training=False):
        y = self.main(x)
        if training:
            self.add_loss(keras.ops.mean(self.auxiliary(y)))
        return y


@case()
def branch_built_only_in_training():
    model = TrainingBranch()
    model(X, training=True)
    return model, (X,)


class NoopBuild(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def build(self, input_shape):
        pass

    def call(self, x):
        return self.dense(x)


@case()
def noop_build():
    return called(NoopBuild(), X)


class LayersInBuild(keras.Model):
    def __init__(self, depth):
        super().__init__()
        self.depth = depth

    def build(self, input_shape):
        self.stack = [keras.layers.Dense(input_shape[-1]) for _ in range(self.depth)]
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="ones")
        super().build(input_shape)

    def call(self, x):
        for layer in self.stack:
            x = layer(x)
        return x * self.scale


@case()
def layers_made_in_build():
    return called(LayersInBuild(3), X)


class Containers(keras.Model):
    def __init__(self):
        super().__init__()
        pair = collections.namedtuple("pair", "left right")
        self.in_list = [keras.layers.Dense(4), [keras.layers.Dense(4), keras.layers.Dense(4)]]
        self.in_dict = {"b": keras.layers.Dense(4), "a": {"deep": keras.layers.Dense(4)}, 3: keras.layers.Dense(4)}
        self.in_tuple = (keras.layers.Dense(4), 7)
        self.in_namedtuple = pair(keras.layers.Dense(4), keras.layers.Dense(4))

    def call(self, x):
        layers = [self.in_list[0], *self.in_list[1], self.in_dict["b"], self.in_dict["a"]["deep"], self.in_dict[3]]
        for layer in [*layers, self.in_tuple[0], self.in_namedtuple.left, self.in_namedtuple.right]:
            x = layer(x)
        return x


@case()
def nested_containers():
    return called(Containers(), X)


class Deque(keras.Model):
    def __init__(self):
        super().__init__()
        self.queue = collections.deque([keras.layers.Dense(4), keras.layers.Dense(3)])

    def call(self, x):
        for layer in self.queue:
            x = layer(x)
        return x


@case()
def deque_of_layers():
    return called(Deque(), X)


class SetOfLayers(keras.Model):
    def __init__(self):
        super().__init__()
        self.layer_set = {keras.layers.Dense(4), keras.layers.Dense(4)}

    def call(self, x):
        for layer in self.layer_set:
            x = layer(x)
        return x


@case(refused="a set holds several layers")
def set_of_layers():
    return called(SetOfLayers(), X)


class Shared(keras.Model):
    def __init__(self):
        super().__init__()
        self.a = keras.layers.Dense(4)
        self.b = self.a
        self.everything = [self.a, self.b]

    def call(self, x):
        return self.everything[1](self.a(x)) + self.b(x)


@case()
def shared_layer():
    return called(Shared(), X)


class Scaled(keras.layers.Layer):
    def __init__(self, units, scale, maker=keras.layers.Dense):
        super().__init__()
        self.dense = maker(units)
        self.scale = scale

    def call(self, x):
        return self.dense(x) * self.scale


class AddedLater(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4)
        self.head = None

    def call(self, x):
        y = self.dense(x)
        return y if self.head is None else self.head(y)


@case()
def layer_added_after_construction():
    model = AddedLater()
    model.head = keras.layers.Dense(2)
    return called(model, X)


@case()
def head_of_several_layers_added_after_construction():
    model = AddedLater()
    model.head = keras.Sequential([Scaled(3, 0.5), keras.layers.Dropout(0.3), keras.layers.Dense(2)])
    return called(model, X)


@case()
def layer_replaced_after_construction():
    model = Autoencoder()
    model.encoder = keras.layers.Dense(5, activation="relu")
    return called(model, X)


@case()
def layer_replaced_by_one_of_another_class():
    model = Autoencoder()
    model.decoder = Scaled(4, 2.0)
    model.decode(model(X))
    return model, (X,)


@case()
def layers_appended_after_construction():
    model = Containers()
    model.in_list.append(keras.layers.Dense(4))
    model.in_dict["late"] = keras.layers.Dense(4)
    model.in_list[-1](X)
    model.in_dict["late"](X)
    return called(model, X)


@case(refused="head")
def layer_added_that_nothing_describes():
    model = AddedLater()
    model.head = Scaled(2, 0.5, maker=lambda units: keras.layers.Dense(units))
    return called(model, X)


class Lookup(keras.Model):
    """Two layers of one shape, in a dict whose order depends on an argument."""

    def __init__(self, names):
        super().__init__()
        self.towers = {name: keras.layers.Dense(4) for name in names}

    def call(self, x):
        for name in sorted(self.towers):
            x = self.towers[name](x)
        return x


@case()
def dict_order_from_an_argument():
    return called(Lookup({"b": 1, "a": 2, "c": 3}), X)


class KeywordCall(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x, **extra):
        return self.dense(x) + extra["bias"]


@case()
def call_with_keywords():
    model = KeywordCall()
    model(X, bias=np.ones((6, 1), "float32"))
    return model, ()


class BuiltIns(keras.Model):
    def __init__(self):
        super().__init__()
        self.attention = keras.layers.MultiHeadAttention(2, 3)
        self.norm = keras.layers.LayerNormalization()
        self.rnn = keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True))
        self.cells = keras.layers.RNN([keras.layers.GRUCell(3), keras.layers.GRUCell(2)])
        self.time = keras.layers.TimeDistributed(keras.layers.Dense(3))
        self.conv = keras.Sequential([keras.layers.Conv1D(3, 2), keras.layers.BatchNormalization()])

    def call(self, x, training=False):
        x = self.norm(self.attention(x, x))
        return self.cells(self.conv(self.time(self.rnn(x)), training=training))


@case()
def built_in_composites():
    return called(BuiltIns(), np.random.default_rng(1).normal(size=(2, 5, 4)).astype("float32"))


class Cell(keras.layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.units = units
        self.state_size = units
        self.dense = keras.layers.Dense(units)

    def call(self, x, states):
        y = keras.ops.tanh(self.dense(keras.ops.concatenate([x, states[0]], -1)))
        return y, [y]


class Recurrent(keras.Model):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, x):
        return self.layer(x)


@case()
def user_cell_in_keras_wrapper_as_argument():
    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype("float32")
    return called(Recurrent(keras.layers.RNN(Cell(3), return_sequences=True)), x)


class FunctionalSubclass(keras.Model):
    def __init__(self, width):
        inputs = keras.Input((4,))
        hidden = keras.layers.Dense(width, activation="relu")(inputs)
        super().__init__(inputs=inputs, outputs=keras.layers.Dense(2)(hidden))
        self.width = width


@case()
def functional_subclass():
    return called(FunctionalSubclass(7), X)


class SequentialSubclass(keras.Sequential):
    def __init__(self, width):
        super().__init__()
        self.add(keras.layers.Dense(width))
        self.add(keras.layers.Dense(2))


@case()
def sequential_subclass():
    return called(SequentialSubclass(5), X)


class Property(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    @property
    def broken(self):
        raise RuntimeError("not now")

    @property
    def fresh(self):
        return keras.layers.Dense(1)

    def call(self, x):
        return self.dense(x)


@case()
def properties():
    return called(Property(), X)


class NeverCalled(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)


@case(refused="was never called")
def never_called():
    return NeverCalled(), (X,)


class SiblingAttribute(keras.layers.Layer):
    def __init__(self, parent):
        super().__init__()
        self.holder = [parent]
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x)


class DictOutput(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, inputs):
        y = self.dense(inputs["x"])
        return {"y": y, "pair": (y + 1, [y * 2])}


@case()
def nested_output():
    return called(DictOutput(), {"x": X})


class SaysItIsBuilt(keras.Model):
    def __init__(self, width):
        super().__init__()
        self.hidden = [keras.layers.Dense(width) for _ in range(2)]

    def build_all(self):
        for layer in self.hidden:
            layer.build((None, X.shape[1]))
        self.built = True

    def build(self, input_shape):
        self.build_all()

    def call(self, x):
        return self.hidden[1](self.hidden[0](x))


@case()
def built_by_hand_and_build_never_called():
    model = SaysItIsBuilt(X.shape[1])
    model.build_all()
    return called(model, X)


class Positioned(keras.layers.Layer):
    """Its ``build`` fails the first time, as in symbolic calls, and leaves weights that no attribute leads to."""

    attempts = 0

    def build(self, input_shape):
        self.bias = self.add_weight(shape=(input_shape[-1],), name="bias")
        self.scale = self.add_weight(shape=(1,), initializer="ones", trainable=False, name="scale")
        Positioned.attempts += 1
        if Positioned.attempts == 1:
            raise ValueError("not yet")

    def call(self, x):
        return x * self.scale + self.bias


class BuiltTwice(keras.Model):
    def __init__(self):
        super().__init__()
        self.positioned = Positioned()
        self.out = keras.layers.Dense(2)

    def call(self, x):
        return self.out(self.positioned(x))


@case()
def build_that_failed_and_ran_again():
    model = BuiltTwice()
    with contextlib.suppress(ValueError):
        model(X)
    return called(model, X)
