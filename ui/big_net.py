"""A model of a thousand layers and two thousand variables, to see that its pages can be read."""

from __future__ import annotations

from typing import Any

import keras


class Block(keras.layers.Layer):
    """Three layers and the input added."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm = keras.layers.BatchNormalization()
        self.up = keras.layers.Dense(2 * units, activation="gelu")
        self.down = keras.layers.Dense(units)

    def call(self, x: Any) -> Any:
        return x + self.down(self.up(self.norm(x)))


class Stack(keras.layers.Layer):
    """Blocks, one after the other."""

    def __init__(self, units: int, depth: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.blocks = [Block(units) for _ in range(depth)]

    def call(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


class BigNet(keras.Model):
    """Stacks of blocks that all look the same."""

    def __init__(self, units: int = 8, stacks: int = 50, depth: int = 5) -> None:
        super().__init__()
        self.stacks = [Stack(units, depth) for _ in range(stacks)]
        self.head = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        for stack in self.stacks:
            x = stack(x)
        return self.head(x)
