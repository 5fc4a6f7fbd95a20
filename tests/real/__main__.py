"""``python tests/real``: logs every real model twice, loads it where its source is absent, and prints the table.

Once the packages are installed, and the artifact names them as requirements; once their source is the user's own code,
which the artifact must carry: copied into a folder, in an environment without the packages. Writes
``docs/real_models.md``; exits with 1 if a model comes back different, or cannot be logged for a reason that is not
given. Needs nothing but Python itself.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import runner

HERE = pathlib.Path(__file__).parent
PACKAGES = {
    "bayesflow": "bayesflow",
    "gated_sae": "gated-sae-tf",
    "keras_bio": "keras-bio",
    "keras_climate": "keras-climate",
    "keras_hub": "keras-hub",
    "keras_rs": "keras-rs",
    "keras_sciml": "keras-sciml",
    "kerasfactory": "kerasfactory",
    "kgcnn": "kgcnn",
    "medicai": "medicai",
    "ncps": "ncps",
}
_FACTS = """
import importlib.metadata, json, pathlib, sys, sysconfig
names = json.loads(sys.argv[1])
versions = {name: importlib.metadata.version(name) for name in [*names.values(), "keras", "tensorflow"]}
metadata = [str(importlib.metadata.distribution(name)._path) for name in names.values()]
print(json.dumps({"versions": versions, "site": sysconfig.get_path("purelib"), "metadata": metadata}))
"""


def main():
    arguments = argparse.ArgumentParser(prog="tests/real", description=__doc__)
    arguments.add_argument("--installed", required=True, help="a Python that has the packages")
    arguments.add_argument("--bare", required=True, help="a Python that has what they need, but not them")
    arguments.add_argument("--report", type=pathlib.Path, default=HERE.parent.parent / "docs" / "real_models.md")
    options = arguments.parse_args()
    facts = facts_of(options.installed)
    with tempfile.TemporaryDirectory(prefix="real-models-") as folder:
        installed = verdicts(options.installed, pathlib.Path(folder, "installed"), absent=[])
        sources = pathlib.Path(folder, "sources")
        for name in PACKAGES:
            shutil.copytree(pathlib.Path(facts["site"], name), sources / name)
        for path in map(pathlib.Path, facts["metadata"]):
            # Some packages ask for their own version when they are imported.
            shutil.copytree(path, sources / path.name)
        shipped = verdicts(options.bare, pathlib.Path(folder, "shipped"), sources=sources, absent=list(PACKAGES))
    text = report(facts["versions"], installed, shipped)
    options.report.write_text(text, encoding="utf-8")
    print(text)
    found = [*installed.values(), *shipped.values()]
    return 1 if any(not verdict.startswith(("exact", "refused")) for verdict in found) else 0


def facts_of(python):
    done = subprocess.run(
        [python, "-I", "-c", _FACTS, json.dumps(PACKAGES)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def verdicts(python, folder, *, absent, sources=None):
    """Verdict by name of model: ``exact``, ``refused: …``, or what is wrong."""
    folder.mkdir()
    (folder / "absent.json").write_text(json.dumps(absent))
    run(python, "log", folder, *([] if sources is None else [sources]))
    if sources is not None:
        shutil.rmtree(sources)
    run(python, "load", folder)
    logged, loaded = (runner.known(folder / f"{mode}.jsonl") for mode in ("log", "load"))
    return {
        name: loaded.get(name, "wrong: was not loaded") if verdict == "logged" else verdict
        for name, verdict in logged.items()
    }


def run(python, mode, folder, *more):
    """Run the runner to its end, again for the other models if one of them ends the process."""
    path = folder / f"{mode}.jsonl"
    for _ in range(1 + len(package_of_models())):
        before = len(runner.known(path))
        done = subprocess.run([python, "-I", HERE / "runner.py", mode, folder, *more], cwd=folder, timeout=5400)
        if done.returncode == 0:
            return
        if len(runner.known(path)) == before:
            break
    sys.exit(f"{mode} ended with {done.returncode}.")


def report(versions, installed, shipped):
    packages = package_of_models()
    lines = [
        "# Real models",
        "",
        "Models of published packages, written by others, logged and loaded in another process; `make test-real`",
        "makes this table. *Installed*: the package is a requirement of the artifact. *Shipped*: its source is",
        "treated as the user's own, travels in the artifact, and is absent where the model is loaded. *Exact*: every",
        "variable, the native call and the pyfunc's prediction are bit for bit those of the model that was logged.",
        "",
        f"Keras {versions.pop('keras')}, TensorFlow {versions.pop('tensorflow')}, "
        + ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        + ".",
        "",
        "| package | model | installed | shipped |",
        "|---|---|---|---|",
    ]
    for name in installed:
        lines.append(f"| {packages[name]} | {name} | {cell(installed[name])} | {cell(shipped.get(name, 'missing'))} |")
    counts = [f"{sum(v == 'exact' for v in one.values())} of {len(one)}" for one in (installed, shipped)]
    return "\n".join([*lines, "", f"Exact: {counts[0]} installed, {counts[1]} shipped.", ""])


def package_of_models():
    """The package of each model, read from the text of ``models.py``."""
    import ast

    tree = ast.parse((HERE / "models.py").read_text())
    return {
        node.name: decorator.args[0].value
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
    }


def cell(verdict):
    lines = [line for line in verdict.strip().splitlines() if line.strip()]
    text = lines[0] if verdict.startswith("refused") else lines[-1]
    if verdict.startswith("refused") and len(lines) > 1:
        text = " ".join(lines[:2])
    kind = "" if verdict.startswith(("exact", "refused")) else "**wrong** "
    return kind + text.replace("|", "\\|")[:300]


if __name__ == "__main__":
    sys.exit(main())
