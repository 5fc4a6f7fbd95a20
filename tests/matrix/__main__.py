"""``PYTHONPATH=tests python tests/matrix``: a part of the zoo, logged in each environment and loaded in each.

The environments are each Python with the newest and the oldest versions that ``pyproject.toml`` allows, made by uv, and
Keras on JAX, on torch, and tf_keras. Each logs in one process, and loads what all of them logged in another one. What
was found is kept beside the environments as long as neither the package nor the zoo changes, so that a run which was
stopped goes on. Writes ``docs/compatibility.md`` if nothing was left out; exits with 1 if a model comes back as another
one, or is refused without naming what is needed. Needs nothing but Python itself.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import time

from matrix.environments import ENVIRONMENTS, ROOT, of_python
from matrix.table import page
from pythons import running

RUNNER = ROOT / "tests" / "zoo_runner.py"
CASES = {
    "keras": (
        "dict_argument",
        "array_path_dataclass",
        "lambda_argument",
        "functional_as_argument",
        "nested_helper_class_and_arguments_of_libraries",
        "tensor_and_dict",
        "nested_containers",
        "layers_made_in_build",
        "built_in_composites",
        "adapted_normalization_and_discretization",
        "stateful_rnn",
        "trained_with_optimizer_metrics_and_ema",
        "custom_loss_metric_and_schedule",
        "schedule_without_a_config_in_an_optimizer_of_keras",
        "mixed_precision_from_the_global_policy",
        "int8_quantized",
        "lora_adapters_after_training",
        "sampling_from_own_seed_generators",
        "call_reads_a_global_sequential",
    ),
    "tf_keras": (
        "layers_in_lists_dicts_and_tuples",
        "weights_added_in_build",
        "custom_train_step",
        "legacy_optimizer",
        "functional_models_with_custom_layers_as_arguments",
        "recurrent_wrappers_and_cells",
        "adapted_text_vectorization",
        "mixed_precision",
    ),
}
# What CI asks of the Python that it has: a route without bytecode, one with, a graph of Keras, and training.
SLICE = {
    "keras": (
        "dict_argument",
        "lambda_argument",
        "functional_as_argument",
        "trained_with_optimizer_metrics_and_ema",
        "custom_loss_metric_and_schedule",
    )
}


def main():
    arguments = argparse.ArgumentParser(prog="tests/matrix", description=__doc__)
    arguments.add_argument("--environments", required=True, type=pathlib.Path, help="a folder to keep them in")
    arguments.add_argument("--uv", default="uv", help="the uv to make them with")
    chosen = arguments.add_mutually_exclusive_group()
    chosen.add_argument("--only", help="comma-separated environments, such as 3.10-newest; all without it")
    chosen.add_argument("--slice", action="store_true", help="a few models, on the Python that runs this")
    options = arguments.parse_args()
    environments, cases = (of_python(running()), SLICE) if options.slice else (ENVIRONMENTS, CASES)
    if options.only:
        environments = [item for item in environments if item.name in options.only.split(",")]
    matrix = Matrix(options, cases)
    logged = {item.name: matrix.log(item) for item in environments}
    loaded = {}
    for away in environments:
        loaded |= matrix.load(away, [item.name for item in environments])
    versions = {item.name: item.versions(matrix.python(item)) for item in environments}
    text, is_fine = page(versions, logged, loaded)
    if environments == ENVIRONMENTS:
        (ROOT / "docs" / "compatibility.md").write_text(text, encoding="utf-8")
    print(text)
    return 0 if is_fine else 1


class Matrix:
    """Runs what was not run yet, and keeps it in a folder that is named after the code it was run on."""

    def __init__(self, options, cases):
        self._options = options
        self._cases = cases
        results = options.environments.absolute() / f"results-{'slice' if options.slice else 'all'}"
        self._folder = results / digest(cases)
        for stale in set(results.glob("*")) - {self._folder}:
            shutil.rmtree(stale)

    def python(self, environment):
        return environment.made(self._options.environments, self._options.uv)

    def _ready(self, environment):
        return self.python(environment).parent.parent / ".ready"

    def log(self, environment):
        """The verdict on each case of the environment's Keras."""
        folder, cases = self._folder / "logged" / environment.name, self._cases[environment.keras]
        if not is_current(folder / "log.json", self._ready(environment)):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            error = self._run(environment, folder, "log", folder, "cloudpickle", *cases)
            if error:
                return dict.fromkeys(cases, error)
        return json.loads((folder / "log.json").read_text())

    def load(self, environment, homes):
        """The verdicts on what each of ``homes`` logged, by the pair of names."""
        folder = self._folder / "loaded" / environment.name
        folder.mkdir(parents=True, exist_ok=True)
        files = {home: folder / f"{home}.json" for home in homes}
        missing = []
        for home, file in files.items():
            source = self._folder / "logged" / home
            if not is_current(file, source / "log.json", self._ready(environment)):
                file.unlink(missing_ok=True)
                missing.append(source)
        error = self._run(environment, folder, "load", folder, *missing) if missing else ""
        return {
            (home, environment.name): json.loads(file.read_text()) if file.exists() else {"the process": error}
            for home, file in files.items()
        }

    def _run(self, environment, folder, mode, *arguments):
        """Why a process of the zoo ended early, if it did."""
        started = time.monotonic()
        command = [self.python(environment), "-I", RUNNER, mode, *arguments]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=3600, env=environment.process_environment()
        )
        print(mode, environment.name, f"{time.monotonic() - started:.0f} s", flush=True)
        return f"wrong: ended with {done.returncode}: {done.stderr[-300:]}" if done.returncode else ""


def is_current(file, *sources):
    """Whether a file was made after all that it was made from."""
    return file.exists() and all(
        source.exists() and source.stat().st_mtime <= file.stat().st_mtime for source in sources
    )


def digest(cases):
    """Of everything that a verdict depends on, but for the environments."""
    found = hashlib.sha256(json.dumps(cases).encode())
    zoo = sorted((ROOT / "tests" / "zoo").glob("*.py"))
    for path in [ROOT / "pyproject.toml", RUNNER, *zoo, *sorted((ROOT / "mlflow_keras_subclass").rglob("*.py"))]:
        found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
