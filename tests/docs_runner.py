"""Runs pages of the documentation from top to bottom, each as a program: ``docs_runner.py FOLDER``.

One process for all pages, since TensorFlow takes longer to import than a page to run. Each page has a folder and a
store of its own, and is ``__main__`` while it runs, as a script of its reader's would be.
"""

import json
import os
import pathlib
import shlex
import shutil
import sys
import traceback
import types
import warnings

warnings.simplefilter("ignore")

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import keras  # noqa: E402 - warnings are off first
import mlflow  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from pages import COMMAND, pages, steps  # noqa: E402

from mlflow_keras_subclass.cli import cli  # noqa: E402


def run_page(page, folder, empty_store):
    folder.mkdir(parents=True)
    shutil.copy(empty_store, folder / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.set_registry_uri(f"sqlite:///{folder / 'mlflow.db'}")
    mlflow.create_experiment("shop", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("shop")
    keras.utils.set_random_seed(0)
    todo = [step for step in steps(page) if step.reason is None]
    program = folder / "program.py"
    program.write_text(padded(step for step in todo if not step.is_command), encoding="utf-8")
    main = types.ModuleType("__main__")
    main.__file__ = str(program)
    before = sys.modules["__main__"], pathlib.Path.cwd()
    sys.modules["__main__"] = main
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    try:
        for step in todo:
            if step.is_command:
                run_command(step.code, vars(main))
            else:
                exec(compile(padded([step]), str(program), "exec"), vars(main))
    finally:
        sys.modules["__main__"] = before[0]
        sys.path.remove(str(folder))
        os.chdir(before[1])


def padded(blocks):
    """One program in which every block is on the lines that it has on its page, so that errors name these."""
    lines = []
    for step in blocks:
        lines += [""] * (step.line - 1 - len(lines)) + step.code.splitlines()
    return "\n".join(lines) + "\n"


def run_command(line, names):
    if "models:/m-…" in line:
        line = line.replace("models:/m-…", names["info"].model_uri)
    arguments = shlex.split(line.removeprefix(COMMAND), comments=True)
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, f"{line} ended with {result.exit_code}: {result.output}"


def main(folder):
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'empty.db'}")
    mlflow.search_experiments()  # makes the tables, which takes seconds: once, for all pages
    outcomes = {}
    for number, page in enumerate(pages()):
        try:
            run_page(page, folder / str(number), folder / "empty.db")
            outcomes[page] = "ran"
        except Exception:
            outcomes[page] = traceback.format_exc()
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
