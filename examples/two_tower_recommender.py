"""A two-tower recommender with a dict as its input.

No real data about users and items ships in a package that is installed here, so scikit-learn's digits stand in: the
query is the upper half of an image, the items are lower halves, and a good item is one that belongs to the same digit.
The model is what matters: two towers, a score for each pair, and a loss over all pairs of a batch.
"""

from __future__ import annotations

import keras
import mlflow
import numpy as np
from elsewhere import in_fresh_process, require_equal, score, serving, use_local_store
from sklearn.datasets import load_digits

import mlflow_keras_subclass as mks


class Tower(keras.layers.Layer):
    """Features to a point on the unit sphere."""

    def __init__(self, widths, size):
        super().__init__()
        self.stack = [keras.layers.Dense(width, "relu") for width in widths]
        self.out = keras.layers.Dense(size)

    def call(self, features):
        for layer in self.stack:
            features = layer(features)
        return keras.ops.normalize(self.out(features), axis=-1)


class TwoTowers(keras.Model):
    """The score of each pair of ``query`` and ``item``."""

    def __init__(self, towers, temperature=0.1):
        super().__init__()
        self.query_tower = Tower(**towers["query"])
        self.item_tower = Tower(**towers["item"])
        self.temperature = temperature

    def call(self, inputs):
        return keras.ops.sum(self.query_tower(inputs["query"]) * self.item_tower(inputs["item"]), axis=-1)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Of all items of the batch, each query is to find its own."""
        scores = keras.ops.matmul(self.query_tower(x["query"]), keras.ops.transpose(self.item_tower(x["item"])))
        own = keras.ops.arange(keras.ops.shape(scores)[0])
        losses = keras.losses.sparse_categorical_crossentropy(own, scores / self.temperature, from_logits=True)
        return keras.ops.mean(losses)

    def recommend(self, query, items):
        """The index of the best of ``items`` for each row of ``query``."""
        scores = keras.ops.matmul(self.query_tower(query), keras.ops.transpose(self.item_tower(items)))
        return keras.ops.convert_to_numpy(keras.ops.argmax(scores, axis=-1))


def train(epochs: int = 20) -> tuple[TwoTowers, dict[str, np.ndarray], np.ndarray]:
    """The trained model, with pairs that it never saw and their digits."""
    digits = load_digits()
    pixels = (digits.data / 16).astype(np.float32)
    pairs = {"query": pixels[:, :32], "item": pixels[:, 32:]}
    keras.utils.set_random_seed(4)
    model = TwoTowers({"query": {"widths": [64], "size": 16}, "item": {"widths": [64, 32], "size": 16}})
    model.compile("adam")
    model.fit({name: half[:1400] for name, half in pairs.items()}, epochs=epochs, batch_size=64, verbose=0)
    return model, {name: half[1400:] for name, half in pairs.items()}, digits.target[1400:]


def main() -> None:
    use_local_store("two-tower-recommender")
    model, pairs, digits = train()
    best = model.recommend(pairs["query"], pairs["item"])
    share = np.mean(digits[best] == digits)
    print(f"Of {len(best)} lower halves, it recommends one of the same digit to {share:.0%} of the upper halves.")

    with mlflow.start_run():
        info = mks.log_model(model, name="towers", input_example={name: half[:2] for name, half in pairs.items()})
    print(f"Logged as {info.model_uri}")

    reloaded = in_fresh_process(info.model_uri, pairs, source=__file__)
    require_equal(model.predict(pairs, verbose=0), reloaded.native)
    require_equal(best, mks.load_model(info.model_uri).recommend(pairs["query"], pairs["item"]))
    print("A process that cannot import this file gives the same scores, bit for bit.")

    with serving(info.model_uri) as url:
        require_equal(reloaded.pyfunc, score(url, pairs))
    print("So does the scoring server, for a dict of tensors.")


if __name__ == "__main__":
    main()
