"""The model of the golden artifacts; what is stored of it is loaded for ever, so this file is not changed."""

import keras


class Scale(keras.layers.Layer):
    def build(self, shape):
        self.factor = self.add_weight(shape=(shape[-1],), initializer="ones", name="factor")

    def call(self, x):
        return x * self.factor


class GoldenNet(keras.Model):
    def __init__(self, units, names=("a", "b"), rate=0.25):
        super().__init__()
        self.names = dict.fromkeys(names, 1)
        self.hidden = [keras.layers.Dense(units, activation="relu"), Scale()]
        self.norm = keras.layers.BatchNormalization()
        self.drop = keras.layers.Dropout(rate)
        self.out = keras.layers.Dense(len(names))

    def call(self, x, training=False):
        for layer in self.hidden:
            x = layer(x)
        return self.out(self.drop(self.norm(x, training=training), training=training))
