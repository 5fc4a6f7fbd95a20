"""Logs or loads real models in a process of its own: ``python -I runner.py log|load KERAS FOLDER [SOURCES]``.

``log`` writes one model directory for each model, with reference outputs beside it. With ``SOURCES``, a folder that
holds the packages' source, they are the user's own code. ``load`` runs where neither is importable. Each verdict is a
line of ``log.jsonl`` or ``load.jsonl`` and of the output, as soon as it is known; a model that has one is not asked
again, so that a run goes on after one that ended the process. ``MODELS=name,name`` takes only those, and ``PROVE=0``
logs without the proof: for those who look for the reason of one verdict. ``KERAS`` is ``keras`` or ``tf_keras``, for
which ``environment`` gives the environment variables.
"""

import importlib
import importlib.util
import json
import os
import pathlib
import sys
import time
import traceback

HERE = pathlib.Path(__file__).parent
ENDED = "wrong: the process ended"
MODELS_ON = {"keras": "models", "tf_keras": "models_on_tf_keras"}


def module_at(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def environment(distribution, names):
    legacy = {"TF_USE_LEGACY_KERAS": "1"} if distribution == "tf_keras" else {}
    return {"MODELS": ",".join(names), **os.environ, **legacy}


def log(distribution, folder, sources):
    sys.path[:0] = [str(HERE), *sources]
    keras, models = importlib.import_module(distribution), importlib.import_module(MODELS_ON[distribution]).MODELS

    def logged(name):
        keras.utils.set_random_seed(7)
        return log_model(folder / name, models[name])

    each(folder / "log.jsonl", models, logged)


def log_model(path, model):
    from mlflow_keras_subclass.errors import KerasSubclassError

    case = zoo_runner.Loggable(build=model.build)
    try:
        return zoo_runner.log_case(path, case, "cloudpickle")
    except KerasSubclassError as error:
        return f"refused: {error}"


def load(folder):
    for name in (*MODELS_ON.values(), *json.loads((folder / "absent.json").read_text())):
        assert importlib.util.find_spec(name) is None, f"{name} must not be importable here"
    names = sorted(path.parent.name for path in folder.glob("*/reference.pickle"))
    each(folder / "load.jsonl", names, lambda name: zoo_runner.load_case(folder / name))


def each(path, names, function):
    """Append the verdict of ``function`` on each name that has none yet to ``path``."""
    only = os.environ.get("MODELS")
    for name in names:
        if name in known(path) or (only and name not in only.split(",")):
            continue
        started = time.monotonic()
        note(path, name, ENDED)  # stays the last word if it does
        verdict = attempted(function, name)
        note(path, name, verdict)
        print(f"{path.stem} {name} {time.monotonic() - started:.0f} s: {last_line(verdict)}", flush=True)


def known(path):
    """The last verdict of each name in ``path``."""
    return dict(map(json.loads, path.read_text().splitlines())) if path.exists() else {}


def note(path, name, verdict):
    with path.open("a") as file:
        file.write(json.dumps([name, verdict]) + "\n")


def last_line(verdict):
    return verdict.strip().splitlines()[-1]


def attempted(function, *args):
    try:
        return function(*args)
    except Exception:
        return f"error: {traceback.format_exc()}"


if __name__ == "__main__":
    mode, stock, target, *packages = sys.argv[1:]
    zoo_runner = module_at("zoo_runner", HERE.parent / "zoo_runner.py")
    if mode == "log":
        log(stock, pathlib.Path(target), packages)
    else:
        load(pathlib.Path(target))
