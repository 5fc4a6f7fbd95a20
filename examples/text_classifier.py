"""A text classifier that takes strings: the ``TextVectorization`` and its vocabulary are inside the model.

The texts are real: the docstrings of numpy, pandas and scikit-learn as installed here, without the libraries' names.
The model says which library a docstring is from.
"""

from __future__ import annotations

import inspect
import re

import keras
import mlflow
import numpy as np
import pandas
import sklearn.cluster
import sklearn.datasets
import sklearn.ensemble
import sklearn.linear_model
import sklearn.metrics
import sklearn.preprocessing
from elsewhere import in_fresh_process, require_equal, score, serving, use_local_store

import mlflow_keras_subclass as mks

LIBRARIES = {
    "numpy": [np, np.linalg, np.fft, np.random, np.ma],
    "pandas": [pandas, pandas.DataFrame, pandas.Series.str, pandas.Series.dt, pandas.Index],
    "scikit-learn": [
        sklearn.cluster,
        sklearn.datasets,
        sklearn.ensemble,
        sklearn.linear_model,
        sklearn.metrics,
        sklearn.preprocessing,
    ],
}


class TextClassifier(keras.Model):
    """Strings to probabilities."""

    def __init__(self, classes, *, words=3000, size=32):
        super().__init__()
        self.classes = classes
        self.vectorize = keras.layers.TextVectorization(max_tokens=words, output_sequence_length=80)
        self.embed = keras.layers.Embedding(words, size, mask_zero=True)
        self.pool = keras.layers.GlobalAveragePooling1D()
        self.head = keras.layers.Dense(len(classes), activation="softmax")

    def call(self, texts):
        return self.head(self.pool(self.embed(self.vectorize(texts))))

    def name_of(self, text):
        """The most probable class of one text."""
        return self.classes[int(keras.ops.argmax(self(keras.ops.convert_to_tensor([text]))[0]))]


def docstrings() -> tuple[np.ndarray, np.ndarray]:
    """The prose at the head of each public docstring, in a fixed random order, with the number of its library."""
    found: dict[str, int] = {}
    for label, places in enumerate(LIBRARIES.values()):
        for place in places:
            for name in dir(place):
                text = inspect.getdoc(getattr(place, name, None)) or ""
                prose = re.split(r"\n(?:Parameters|Returns|See Also|Examples|\.\.)", text)[0]
                prose = re.sub(r"(?i)numpy|np\.|pandas|pd\.|scikit-learn|sklearn|scipy", "", prose)
                if not name.startswith("_") and len(prose.split()) > 5:
                    found.setdefault(prose, label)
    order = np.random.default_rng(0).permutation(len(found))
    return np.array(list(found), object)[order], np.array(list(found.values()))[order]


def train(epochs: int = 10) -> tuple[TextClassifier, np.ndarray, float, float]:
    """The trained model, texts that it never saw, its accuracy on them, and that of always saying the same."""
    texts, labels = docstrings()
    cut = len(texts) * 4 // 5
    keras.utils.set_random_seed(3)
    model = TextClassifier(list(LIBRARIES))
    model.vectorize.adapt(texts[:cut])
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(texts[:cut], labels[:cut], epochs=epochs, verbose=0)
    accuracy = model.evaluate(texts[cut:], labels[cut:], verbose=0)[1]
    return model, texts[cut:], accuracy, np.bincount(labels[cut:]).max() / len(labels[cut:])


def main() -> None:
    use_local_store("text-classifier")
    model, texts, accuracy, commonest = train()
    print(
        f"Accuracy on {len(texts)} docstrings that it never saw: {accuracy:.3f}; of a constant answer: {commonest:.3f}"
    )

    with mlflow.start_run():
        mlflow.log_metric("accuracy", accuracy)
        info = mks.log_model(model, name="docstrings", input_example=texts[:2])
    print(f"Logged as {info.model_uri}")

    reloaded = in_fresh_process(info.model_uri, texts, source=__file__)
    require_equal(model.predict(texts, verbose=0), reloaded.native)
    print("A process that cannot import this file predicts the same, bit for bit.")
    question = "Fit a linear model with many features."
    print(f"Its methods come back too: {question!r} is from {mks.load_model(info.model_uri).name_of(question)}.")

    with serving(info.model_uri) as url:
        require_equal(reloaded.pyfunc, score(url, texts))
    print("So does the scoring server, which is sent the strings.")


if __name__ == "__main__":
    main()
