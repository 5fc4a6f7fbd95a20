"""``python tests/matrix``: logs a slice of the zoo in each environment, and loads all of it in each other one.

The environments are each Python with the newest and the oldest versions that ``pyproject.toml`` allows, made by uv.
Writes ``docs/compatibility.md``; exits with 1 if a model comes back as another one, or is refused without naming what
is needed. Needs nothing but Python itself.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
CASES = (
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
)
# What a refusal names: another Python, another release of Keras, or what to do about the class.
EXPLAINED = re.compile(r"holds bytecode of Python 3\.\d+|was logged with (Keras|tensorflow) \d")
CLOSE = re.compile(r"differ by at most (\S+)$")
TOLERANCE = 1e-5


def main():
    arguments = argparse.ArgumentParser(prog="tests/matrix", description=__doc__)
    arguments.add_argument("--environments", required=True, type=pathlib.Path, help="a folder to keep them in")
    arguments.add_argument("--uv", default="uv", help="the uv to make them with")
    arguments.add_argument("--only", help="comma-separated environments, such as 3.10-newest; all without it")
    arguments.add_argument("--report", type=pathlib.Path, default=ROOT / "docs" / "compatibility.md")
    options = arguments.parse_args()
    names = [f"{python}-{age}" for age in ("newest", "oldest") for python in PYTHONS]
    names = [name for name in names if options.only is None or name in options.only.split(",")]
    interpreters = {name: made(name, options) for name in names}
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        logged = {name: run(interpreters[name], "log", pathlib.Path(folder, name)) for name in names}
        loaded = {
            (home, away): run(interpreters[away], "load", pathlib.Path(folder, home))
            for home in names
            for away in names
        }
    text, is_fine = report({name: versions(interpreters[name]) for name in names}, logged, loaded)
    options.report.write_text(text, encoding="utf-8")
    print(text)
    return 0 if is_fine else 1


def made(name, options):
    """The interpreter of an environment, which is made if it is not there."""
    version, age = name.split("-")
    folder = options.environments.absolute() / f"matrix-{name}"
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([options.uv, "venv", "--quiet", "--python", interpreter(version), folder], check=True)
        resolution = ["--resolution", "lowest-direct"] if age == "oldest" else []
        install = [options.uv, "pip", "install", "--quiet", "--python", python, *resolution, "-e", ".[tensorflow]"]
        subprocess.run(install, check=True, cwd=ROOT)
        (folder / ".ready").touch()
    return python


def interpreter(version):
    """A Python of this version: on the path, or one that pyenv built."""
    found = shutil.which(f"python{version}")
    if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
        return found
    built = sorted(pathlib.Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    if not built:
        sys.exit(f"There is no Python {version} on the path, nor one of pyenv.")
    return built[-1]


def versions(python):
    names = ("keras", "tensorflow", "mlflow", "cloudpickle", "numpy")
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
    return json.loads(subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True).stdout)


def run(python, mode, folder):
    folder.mkdir(exist_ok=True)
    command = [python, "-I", HERE.parent / "zoo_runner.py", mode, folder, "cloudpickle", *CASES]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800, env=environment())
    print(mode, folder.name, "with", python.parent.parent.name, done.returncode, flush=True)
    if done.returncode:
        return dict.fromkeys(CASES, f"wrong: the process ended with {done.returncode}: {done.stderr[-300:]}")
    return json.loads((folder / f"{mode}.json").read_text())


def environment():
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}


def kind_of(verdict):
    """``exact``, ``close``, ``refused`` or ``wrong``."""
    difference = CLOSE.search(verdict)
    if verdict == "exact":
        return "exact"
    if difference and float(difference.group(1)) <= TOLERANCE:
        return "close"
    return "refused" if verdict.startswith("load: ") and EXPLAINED.search(last(verdict)) else "wrong"


def last(verdict):
    lines = [line for line in verdict.strip().splitlines() if line.strip()]
    start = max((n for n, line in enumerate(lines) if re.match(r"\S+Error: ", line)), default=len(lines) - 1)
    return " ".join(line.strip() for line in lines[start:])


def summary(verdict):
    """The error of a refusal without folders and version numbers."""
    text = re.sub(r"/\S+?/(?=[^/\s]+/?[:\s])", "", last(verdict)).removeprefix("mlflow_keras_subclass.errors.")
    return re.sub(r"\d+(\.\d+)+", "x", text)


def report(facts, logged, loaded):
    names, today = list(facts), datetime.date.today().isoformat()
    wrong = [
        f"{name}: {case}: {last(text)}"
        for name, all_ in logged.items()
        for case, text in all_.items()
        if text != "logged"
    ]
    reasons = {}
    lines = [
        "# Compatibility",
        "",
        f"`make test-matrix` makes this page: {len(CASES)} models of the zoo logged in each environment and loaded in",
        f"each, where their source is absent ({today}, CPU). *Exact*: every variable, the native call and the pyfunc's",
        f"answers bit for bit; *close*: to within {TOLERANCE:g}; *refused*: an error says what is needed.",
        "",
        "| environment | " + " | ".join(next(iter(facts.values()))) + " |",
        "|---|" + "---|" * len(next(iter(facts.values()))),
        *(f"| Python {name} | " + " | ".join(facts[name].values()) + " |" for name in names),
        "",
        "Rows: where a model was logged; columns: where it is loaded.",
        "",
        "| logged \\ loaded | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for home in names:
        cells = []
        for away in names:
            kinds = {}
            for case, verdict in loaded[home, away].items():
                kind = kind_of(verdict)
                kinds.setdefault(kind, []).append(case)
                if kind == "refused":
                    reasons.setdefault((case, summary(verdict)), []).append(f"{home} → {away}")
                if kind == "wrong":
                    wrong.append(f"{home} → {away}: {case}: {last(verdict)}")
            cells.append(", ".join(f"{len(cases)} {kind}" for kind, cases in sorted(kinds.items())) or "–")
        lines.append(f"| {home} | " + " | ".join(cells) + " |")
    lines += ["", "## Refused", ""]
    for (case, text), pairs in sorted(reasons.items()):
        where = f"{len(pairs)} pairs" if len(pairs) > 3 else ", ".join(pairs)
        lines.append(f"- `{case}` ({where}): {text[:400]}")
    if wrong:
        lines += ["", "## Wrong", "", *(f"- {item[:500]}" for item in wrong)]
    return "\n".join([*lines, ""]), not wrong


if __name__ == "__main__":
    sys.exit(main())
