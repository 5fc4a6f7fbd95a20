"""Which models come back, logged in which way: writes ``docs/comparison.md``; ``make comparison`` runs it.

Each model of ``patterns.py`` is stored in six ways in one process, and loaded in one further process for each way,
where ``patterns`` cannot be imported unless that way ships it or needs it. Ends with an error if a model stored with
this package does not come back exactly.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import mlflow
import numpy as np

import mlflow_keras_subclass as mks

HERE = Path(__file__).parent
TARGET = HERE.parent / "docs" / "comparison.md"
NUMBERS = np.linspace(-1, 1, 80, dtype=np.float32).reshape(20, 4)
TEXTS = np.array(["a good film", "a bad film", "unknown words", "good"], object)
TARGETS = NUMBERS.sum(axis=1, keepdims=True) ** 2


class Way(NamedTuple):
    """How to store a model in a folder, and how to bring it back from there."""

    store: Callable[[Any, Path], Any]
    load: Callable[[Path], Any]


def patterns() -> Any:
    """The module of the models, where this process may import it."""
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    return importlib.import_module("patterns")


# Given, or MLflow loads each model once more to find them.
REQUIREMENTS = ["keras", "tensorflow"]


def store_mlflow_keras(model: Any, path: Path) -> None:
    mlflow.keras.save_model(model, str(path), pip_requirements=REQUIREMENTS)


def store_mlflow_tensorflow(model: Any, path: Path) -> None:
    given: dict[str, Any] = {"custom_objects": patterns().CLASSES, "code_paths": [str(HERE / "patterns.py")]}
    mlflow.tensorflow.save_model(model, str(path), pip_requirements=REQUIREMENTS, **given)


def store_mlflow_pyfunc(model: Any, path: Path) -> None:
    given: dict[str, Any] = {"python_model": patterns().Predictor(model), "code_paths": [str(HERE / "patterns.py")]}
    mlflow.pyfunc.save_model(str(path), pip_requirements=REQUIREMENTS, **given)


def store_keras_file(model: Any, path: Path) -> None:
    path.mkdir()
    model.save(path / "model.keras")


def load_with_classes(path: Path) -> Any:
    return keras.models.load_model(path / "model.keras", custom_objects=patterns().CLASSES)


WAYS = {
    "`mlflow.keras`": Way(store_mlflow_keras, lambda path: mlflow.keras.load_model(str(path))),
    "`mlflow.tensorflow`": Way(store_mlflow_tensorflow, lambda path: mlflow.tensorflow.load_model(str(path))),
    "`mlflow.pyfunc`": Way(store_mlflow_pyfunc, lambda path: mlflow.pyfunc.load_model(str(path))),
    "`.keras`": Way(store_keras_file, lambda path: keras.models.load_model(path / "model.keras")),
    "`.keras`, class given": Way(store_keras_file, load_with_classes),
    "this package": Way(mks.save_model, mks.load_model),
}


def behaviour(model: Any, *, text: bool, trains: bool) -> dict[str, Any]:
    """Predictions, and the losses of two more epochs where those are the point; a pyfunc can only predict."""
    inputs = TEXTS if text else NUMBERS
    if isinstance(model, mlflow.pyfunc.PyFuncModel):
        return {"predictions": np.asarray(model.predict(inputs))}
    found = {"predictions": model.predict(inputs, verbose=0)}
    if trains:
        found["losses"] = np.array(model.fit(NUMBERS, TARGETS, epochs=2, shuffle=False, verbose=0).history["loss"])
    return found


def store_all(folder: Path) -> dict[str, dict[str, Any]]:
    """Store each model in each way; returns what each did afterwards, or the error."""
    return {
        way: {name: attempt(store_one, case, path_of(folder, way, name), WAYS[way]) for name, case in cases()}
        for way in WAYS
    }


def store_one(case: Any, path: Path, way: Way) -> dict[str, Any]:
    keras.utils.set_random_seed(1)
    model = case.build()
    model.compile("adam", "mse")
    if case.trains:
        model.fit(NUMBERS, TARGETS, verbose=0)
    model.predict(TEXTS if case.text else NUMBERS, verbose=0)
    way.store(model, path)
    return behaviour(model, text=case.text, trains=case.trains)


def load_all(folder: Path, way: str, kinds: dict[str, dict[str, bool]]) -> dict[str, Any]:
    """Load every model that was stored in one way; returns what each does, or the error."""
    if importlib.util.find_spec("patterns") is not None:
        sys.exit("patterns can be imported here, so this would prove nothing.")
    return {name: attempt(load_one, path_of(folder, way, name), WAYS[way], kind) for name, kind in kinds.items()}


def load_one(path: Path, way: Way, kind: dict[str, bool]) -> dict[str, Any]:
    return behaviour(way.load(path), **kind)


def attempt(action: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Results as lists that JSON takes without loss, or the error in one line."""
    try:
        return {key: [array.dtype.str, array.tolist()] for key, array in action(*arguments).items()}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


def path_of(folder: Path, way: str, name: str) -> Path:
    return folder / re.sub(r"\W+", "-", f"{way} {name}")


def cases() -> list[tuple[str, Any]]:
    return list(patterns().CASES.items())


def verdict(stored: dict[str, Any], loaded: dict[str, Any], *, trains: bool) -> str:
    """What became of one model in one way."""
    if "error" in stored:
        return f"error when stored ({kind_of(stored)})"
    if "error" in loaded:
        return f"error when loaded ({kind_of(loaded)})"
    for key, found in loaded.items():
        if found != stored[key]:
            difference = np.abs(np.subtract(found[1], stored[key][1])).max()
            return f"**SILENTLY WRONG** ({key} differ by {difference:.2g})"
    return "predicts exactly, cannot be trained" if trains and "losses" not in loaded else "exact"


def kind_of(result: dict[str, Any]) -> str:
    return f"`{result['error'].partition(':')[0]}`"


def in_process(*arguments: str) -> Any:
    """What this file prints as JSON when run with ``arguments`` in isolated mode."""
    done = subprocess.run(
        [sys.executable, "-I", __file__, *arguments], capture_output=True, text=True, cwd=arguments[1]
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return json.loads(Path(arguments[1], "result.json").read_text(encoding="utf-8"))


def compare() -> tuple[dict[str, dict[str, str]], dict[str, str], list[str]]:
    """Verdicts by model and way, descriptions by model, and one line for each error."""
    with tempfile.TemporaryDirectory() as folder:
        answer = in_process("store", folder)
        kinds, stored = answer["kinds"], answer["stored"]
        loaded = {way: in_process("load", folder, way, json.dumps(kinds)) for way in WAYS}
    table = {
        name: {way: verdict(stored[way][name], loaded[way][name], trains=kind["trains"]) for way in WAYS}
        for name, kind in kinds.items()
    }
    return table, answer["descriptions"], error_lines(table, stored, loaded)


def error_lines(table: dict[str, dict[str, str]], stored: Any, loaded: Any) -> list[str]:
    """Each kind of error of each way, with the models that meet it and the text of the first."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, verdicts in table.items():
        for way, text in verdicts.items():
            if text.startswith("error"):
                found.setdefault((way, text), []).append(name)
    return [
        f"- {way}, {text}: {', '.join(names)}. `{first_words(stored[way][names[0]], loaded[way][names[0]])}`"
        for (way, text), names in found.items()
    ]


def first_words(stored: dict[str, Any], loaded: dict[str, Any]) -> str:
    text = stored.get("error") or loaded["error"]
    # Paths of this machine are of no interest.
    return re.sub(r"(/[\w.-]+){2,}", "…", text)[:160].replace("`", "'") + "…"


def report(table: dict[str, dict[str, str]], descriptions: dict[str, str], errors: list[str]) -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("keras", "tensorflow", "mlflow"))
    rows = ["| model | " + " | ".join(WAYS) + " |", "|---" * (len(WAYS) + 1) + "|"]
    rows += [f"| {name} | " + " | ".join(verdicts.values()) + " |" for name, verdicts in table.items()]
    return INTRODUCTION.format(versions=f"Python {platform.python_version()}, {versions}") + "\n".join(
        [
            *rows,
            "",
            "## The models",
            "",
            *(f"- {name}: {text}" for name, text in descriptions.items()),
            "",
            "## The errors",
            "",
            *errors,
            "",
        ]
    )


INTRODUCTION = """# Which models come back

Written by `make comparison`, which stores each model of `benchmarks/patterns.py` in each way and loads it in a new
process. Measured with {versions}.

- *exact*: predictions, and where training goes on its losses, are equal bit for bit.
- *SILENTLY WRONG*: no error and no refusal, but other numbers.
- `mlflow.tensorflow` is given `custom_objects` and `code_paths`, `mlflow.pyfunc` is given `code_paths`, and
  "`.keras`, class given" is loaded with `custom_objects` where the source is at hand. The others load without it.
- `mlflow.pyfunc` stores a `PythonModel` that holds the model, as its users do.

"""


def main() -> None:
    table, descriptions, errors = compare()
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(report(table, descriptions, errors), encoding="utf-8")
    print(TARGET.read_text(encoding="utf-8"))
    if wrong := [name for name, verdicts in table.items() if verdicts["this package"] != "exact"]:
        sys.exit(f"Not exact with this package: {', '.join(wrong)}")


def step(mode: str, folder: str, *arguments: str) -> None:
    """One of the processes: stores everything, or loads what was stored in one way."""
    if mode == "store":
        result: Any = {
            "kinds": {name: {"text": case.text, "trains": case.trains} for name, case in cases()},
            "descriptions": {name: case.description for name, case in cases()},
            "stored": store_all(Path(folder)),
        }
    else:
        way, kinds = arguments
        result = load_all(Path(folder), way, json.loads(kinds))
    Path(folder, "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    step(*sys.argv[1:]) if sys.argv[1:] else main()
