"""Logs or loads the models of ``models.py`` in a process of its own: ``python -I runner.py log|load FOLDER [SOURCES]``.

``log`` writes one model directory for each model, with reference outputs beside it. With ``SOURCES``, a folder that
holds the packages' source, they are the user's own code. ``load`` runs where neither is importable.
"""

import importlib.util
import json
import pathlib
import sys
import traceback

HERE = pathlib.Path(__file__).parent


def module_at(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


zoo_runner = module_at("zoo_runner", HERE.parent / "zoo_runner.py")


def log(folder, sources):
    sys.path[:0] = [str(HERE), *sources]
    import keras
    import models

    verdicts = {}
    for name, model in models.MODELS.items():
        keras.utils.set_random_seed(7)
        verdicts[name] = attempted(log_model, folder / name, model)
        print(f"{name}: {verdicts[name].strip().splitlines()[-1]}", file=sys.stderr, flush=True)
    return verdicts


def log_model(path, model):
    from mlflow_keras_subclass.errors import KerasSubclassError

    case = zoo_runner.Loggable(build=model.build, stateful=model.random, random=model.random)
    try:
        return zoo_runner.log_case(path, case, "cloudpickle")
    except KerasSubclassError as error:
        return f"refused: {error}"


def load(folder):
    for name in ("models", *json.loads((folder / "absent.json").read_text())):
        assert importlib.util.find_spec(name) is None, f"{name} must not be importable here"
    paths = sorted(path.parent for path in folder.glob("*/reference.pickle"))
    return {path.name: attempted(zoo_runner.load_case, path) for path in paths}


def attempted(function, *args):
    try:
        return function(*args)
    except Exception:
        return f"error: {traceback.format_exc()}"


if __name__ == "__main__":
    mode, target, *packages = sys.argv[1:]
    result = log(pathlib.Path(target), packages) if mode == "log" else load(pathlib.Path(target))
    pathlib.Path(target, f"{mode}.json").write_text(json.dumps(result))
