"""Models that earlier formats wrote load for ever, with the predictions that they had."""

from pathlib import Path

import numpy as np
import pytest

from mlflow_keras_subclass import model_dir
from mlflow_keras_subclass.manifest import FORMAT_VERSION
from mlflow_keras_subclass.trust import TrustPolicy, verify

FOLDERS = sorted((Path(__file__).parent / "golden").glob("format-*"))


def test_every_format_version_has_one():
    assert [folder.name for folder in FOLDERS] == [f"format-{number}" for number in range(1, FORMAT_VERSION + 1)]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_golden_model_loads(folder):
    expected = np.load(folder / "expected.npz")

    model = model_dir.rebuild(verify(folder / "model", TrustPolicy()))

    assert type(model).__name__ == "GoldenNet"
    # Another processor or release of TensorFlow may order the sums of a product otherwise.
    np.testing.assert_allclose(np.asarray(model(expected["x"])), expected["y"], rtol=1e-5, atol=1e-6)
    assert int(model.optimizer.iterations) == 1
