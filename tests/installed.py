"""Run in an empty folder by an interpreter that has the package installed: is it whole, and does it do its work?

Arguments: the version that the file's name has, and the folder.
"""

import importlib.metadata
import os
import pathlib
import subprocess
import sys

expected, folder = sys.argv[1], pathlib.Path(sys.argv[2])
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
sys.path.insert(0, str(folder))
(folder / "net.py").write_text(
    """
import keras

class Net(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.dense = keras.layers.Dense(units)

    def call(self, x):
        return self.dense(x)
"""
)

import mlflow  # noqa: E402 # what must be set before is set above
import net  # noqa: E402
import numpy as np  # noqa: E402

import mlflow_keras_subclass as mks  # noqa: E402

package = pathlib.Path(mks.__file__).parent
assert pathlib.Path(sys.prefix) in package.parents, package
assert (package / "py.typed").is_file()
assert importlib.metadata.version("mlflow-keras-subclass") == mks.__version__ == expected
mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
mlflow.set_experiment(experiment_id=mlflow.create_experiment("smoke", artifact_location=str(folder / "artifacts")))
x = np.ones((2, 3), "float32")
model = net.Net(4)
model(x)
uri = mks.log_model(model, name="net", input_example=x).model_uri
np.testing.assert_array_equal(mlflow.pyfunc.load_model(uri).predict(x), np.asarray(model(x)))
stored = mlflow.artifacts.download_artifacts(uri)
command = pathlib.Path(sys.executable).with_name("mlflow-keras-subclass")
print(subprocess.run([command, "verify", stored], check=True, capture_output=True, text=True).stdout.splitlines()[0])
