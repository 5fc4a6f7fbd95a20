"""Quantized layers and low-rank adapters: state that exists only after a method of the layer was called."""

import keras
import numpy as np

from zoo import case
from zoo.arguments import X, called

IDS = np.array([[1, 2, 3], [4, 5, 6]], "int32")


class Mlp(keras.Model):
    def __init__(self, units=8):
        super().__init__()
        self.hidden = keras.layers.Dense(units, activation="relu")
        self.out = keras.layers.Dense(3)

    def call(self, x):
        return self.out(self.hidden(x))


class Tokens(keras.Model):
    def __init__(self):
        super().__init__()
        self.embed = keras.layers.Embedding(10, 4)
        self.mix = keras.layers.EinsumDense("abc,cd->abd", output_shape=(None, 6), bias_axes="d")

    def call(self, ids):
        return self.mix(self.embed(ids))


def quantized(mode):
    model, inputs = called(Mlp(), X)
    model.quantize(mode)
    return called(model, *inputs)


@case()
def int8_quantized():
    return quantized("int8")


@case()
def int4_quantized():
    return quantized("int4")


@case(stateful=True)
def float8_quantized():
    model = Mlp()
    model(X)
    model.quantize("float8")
    model(X)
    return model, (X,)


@case()
def int8_embedding_and_einsum():
    model, inputs = called(Tokens(), IDS)
    model.quantize("int8")
    return called(model, *inputs)


@case()
def one_layer_quantized():
    model, inputs = called(Mlp(), X)
    model.hidden.quantize("int8")
    return called(model, *inputs)


@case()
def lora_adapters_after_training():
    model, inputs = called(Mlp(), X)
    model.hidden.enable_lora(2)
    model.out.enable_lora(3, lora_alpha=6)
    model.compile("sgd", loss="mse")
    model.fit(X, np.ones((len(X), 3), "float32"), verbose=0)
    return model, inputs


@case()
def lora_of_embedding_and_einsum():
    model, inputs = called(Tokens(), IDS)
    model.embed.enable_lora(2)
    model.mix.enable_lora(2)
    model.embed.lora_embeddings_b.assign(np.full((2, 4), 0.1, "float32"))
    return model, inputs


@case()
def lora_on_an_int8_layer():
    model, inputs = called(Mlp(), X)
    model.quantize("int8")
    model.out.enable_lora(2)
    model.out.lora_kernel_b.assign(np.full((2, 3), 0.1, "float32"))
    return model, inputs
