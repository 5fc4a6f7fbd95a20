"""Runs the recipe of ``docs/how-to/ray.md`` where this package is not: ``RECIPE MODEL INPUTS OUTPUTS``."""

import importlib.util
import re
import sys

import numpy as np
import ray


def main(recipe, uri, inputs, outputs):
    assert importlib.util.find_spec("mlflow_keras_subclass") is None
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    with open(recipe, encoding="utf-8") as file:  # noqa: PTH123
        (code,) = re.findall(r"^```python\n(.*?)^```", file.read(), re.MULTILINE | re.DOTALL)
    names = {"__name__": "__main__", "uri": uri, "features": np.load(inputs)}
    exec(compile(code, recipe, "exec"), names)
    rows = sorted(names["scored"].take_all(), key=lambda row: tuple(row["features"]))
    np.savez(outputs, features=[row["features"] for row in rows], scores=[row["score"] for row in rows])
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
