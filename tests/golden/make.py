"""Makes the golden artifact of the current format version and this Python: ``python tests/golden/make.py``.

Run once for each format version on each Python, by the release that writes it (``make golden PYTHON=python3.12
VENV=.venvs/golden-3.12``), and committed. It refuses to replace one.
"""

import sys
from pathlib import Path

import keras
import numpy as np

from mlflow_keras_subclass import model_dir
from mlflow_keras_subclass.manifest import FORMAT_VERSION

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from golden_net import GoldenNet  # noqa: E402 - found by the line above


def main():
    keras.utils.set_random_seed(20261126)
    x = np.random.default_rng(1).normal(size=(16, 6)).astype("float32")
    model = GoldenNet(4, names=("a", "b", "c"))
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    model.fit(x, np.ones((16, 3), "float32"), epochs=1, verbose=0)
    target = HERE / f"format-{FORMAT_VERSION}-python-{sys.version_info.major}.{sys.version_info.minor}"
    target.mkdir()
    # Below MLflow: its files and the bundled loader are not what the format version promises.
    model_dir.write(model, target / "model", provenance="off")
    variables = [np.asarray(variable) for variable in model.variables]
    np.savez(target / "expected.npz", *variables, x=x, y=np.asarray(model(x)))
    print(target)


if __name__ == "__main__":
    main()
