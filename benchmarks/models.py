"""The models that are measured. Importable and registered, which the peers need and this package does not."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


@keras.saving.register_keras_serializable("benchmarks")
class Tiny(keras.Model):
    """Two dense layers: what a call costs besides arithmetic."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden, self.out = keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.out(self.hidden(x))


@keras.saving.register_keras_serializable("benchmarks")
class Cnn(keras.Model):
    """Two convolutions on 32 x 32 images."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first = keras.layers.Conv2D(16, 3, strides=2, activation="relu")
        self.second = keras.layers.Conv2D(32, 3, strides=2, activation="relu")
        self.pool, self.out = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)

    def call(self, images: Any) -> Any:
        return self.out(self.pool(self.second(self.first(images))))


@keras.saving.register_keras_serializable("benchmarks")
class Transformer(keras.Model):
    """Six layers of attention, 10 million parameters."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embed = keras.layers.Embedding(2000, 384)
        self.attend = [keras.layers.MultiHeadAttention(6, 64) for _ in range(6)]
        self.norms = [keras.layers.LayerNormalization() for _ in range(6)]
        self.mix = [keras.layers.Dense(384, activation="gelu") for _ in range(6)]
        self.widen = [keras.layers.Dense(1056, activation="gelu") for _ in range(6)]
        self.out = keras.layers.Dense(10)

    def call(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        for attend, norm, mix, widen in zip(self.attend, self.norms, self.mix, self.widen, strict=True):
            x = norm(x + attend(x, x))
            x = x + mix(widen(x))
        return self.out(keras.ops.mean(x, axis=1))


@keras.saving.register_keras_serializable("benchmarks")
class Large(keras.Model):
    """As large as is asked for, 1 GiB by default; registered and with a config, so that Keras loads it.

    ``fill`` is the value of all its weights, random if ``None``.
    """

    def __init__(
        self, layers: int = 12, width: int = 2**12, vocabulary: int = 2**14, fill: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.sizes = {"layers": layers, "width": width, "vocabulary": vocabulary, "fill": fill}
        start = "uniform" if fill is None else keras.initializers.Constant(fill)
        self.embedding = keras.layers.Embedding(vocabulary, width, embeddings_initializer=start)
        self.hidden = [keras.layers.Dense(width, use_bias=False, kernel_initializer=start) for _ in range(layers)]
        # Built here, so that every way of loading has the variables to fill.
        self.embedding.build()
        for layer in self.hidden:
            layer.build((None, width))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.sizes}

    def call(self, tokens: Any) -> Any:
        x = self.embedding(tokens)
        for layer in self.hidden:
            x = layer(x)
        return x


@keras.saving.register_keras_serializable("benchmarks")
class Pieces(keras.layers.Layer):
    """A hundred small variables."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = [self.add_weight(shape=(2,), initializer="ones", name=f"part_{n}") for n in range(100)]

    def call(self, x: Any) -> Any:
        return x + keras.ops.mean(keras.ops.stack([part.value for part in self.parts]), axis=0)


@keras.saving.register_keras_serializable("benchmarks")
class Many(keras.Model):
    """Ten thousand variables."""

    def __init__(self, blocks: int = 100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_count = blocks
        self.blocks = [Pieces() for _ in range(blocks)]
        for block in self.blocks:
            block.build(None)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "blocks": self.block_count}

    def call(self, tokens: Any) -> Any:
        x = keras.ops.cast(tokens, "float32")
        for block in self.blocks:
            x = block(x)
        return x


def rows(name: str, count: int) -> np.ndarray[Any, Any]:
    """A batch for the model of that name."""
    rng = np.random.default_rng(count)
    if name == "transformer":
        return rng.integers(0, 2000, (count, 32)).astype(np.int32)
    return rng.normal(size=(count, *{"tiny": (8,), "cnn": (32, 32, 3)}[name])).astype(np.float32)


def made(name: str) -> Any:
    """A model of that name, called once."""
    keras.utils.set_random_seed(1)
    model = {"tiny": Tiny, "cnn": Cnn, "transformer": Transformer}[name]()
    model(rows(name, 2))
    return model
