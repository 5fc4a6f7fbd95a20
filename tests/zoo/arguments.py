"""What constructors take."""

import dataclasses
import enum
import pathlib

import keras
import numpy as np
import pandas as pd

from zoo import case

X = np.linspace(-1, 1, 24, dtype="float32").reshape(6, 4)


def called(model, *inputs):
    model(*inputs)
    return model, inputs


class CustomLayer(keras.layers.Layer):
    def __init__(self, param1, param2):
        super().__init__()
        self.dense = keras.layers.Dense(param1)
        self.param2 = param2

    def call(self, x):
        return self.dense(x) * self.param2


class SimpleModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)


@case()
def no_arguments():
    return called(SimpleModel(), X)


class ComplexModel(keras.Model):
    def __init__(self, config):
        super().__init__()
        self.custom = CustomLayer(**config["custom_layer"])

    def call(self, x):
        return self.custom(x)


@case()
def dict_argument():
    return called(ComplexModel({"custom_layer": {"param1": 10, "param2": 0.5}}), X)


class OneRequired(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.dense = keras.layers.Dense(units)

    def call(self, x):
        return self.dense(x)


@case()
def one_required():
    return called(OneRequired(5), X)


class Defaults(keras.Model):
    def __init__(self, units=2, temperature=1.0):
        super().__init__()
        self.dense = keras.layers.Dense(units)
        self.temperature = temperature

    def call(self, x):
        return self.dense(x) / self.temperature


@case()
def defaults_changed():
    return called(Defaults(3, temperature=7.0), X)


class Varargs(keras.Model):
    def __init__(self, *widths, last=1):
        super().__init__()
        self.stack = [keras.layers.Dense(width) for width in widths]
        self.head = keras.layers.Dense(last)

    def call(self, x):
        for layer in self.stack:
            x = layer(x)
        return self.head(x)


@case()
def varargs():
    return called(Varargs(3, 5, 2, last=4), X)


class PositionalOnly(keras.Model):
    def __init__(self, units, /, scale):
        super().__init__()
        self.dense = keras.layers.Dense(units)
        self.scale = scale

    def call(self, x):
        return self.dense(x) * self.scale


@case()
def positional_only():
    return called(PositionalOnly(3, 0.25), X)


class Mode(enum.Enum):
    SUM = "sum"
    MEAN = "mean"


class Typed(keras.Model):
    def __init__(self, shape, names, mode):
        super().__init__()
        assert isinstance(shape, tuple)
        assert all(isinstance(key, int) for key in names)
        assert mode is Mode.MEAN
        self.dense = keras.layers.Dense(shape[1])
        self.names = names
        self.mode = mode

    def call(self, x):
        y = self.dense(x)
        reduce = keras.ops.mean if self.mode is Mode.MEAN else keras.ops.sum
        return reduce(y, axis=-1) * len(self.names)


@case()
def tuple_int_key_enum():
    return called(Typed((4, 3), {1: "a", 2: "b"}, Mode.MEAN), X)


@dataclasses.dataclass(frozen=True)
class Settings:
    units: int
    path: pathlib.Path
    rates: tuple = (0.1, 0.2)


class ArrayPathDataclass(keras.Model):
    def __init__(self, table, settings):
        super().__init__()
        self.table = keras.ops.convert_to_tensor(table)
        self.settings = settings
        self.dense = keras.layers.Dense(settings.units)

    def call(self, x):
        return self.dense(x @ self.table) * self.settings.rates[1]


@case()
def array_path_dataclass():
    table = np.random.default_rng(0).normal(size=(4, 4)).astype("float32")
    return called(ArrayPathDataclass(table, Settings(3, pathlib.Path("a") / "b")), X)


class WithFunction(keras.Model):
    def __init__(self, function):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.function = function

    def call(self, x):
        return self.function(self.dense(x))


@case()
def lambda_argument():
    factor = 3.0
    return called(WithFunction(lambda x: x * factor + 1), X)


def double(x):
    return x * 2


@case()
def function_argument():
    return called(WithFunction(double), X)


@case()
def keras_function_argument():
    return called(WithFunction(keras.activations.gelu), X)


class Wrapper(keras.Model):
    def __init__(self, body, head):
        super().__init__()
        self.body = body
        self.head = head

    def call(self, x):
        return self.head(self.body(x))


@case()
def layers_as_arguments():
    return called(Wrapper(CustomLayer(5, 2.0), keras.layers.Dense(2, activation="tanh")), X)


@case()
def model_as_argument():
    return called(Wrapper(ComplexModel({"custom_layer": {"param1": 6, "param2": 3.0}}), SimpleModel()), X)


@case()
def sequential_as_argument():
    return called(Wrapper(keras.Sequential([CustomLayer(5, 2.0), keras.layers.Dense(2)]), SimpleModel()), X)


@case()
def functional_as_argument():
    inputs = keras.Input((4,))
    outputs = CustomLayer(3, 0.5)(keras.layers.Dense(4, activation="relu")(inputs))
    return called(Wrapper(keras.Model(inputs, outputs), keras.layers.Dense(2)), X)


class Mutating(keras.Model):
    def __init__(self, config):
        super().__init__()
        self.dense = keras.layers.Dense(config.pop("units"))
        self.scale = config.pop("scale")

    def call(self, x):
        return self.dense(x) * self.scale


@case()
def constructor_mutates_dict():
    return called(Mutating({"units": 3, "scale": 0.5}), X)


class InheritedConfig(SimpleModel):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def get_config(self):
        return {}

    def call(self, x):
        return super().call(x) * self.factor


@case()
def incomplete_get_config():
    return called(InheritedConfig(4.0), X)


class ConfigParent(keras.Model):
    def __init__(self, units=3):
        super().__init__()
        self.units = units
        self.dense = keras.layers.Dense(units)

    def get_config(self):
        return {"units": self.units}

    def call(self, x):
        return self.dense(x)


class ConfigChild(ConfigParent):
    def __init__(self, units, factor):
        super().__init__(units)
        self.factor = factor

    def call(self, x):
        return super().call(x) * self.factor


@case()
def inherited_get_config():
    return called(ConfigChild(5, 3.0), X)


class OwnFromConfig(keras.Model):
    def __init__(self, body, scale):
        super().__init__()
        self.body = body
        self.scale = scale

    def get_config(self):
        return {"body": keras.saving.serialize_keras_object(self.body), "scale": [self.scale]}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["body"]), config["scale"][0])

    def call(self, x):
        return self.body(x) * self.scale


@case()
def user_from_config():
    return called(OwnFromConfig(keras.layers.Dense(3), 0.5), X)


class Helper:
    def __init__(self, scale):
        self.scale = scale
        self.table = {"a": [1, 2]}

    def apply(self, x):
        return x * self.scale


class WithHelper(keras.Model):
    def __init__(self, helper):
        super().__init__()
        self.helper = helper
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.helper.apply(self.dense(x))


@case()
def plain_helper_object():
    return called(WithHelper(Helper(0.5)), X)


@case()
def list_of_dicts():
    class _Stack(keras.Model):
        def __init__(self, layers):
            super().__init__()
            self.stack = [keras.layers.Dense(**item) for item in layers]

        def call(self, x):
            for layer in self.stack:
                x = layer(x)
            return x

    return called(_Stack([{"units": 3, "activation": "relu"}, {"units": 2}]), X)


class SharedArgument(keras.Model):
    def __init__(self, first, second):
        super().__init__()
        self.first = first
        self.second = second

    def call(self, x):
        return self.second(self.first(x))


@case()
def one_layer_as_two_arguments():
    layer = keras.layers.Dense(4)
    return called(SharedArgument(second=layer, first=layer), X)


class Hooks(keras.Model):
    def __init__(self, units, parts):
        super().__init__()
        self.dense = keras.layers.Dense(units, kernel_initializer=parts["init"], kernel_regularizer=parts["reg"])

    def call(self, x):
        return self.dense(x)


class Scaled(keras.initializers.Initializer):
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, shape, dtype=None):
        return keras.ops.ones(shape, dtype) * self.scale


@case()
def keras_based_helpers():
    return called(Hooks(3, {"init": Scaled(0.5), "reg": keras.regularizers.L2(0.1)}), X)


class DroppedArgument(keras.Model):
    def __init__(self, base):
        super().__init__()
        self.features = keras.Sequential(base.layers[:-1])
        self.head = keras.layers.Dense(2)

    def call(self, x):
        return self.head(self.features(x))


@case()
def argument_not_kept():
    base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, activation="relu"), keras.layers.Dense(1)])
    return called(DroppedArgument(base), X)


class TwoInputs(keras.Model):
    def __init__(self):
        super().__init__()
        self.a = keras.layers.Dense(3)
        self.b = keras.layers.Dense(3)

    def call(self, left, right):
        return self.a(left) + self.b(right)


@case()
def two_positional_inputs():
    return called(TwoInputs(), X, X[:, :2])


class TensorAndDict(keras.Model):
    def __init__(self):
        super().__init__()
        self.a = keras.layers.Dense(3)
        self.b = keras.layers.Dense(3)

    def call(self, x, extra):
        return self.a(x) + self.b(extra["z"]) * extra["w"]


@case()
def tensor_and_dict():
    return called(TensorAndDict(), X, {"z": X[:, :3], "w": X[:, :1]})


class StarInputs(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, *xs):
        return self.dense(keras.ops.concatenate(xs, axis=-1))


@case()
def star_inputs():
    return called(StarInputs(), X, X[:, :2])


class ListInput(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, inputs):
        left, right = inputs
        return self.dense(left) * right


@case()
def list_input():
    return called(ListInput(), [X, X[:, :1]])


class Tokens(keras.Model):
    def __init__(self, size):
        super().__init__()
        self.table = self.add_weight(shape=(size, 3), name="table")

    def call(self, tokens):
        return keras.ops.sum(keras.ops.take(self.table, tokens, axis=0), axis=1)


@case()
def int_tokens_through_gather():
    return called(Tokens(10), np.array([[1, 2], [3, 9]], dtype="int32"))


class Options(dict):
    """A dict whose keys are attributes, and every other name an error of its own kind."""

    __getattr__ = dict.__getitem__


class Lenient(dict):
    """The same, where every other name is ``None``."""

    __getattr__ = dict.get
    __setattr__ = dict.__setitem__


class Configured(keras.Model):
    def __init__(self, options, more):
        super().__init__()
        self.options, self.more = options, more
        self.hidden = keras.layers.Dense(options.hidden, activation=more.activation)
        self.out = keras.layers.Dense(more.classes)

    def call(self, x):
        return self.out(self.hidden(x))


@case()
def dicts_whose_keys_are_attributes():
    return called(Configured(Options(hidden=5), Lenient(activation="tanh", classes=2)), X)


class Reader(keras.Model):
    class Tokenizer:
        """Belongs to the class of the model."""

        def __init__(self, words):
            self.numbers = {word: number for number, word in enumerate(words)}
            self.words = {number: word for word, number in self.numbers.items()}

    def __init__(self, words, table, generator):
        super().__init__()
        self.tokenizer = Reader.Tokenizer(words)
        self.table = table
        self.generator = generator
        self.noise = generator.normal(size=3).astype("float32")
        self.embedding = keras.layers.Embedding(len(words), len(table.columns))

    def call(self, x):
        return self.embedding(x)


@case()
def nested_helper_class_and_arguments_of_libraries():
    table = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    return called(Reader(["a", "b", "c"], table, np.random.default_rng(3)), np.array([[0, 1, 2]], "int32"))
