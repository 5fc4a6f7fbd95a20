"""Models that have Keras look their own classes up by name while they are constructed."""

import keras
import numpy as np

from zoo import case
from zoo.arguments import X, called

SEQUENCES = np.linspace(-1, 1, 2 * 5 * 3, dtype="float32").reshape(2, 5, 3)


@keras.saving.register_keras_serializable()
class Leaky(keras.layers.SimpleRNN):
    """``Bidirectional`` makes two of it from its configuration."""

    def call(self, x, **options):
        return 0.5 * super().call(x, **options)


class BothWays(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.rnn = keras.layers.Bidirectional(Leaky(units, return_sequences=True))

    def call(self, x):
        return self.rnn(x)


@case()
def bidirectional_over_an_own_layer():
    return called(BothWays(4), SEQUENCES)


@keras.saving.register_keras_serializable(package="zoo")
class Scaled(keras.layers.Layer):
    def __init__(self, factor, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class Averages(keras.Model):
    """Clones a model with wrapped layers of the user's."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.average = keras.models.clone_model(network)

    def call(self, x):
        return self.network(x) - self.average(x)


@case()
def clone_of_a_model_with_wrapped_own_layers():
    network = keras.Sequential([keras.Input((5, 3)), keras.layers.TimeDistributed(Scaled(3.0)), keras.layers.Dense(2)])
    return called(Averages(network), SEQUENCES)


@keras.saving.register_keras_serializable(package="zoo")
class TopK:
    def __init__(self, k=2):
        self.k = k

    def get_config(self):
        return {"k": self.k}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __call__(self, x):
        return keras.ops.top_k(x, self.k)[0]


@keras.saving.register_keras_serializable(package="zoo")
class Greedy(TopK):
    pass


SAMPLERS = {"top_k": TopK, "greedy": Greedy}


class Samples(keras.Model):
    """Makes its sampler in ``compile``, from a name or a configuration."""

    def __init__(self, units):
        super().__init__()
        self.dense = keras.layers.Dense(units)
        self.second = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(Greedy(1)))
        self.compile()

    def compile(self, sampler="top_k", **options):
        super().compile(**options)
        self.sampler = keras.saving.deserialize_keras_object(sampler, module_objects=SAMPLERS)

    def call(self, x):
        return self.second(self.sampler(self.dense(x)))


@case()
def samplers_by_name():
    return called(Samples(6), X)
