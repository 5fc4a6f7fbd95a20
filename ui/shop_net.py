"""The model that the pages are looked at with: nested layers, several inputs, a residual, no graph of its own."""

from __future__ import annotations

from typing import Any

import keras


class Tower(keras.layers.Layer):
    """Dense layers, each with its input added."""

    def __init__(self, units: int, depth: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.blocks = [keras.layers.Dense(units, activation="relu") for _ in range(depth)]
        self.norm = keras.layers.LayerNormalization()

    def call(self, x: Any) -> Any:
        x = self.blocks[0](x)
        for block in self.blocks[1:]:
            x = x + block(x)
        return self.norm(x)


class TwoTower(keras.Model):
    """Scores a user against an item by the product of two towers."""

    def __init__(self, units: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.user_tower = Tower(units, depth)
        self.item_tower = Tower(units, depth)
        self.head = keras.layers.Dense(1, activation="sigmoid")
        self.dropout = keras.layers.Dropout(0.1)

    def call(self, inputs: Any, training: bool = False) -> Any:
        user = self.user_tower(inputs["user"])
        item = self.item_tower(inputs["item"])
        return self.head(self.dropout(user * item, training=training))
