"""Loads models where their source cannot be imported: ``python -I reload_runner.py FOLDER``.

``FOLDER/jobs.json`` holds URIs by name, and ``NAME.inputs.npz`` the inputs of each. Predictions of the model itself
and of the ``python_function`` are written beside them.
"""

import importlib.util
import json
import pathlib
import runpy
import sys

import mlflow
import numpy as np

import mlflow_keras_subclass as mks

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def main(folder):
    # Not demo: where `make demo` ran, its store is a folder of that name.
    for source in EXAMPLES.glob("*_*.py"):
        assert importlib.util.find_spec(source.stem) is None, f"{source.stem} must not be importable here"
    read_inputs = runpy.run_path(str(EXAMPLES / "elsewhere.py"))["read_inputs"]
    for name, uris in json.loads((folder / "jobs.json").read_text(encoding="utf-8")).items():
        inputs = read_inputs(folder / f"{name}.inputs.npz")
        native = mks.load_model(uris["native"]).predict(inputs, verbose=0)
        pyfunc = mlflow.pyfunc.load_model(uris["pyfunc"]).predict(inputs)
        np.savez(folder / f"{name}.outputs.npz", native=native, pyfunc=pyfunc)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
