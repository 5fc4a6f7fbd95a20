"""The recipe of ``docs/how-to/ray.md``, as it is written there: ``make test-ray``."""

import os
import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np

import mlflow_keras_subclass as mks

RECIPE = Path(__file__).parents[2] / "docs" / "how-to" / "ray.md"


class Dense(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.out = keras.layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.out(x)


def test_map_batches_scores_where_this_package_is_not(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20_000, 4)).astype(np.float32)
    model = Dense()
    model(x[:2])
    mks.save_model(model, tmp_path / "m", prove=False)
    np.save(tmp_path / "x.npy", x)
    command = [os.environ["MKS_RAY"], Path(__file__).with_name("ray_runner.py"), RECIPE, tmp_path / "m"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    subprocess.run([*command, tmp_path / "x.npy", tmp_path / "found.npz"], check=True, cwd=tmp_path, env=kept)

    with np.load(tmp_path / "found.npz") as found:
        assert len(found["scores"]) == len(x)
        np.testing.assert_allclose(found["scores"], np.asarray(model(found["features"])), rtol=1e-5, atol=1e-6)
