"""What a class can do with torch only: its own functions, parameters, buffers and modules, training steps."""

import keras
import numpy as np
import torch

from zoo import case
from zoo.arguments import X, called

BACKENDS = ("torch",)


class Direct(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.dense = keras.layers.Dense(units)
        self.noise = torch.randn(units)

    def call(self, x):
        return torch.nn.functional.gelu(self.dense(x)) + self.noise


@case()
def functions_and_tensors_of_torch():
    return called(Direct(3), X)


class Raw(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.scale = torch.nn.Parameter(torch.randn(3))
        self.frozen = torch.nn.Parameter(torch.randn(3), requires_grad=False)
        self.register_buffer("offset", torch.zeros(3))

    def call(self, x):
        return self.dense(x) * self.scale * self.frozen + self.offset


@case()
def raw_parameters_and_buffers():
    model, inputs = called(Raw(), X)
    with torch.no_grad():
        model.scale.mul_(2.0)
        model.offset.add_(1.0)
    return model, inputs


class Inner(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = torch.nn.Linear(4, width)
        self.norm = torch.nn.BatchNorm1d(width)

    def forward(self, x):
        return torch.relu(self.norm(self.linear(x)))


class Wrapping(keras.Model):
    def __init__(self, width):
        super().__init__()
        self.inner = Inner(width)
        self.head = keras.layers.Dense(2)

    def call(self, x, training=False):
        return self.head(self.inner(x, training=training))


@case()
def module_as_attribute():
    model = Wrapping(5)
    model(X, training=True)
    return called(model, X)


@case()
def module_as_argument():
    class _Around(keras.Model):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def call(self, x):
            return self.body(x)

    return called(_Around(torch.nn.Linear(4, 3)), X)


class Held:
    def __init__(self):
        self.module = torch.nn.Linear(4, 3)
        self.token = torch.nn.Parameter(torch.randn(3))


class Holding(keras.Model):
    def __init__(self):
        super().__init__()
        self.held = Held()

    def call(self, x):
        return self.held.module(x) + self.held.token


@case()
def module_in_a_plain_object():
    return called(Holding(), X)


class Stepping(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.hidden = keras.layers.Dense(units, activation="relu")
        self.drop = keras.layers.Dropout(0.3)
        self.head = keras.layers.Dense(2)

    def call(self, x, training=False):
        return self.head(self.drop(self.hidden(x), training=training))

    def train_step(self, data):
        x, y = data
        self.zero_grad()
        loss = torch.mean((self(x, training=True) - y) ** 2)
        loss.backward()
        weights = list(self.trainable_weights)
        with torch.no_grad():
            self.optimizer.apply([weight.value.grad for weight in weights], weights)
        self.last_loss = float(loss)
        return {"loss": loss}


@case()
def custom_train_step():
    model = Stepping(5)
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    model.fit(X, np.ones((6, 2), "float32"), verbose=0)
    return model, (X,)
