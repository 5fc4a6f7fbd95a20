"""``python tests/real``: logs every real model twice, loads it where its source is absent, and prints the table.

Once the packages are installed, and the artifact names them as requirements; once their source is the user's own code,
which the artifact must carry: copied into a folder, in an environment without the packages. Writes
``docs/real_models.md``; exits with 1 if a model comes back different, or cannot be logged for a reason that is not
given. Needs nothing but Python itself.
"""

import argparse
import ast
import datetime
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field

import runner

HERE = pathlib.Path(__file__).parent


@dataclass(frozen=True)
class Stock:
    """The models for one Keras, and the packages they are from: name of import to name of distribution."""

    keras: str
    shipped: dict[str, str]
    only_installed: dict[str, str] = field(default_factory=dict)

    @property
    def distributions(self):
        return sorted([*self.shipped.values(), *self.only_installed.values(), self.keras.replace("_", "-")])

    def package_of_models(self):
        """The package of each model, read from the text of the module that makes them."""
        tree = ast.parse((HERE / f"{runner.MODELS_ON[self.keras]}.py").read_text())
        return {
            node.name: decorator.args[0].value
            for node in tree.body
            if isinstance(node, ast.FunctionDef)
            for decorator in node.decorator_list
        }


STOCKS = (
    Stock(
        "keras",
        {
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
        },
    ),
    Stock(
        "tf_keras",
        {"spektral": "spektral", "tensorflow_recommenders": "tensorflow-recommenders"},
        # Nobody carries 62 MB of it as code of their own.
        only_installed={"transformers": "transformers"},
    ),
)
REFUSED = """
`liquid_network` is refused because the package's own `CfC.from_config(layer.get_config())` makes a cell whose
activation is a dict instead of the function, with Keras alone as well: a model constructed from it is not the one that
was logged.
"""
_FACTS = """
import importlib.metadata, json, sys, sysconfig
names = json.loads(sys.argv[1])
found = {name: importlib.metadata.distribution(name) for name in names}
facts = {name: (item.version, str(item._path)) for name, item in found.items()}
print(json.dumps({"distributions": facts, "site": sysconfig.get_path("purelib")}))
"""


def main():
    arguments = argparse.ArgumentParser(prog="tests/real", description=__doc__)
    arguments.add_argument("--environments", required=True, type=pathlib.Path, help="the folder that make filled")
    arguments.add_argument("--report", type=pathlib.Path, default=HERE.parent.parent / "docs" / "real_models.md")
    options = arguments.parse_args()
    versions, rows = {}, []
    for stock in STOCKS:
        python, bare = (
            options.environments.absolute() / f"real-{stock.keras}{end}/bin/python" for end in ("", "-bare")
        )
        facts = facts_of(python, [*stock.distributions, "tensorflow"])
        versions |= {name: version for name, (version, _) in facts["distributions"].items()}
        rows += tried(stock, python, bare, facts)
    text = report(versions, rows)
    options.report.write_text(text, encoding="utf-8")
    print(text)
    found = [verdict for row in rows for verdict in row[2:] if verdict is not None]
    return 1 if any(not verdict.startswith(("exact", "refused")) for verdict in found) else 0


def facts_of(python, names):
    command = [python, "-I", "-c", _FACTS, json.dumps(names)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def tried(stock, python, bare, facts):
    """Package, model, and its verdicts: installed, and shipped (``None`` if it is not tried)."""
    packages = stock.package_of_models()
    with tempfile.TemporaryDirectory(prefix="real-models-") as folder:
        installed = verdicts(stock, python, pathlib.Path(folder, "installed"), list(packages))
        sources = pathlib.Path(folder, "sources")
        for name, distribution in stock.shipped.items():
            shutil.copytree(pathlib.Path(facts["site"], name), sources / name)
            # Some packages ask for their own version when they are imported.
            metadata = pathlib.Path(facts["distributions"][distribution][1])
            shutil.copytree(metadata, sources / metadata.name)
        carried = [name for name, package in packages.items() if package in stock.shipped]
        shipped = verdicts(stock, bare, pathlib.Path(folder, "shipped"), carried, sources)
    return [
        (package, name, installed[name], shipped[name] if name in carried else None)
        for name, package in packages.items()
    ]


def verdicts(stock, python, folder, names, sources=None):
    """Verdict by name of model: ``exact``, ``refused: …``, or what is wrong."""
    folder.mkdir()
    (folder / "absent.json").write_text(json.dumps([] if sources is None else list(stock.shipped)))
    run(stock, python, "log", folder, names, *([] if sources is None else [sources]))
    if sources is not None:
        shutil.rmtree(sources)
    run(stock, python, "load", folder, names)
    logged, loaded = (runner.known(folder / f"{mode}.jsonl") for mode in ("log", "load"))
    return {
        name: loaded.get(name, "wrong: was not loaded") if logged[name] == "logged" else logged[name] for name in names
    }


def run(stock, python, mode, folder, names, *more):
    """Run the runner to its end, again for the other models if one of them ends the process."""
    path = folder / f"{mode}.jsonl"
    for _ in range(1 + len(names)):
        before = len(runner.known(path))
        command = [python, "-I", HERE / "runner.py", mode, stock.keras, folder, *more]
        done = subprocess.run(command, cwd=folder, timeout=5400, env=runner.environment(stock.keras, names))
        if done.returncode == 0:
            return
        if len(runner.known(path)) == before:
            break
    sys.exit(f"{mode} ended with {done.returncode}.")


def report(versions, rows):
    counts = [
        f"{sum(verdict == 'exact' for verdict in column)} of {len(column)} {kind}"
        for kind, column in (
            ("installed", [row[2] for row in rows]),
            ("shipped", [row[3] for row in rows if row[3] is not None]),
        )
    ]
    lines = [
        "# Real models",
        "",
        f"**Exact: {counts[0]}, {counts[1]}** ({datetime.date.today().isoformat()}, CPU).",
        "",
        "Models of published packages, written by others, logged and loaded in another process; `make test-real`",
        "makes this table. *Installed*: the package is a requirement of the artifact. *Shipped*: its source is",
        "treated as the user's own, travels in the artifact, and is absent where the model is loaded. *Exact*: every",
        "variable, the native call and the pyfunc's prediction are bit for bit those of the model that was logged.",
        "",
        ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) + ".",
        "",
        "| package | model | installed | shipped |",
        "|---|---|---|---|",
        *(f"| {package} | {name} | {cell(first)} | {cell(second)} |" for package, name, first, second in rows),
        REFUSED,
    ]
    return "\n".join(lines)


def cell(verdict):
    if verdict is None:
        return "–"
    lines = [line for line in verdict.strip().splitlines() if line.strip()]
    text = lines[0] if verdict.startswith("refused") else lines[-1]
    if verdict.startswith("refused") and len(lines) > 1:
        text = " ".join(lines[:2])
    kind = "" if verdict.startswith(("exact", "refused")) else "**wrong** "
    return kind + text.replace("|", "\\|")[:300]


if __name__ == "__main__":
    sys.exit(main())
