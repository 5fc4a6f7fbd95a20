"""Models that are logged on one backend and loaded on another; run as ``python -I zoo.py log|load FOLDER``."""

import json
import logging
import pathlib
import sys
import traceback

import mlflow_keras_subclass as mks  # before Keras: the constructor's arguments are noted

import keras  # isort: skip
import numpy as np  # isort: skip

BACKEND = keras.backend.backend()
X = np.linspace(-1, 1, 6 * 8, dtype="float32").reshape(6, 8)


class Residual(keras.layers.Layer):
    """Every kind of state: weights, statistics, a seed, a counter."""

    def __init__(self, width, rate=0.1):
        super().__init__()
        self.dense = keras.layers.Dense(width, activation="gelu")
        self.norm = keras.layers.BatchNormalization()
        self.drop = keras.layers.Dropout(rate, seed=3)
        self.calls = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="calls")

    def call(self, x, training=False):
        return x + self.drop(self.norm(self.dense(x), training=training), training=training)


class Portable(keras.Model):
    """Asks keras.ops only."""

    def __init__(self, width, depth, scales=(1.0, 0.5)):
        super().__init__()
        # Keras keeps a handle of the backend on the one, and a graph in the other, which torch has among its modules.
        self.scaled = keras.Sequential([keras.Input((8,)), keras.layers.Rescaling(0.5), keras.layers.Dense(8)])
        self.blocks = [Residual(width) for _ in range(depth)]
        self.attention = keras.layers.MultiHeadAttention(2, 4)
        self.heads = {"mean": keras.layers.Dense(1), "scale": keras.layers.Dense(1)}
        self.scales = scales

    def call(self, x, training=False):
        x = self.scaled(x)
        for block, scale in zip(self.blocks, self.scales, strict=True):
            x = block(x, training=training) * scale
        sequence = keras.ops.reshape(x, (-1, 2, 4))
        x = keras.ops.reshape(self.attention(sequence, sequence), (-1, 8))
        return {name: head(x) for name, head in self.heads.items()}


def portable():
    model = Portable(8, 2)
    # An object: on torch its class is one of torch's own.
    model.compile(keras.optimizers.AdamW(0.01), loss={"mean": "mse", "scale": "mse"}, jit_compile=False)
    y = {name: X[:, :1] * 2 for name in ("mean", "scale")}
    model.fit(X, y, epochs=2, batch_size=3, verbose=0)
    return model


if BACKEND == "tensorflow":
    import tensorflow as tf

    class Bound(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return tf.where(self.dense(x) > 0, tf.constant(1.0), tf.constant(0.0))

elif BACKEND == "jax":
    import jax.numpy as jnp

    class Bound(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return jnp.where(self.dense(x) > 0, 1.0, 0.0)

else:
    import torch

    class Bound(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return torch.where(self.dense(x) > 0, 1.0, 0.0)


class OnlyTraining(keras.Model):
    """Its training step alone is written for the backend; what it answers is not."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x)

    def train_step(self, *args):
        if BACKEND == "tensorflow":
            return tf.reduce_sum(args)
        return jnp.sum(args) if BACKEND == "jax" else torch.sum(args)


def answers(model):
    returned = model(X)
    items = returned if isinstance(returned, dict) else {"": returned}
    return {name: keras.ops.convert_to_numpy(item).tolist() for name, item in items.items()}


def log(folder):
    keras.utils.set_random_seed(5)
    for model in (portable(), Bound(), OnlyTraining()):
        name = type(model).__name__
        reference = answers(model)
        mks.save_model(model, folder / f"{name}-{BACKEND}", prove=False)
        (folder / f"{name}-{BACKEND}" / "reference.json").write_text(json.dumps(reference))


class Listed(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def load(folder):
    verdicts = {}
    for path in sorted(folder.glob("*-*")):
        listed = Listed()
        logger = logging.getLogger("mlflow_keras_subclass")
        logger.addHandler(listed)
        try:
            model = mks.load_model(path)
            expected = json.loads((path / "reference.json").read_text())
            found = answers(model)
            error = max(float(np.max(np.abs(np.subtract(found[k], expected[k])))) for k in expected)
            steps = int(model.optimizer.iterations) if getattr(model, "optimizer", None) is not None else None
            verdicts[path.name] = {"error": error, "steps": steps}
        except mks.RebuildError as refusal:
            verdicts[path.name] = {"refused": str(refusal)}
        except Exception:
            verdicts[path.name] = {"raised": traceback.format_exc()}
        logger.removeHandler(listed)
        verdicts[path.name]["warnings"] = listed.lines
    (folder / f"load-{BACKEND}.json").write_text(json.dumps(verdicts))


if __name__ == "__main__":
    {"log": log, "load": load}[sys.argv[1]](pathlib.Path(sys.argv[2]))
