"""Loads in many threads of one process that was forked or spawned; prints what they gave and what they left, as JSON.

``python concurrent_loads.py FOLDER fork`` also saves what is loaded, in a process of its own: two versions of one
package, by each route. The parent of forks imports all and runs nothing, since the threads of TensorFlow do not
survive a fork.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import threading
from pathlib import Path

LOADS = 64
VERSIONS = {"one": 2.0, "two": 3.0}
ROUTES = ("cloudpickle", "source")

# The pause is where a thread would find a module that another has not run to its end.
SCALING = """
import time
import keras
time.sleep(0.1)

@keras.saving.register_keras_serializable("shared")
class Scale(keras.layers.Layer):
    def __init__(self, by, **kwargs):
        super().__init__(**kwargs)
        self.by = by

    def call(self, x):
        from versioned.constants import FACTOR
        return x * FACTOR * self.by

    def get_config(self):
        return {**super().get_config(), "by": self.by}
"""
NET = """
import keras
from versioned.scaling import Scale

@keras.saving.register_keras_serializable("shared")
class Net(keras.Model):
    def __init__(self, last):
        super().__init__()
        self.dense = keras.layers.Dense(2, kernel_initializer="ones")
        # As Keras itself does it: by the name under which the class is registered.
        self.last = keras.layers.deserialize(keras.layers.serialize(last))

    def call(self, x):
        return self.last(self.dense(x))
"""


def save_all(folder):
    import keras
    import numpy as np

    import mlflow_keras_subclass as mks

    for version, factor in VERSIONS.items():
        package = folder / "projects" / version / "versioned"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "constants.py").write_text(f"FACTOR = {factor}\n")
        (package / "scaling.py").write_text(SCALING)
        (package / "net.py").write_text(NET + f"VERSION = {version!r}\n")
        sys.path.insert(0, str(package.parent))
        for name in [name for name in sys.modules if name.partition(".")[0] == "versioned"]:
            del sys.modules[name]
        from versioned.net import Net
        from versioned.scaling import Scale

        model = Net(Scale(1.0))
        model(np.ones((1, 3), "float32"))
        for route in ROUTES:
            mks.save_model(model, folder / f"{version}-{route}", serialization_format=route, prove=False)
        sys.path.remove(str(package.parent))
        keras.saving.get_custom_objects().clear()


def tables():
    """What belongs to the process and not to us."""
    import cloudpickle
    import keras
    from keras.src.saving import object_registration

    return {
        "sys.path": list(sys.path),
        "objects of Keras": dict(keras.saving.get_custom_objects()),
        "names of Keras": dict(object_registration.GLOBAL_CUSTOM_NAMES),
        "cloudpickle": cloudpickle.list_registry_pickle_by_value(),
        "dtype policy": keras.config.dtype_policy(),
        "floatx": keras.config.floatx(),
    }


def answer(path):
    import numpy as np

    import mlflow_keras_subclass as mks

    return float(np.asarray(mks.load_model(path)(np.ones((1, 3), "float32")))[0, 0])


def load_all(folder, report, loads):
    import keras

    @keras.saving.register_keras_serializable("shared")
    class Net(keras.layers.Layer):
        """The caller's own, by the name that the stored text registers too."""

    before, modules = tables(), set(sys.modules)
    wrong, start = [], threading.Barrier(loads)
    models = [(f"{version}-{route}", 3 * factor) for version, factor in VERSIONS.items() for route in ROUTES]

    def load(name, expected):
        try:
            start.wait()
            found = answer(folder / name)
            if found != expected:
                wrong.append(f"{name}: {found}, expected {expected}")
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=load, args=models[number % len(models)]) for number in range(loads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alternately = [answer(folder / name) == expected for name, expected in models]
    after, added = tables(), {name.partition(".")[0] for name in set(sys.modules) - modules}
    report.write_text(
        json.dumps(
            {
                "wrong": wrong,
                "alternately": alternately,
                "changed": [name for name in before if before[name] != after[name]],
                "own": keras.saving.get_registered_object("shared>Net") is Net,
                "user's module": "versioned" in added,
                "private modules": len([name for name in added if name.startswith("_mks_")]),
            }
        )
    )


def main():
    folder, method = Path(sys.argv[1]), sys.argv[2]
    processes = multiprocessing.get_context(method)
    if method == "fork":
        import keras  # noqa: F401

        from mlflow_keras_subclass import keras_api, pyfunc  # noqa: F401

        ended(processes.Process(target=save_all, args=(folder,)))
    # Forks are two at once: what is on the disk is shared among processes, too.
    reports = [folder / f"{method}-{number}.json" for number in range(2 if method == "fork" else 1)]
    loads = LOADS // len(reports)
    children = [processes.Process(target=load_all, args=(folder, report, loads)) for report in reports]
    for child in children:
        child.start()
    for child in children:
        ended(child)
    print(json.dumps([json.loads(report.read_text()) for report in reports]))


def ended(child):
    if child.pid is None:
        child.start()
    child.join(300)
    if child.exitcode is None:
        child.kill()
    assert child.exitcode == 0, child.exitcode


if __name__ == "__main__":
    main()
