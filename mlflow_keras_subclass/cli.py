"""The commands of ``mlflow-keras-subclass``: arguments, output and exit codes; the work is done below.

Exit codes: 0 it is so, 1 it differs or failed, 2 the command was not understood. ``--json`` prints one JSON value.
Each command imports what it needs when it runs: those that only read import neither Keras nor MLflow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from mlflow.exceptions import MlflowException
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from mlflow_keras_subclass.version import __version__

__all__ = ["cli"]

_SHOWN_VALUE = 120
_PIPED_WIDTH = 400
_PASSWORD_VARIABLE = "MLFLOW_KERAS_SUBCLASS_KEY_PASSWORD"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Look at, check and compare subclassed Keras models logged to MLflow.

    A URI is a path, runs:/…, models:/m-…, models:/name/version or models:/name@alias.
    """


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    """Errors are one message on standard error, and exit code 1."""
    try:
        yield
    except MlflowException as error:
        click.echo(f"Error: {error.message}", err=True)
        raise SystemExit(1) from None
    except OSError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(1) from None


def _local(uri: str) -> Path:
    """The model directory at ``uri``, downloaded until the command ends if it is elsewhere."""
    if Path(uri).is_dir():
        return Path(uri)
    downloads = importlib.import_module("mlflow_keras_subclass.downloads")
    root: Path = click.get_current_context().with_resource(downloads.downloaded(uri))
    return root


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, sort_keys=True, default=str))


def _console() -> Console:
    # Where nobody looks at it, no value may be broken into lines.
    return Console() if sys.stdout.isatty() else Console(width=_PIPED_WIDTH)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_shown(item) for item in row))
    return table


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else "–" if value is None else json.dumps(value, default=str)
    # Rich reads brackets as markup.
    text = text.replace("[", r"\[")
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 1] + "…"


@cli.command()
@click.argument("uri")
@_as_json
def inspect(uri: str, as_json: bool) -> None:
    """What a model holds; nothing of it is run or unpickled."""
    from mlflow_keras_subclass.inspection import inspect_model

    with _failing():
        found = inspect_model(_local(uri))
    if as_json:
        _print_json(found.to_json())
        return
    console, versions = _console(), found.manifest.versions
    facts = [
        ("class", found.manifest.model_class),
        ("logged at", found.manifest.created_at),
        ("manifest sha256", found.manifest_sha256),
        ("commit", found.git.commit or found.git.status),
        ("uncommitted changes", {True: "yes", False: "no", None: "not known"}[found.git.dirty]),
        (
            "made with",
            f"Python {versions.python}, Keras {versions.keras}, {versions.backend} {versions.backend_version}",
        ),
        ("loader", found.loader_module),
        ("class comes back by", found.definitions.serialization_format),
        ("layers", str(len(found.structure["layers"]))),
    ]
    console.print(_table("Model", ("", ""), facts))
    constructor = found.config["constructor"]
    arguments = constructor.get("config") or {"args": constructor.get("args"), "kwargs": constructor.get("kwargs")}
    console.print(_table("Constructor", ("argument", "value"), list(arguments.items())))
    for content in found.pickles:
        rows = [(name, _shown(value)) for name, value in _fields(content)]
        console.print(_table(f"Pickle {getattr(content, 'name', '')}", ("", ""), rows))
    console.print(_table("Files", ("path", "bytes"), [(item.path, f"{item.size_bytes:,}") for item in found.files]))
    console.print(_table("Requirements", ("requirement",), [(line,) for line in found.requirements]))


def _fields(record: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(record, name)) for name in record.__dataclass_fields__]


@cli.command()
@click.argument("uri")
@click.option("--rebuild", is_flag=True, help="Also load it, and compare its predictions with the recorded ones.")
@click.option("--public-key", type=click.Path(), help="A PEM file: the model must be signed by its owner.")
@click.option("--manifest-sha256", help="The digest that the manifest must have.")
@_as_json
def verify(uri: str, rebuild: bool, public_key: str | None, manifest_sha256: str | None, as_json: bool) -> None:
    """Whether every file is as it was logged; with --rebuild, whether the model still answers as it did."""
    from mlflow_keras_subclass import trust

    asked = {"public_key": public_key, "manifest_sha256": manifest_sha256}
    with _failing():
        named: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        policy = dataclasses.replace(trust.TrustPolicy.from_environment(), **named)
        root = _local(uri)
        verified = trust.verify(root, policy)
        if rebuild:
            flavor = importlib.import_module("mlflow_keras_subclass.flavor")
            flavor.load_model(root, verify=True, trust_policy=policy)
    result = {
        "files": len(verified.manifest.files),
        "manifest_sha256": verified.manifest_sha256,
        "rebuilt": rebuild,
    }
    if as_json:
        _print_json(result)
    else:
        click.echo(f"{result['files']} files are as they were logged; manifest {verified.manifest_sha256}.")
        if rebuild:
            click.echo("The model was rebuilt and answers as it did when it was logged.")


@cli.command()
@click.argument("path", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--private-key", required=True, type=click.Path(), help="A PEM file with an elliptic-curve key.")
@_as_json
def sign(path: Path, private_key: str, as_json: bool) -> None:
    """Sign a model directory; MLFLOW_KERAS_SUBCLASS_KEY_PASSWORD holds the password of the key, if it has one."""
    from mlflow_keras_subclass import trust

    with _failing():
        signature = trust.sign(path, private_key=private_key, password=os.environ.get(_PASSWORD_VARIABLE))
    if as_json:
        _print_json({"signature": str(signature)})
    else:
        click.echo(f"Signed: {signature}")


@cli.command()
@click.argument("left")
@click.argument("right")
@click.option("--html", type=click.Path(path_type=Path), help="Also write the comparison as a web page.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 if the models differ, as git diff does.")
@_as_json
def diff(left: str, right: str, html: Path | None, exit_code: bool, as_json: bool) -> None:
    """What differs between two models: source, configuration, weights, commit, environment, signature."""
    from mlflow_keras_subclass.differences import compare_models

    with _failing():
        found = compare_models(_local(left), _local(right))
        if html is not None:
            from mlflow_keras_subclass.pages import difference_page

            html.write_bytes(difference_page(found, left=left, right=right).encode("utf-8"))
    if as_json:
        _print_json(found.to_json())
    elif found.is_empty:
        click.echo("The models do not differ.")
    else:
        _print_difference(found)
    if exit_code and not found.is_empty:
        raise SystemExit(1)


def _print_difference(found: Any) -> None:
    console = _console()
    for item in found.source:
        console.print(Syntax(item.diff, "diff", background_color="default", word_wrap=True))
    for title in ("config", "git", "environment", "signature"):
        rows = [(item.path, item.left, item.right) for item in getattr(found, title)]
        if rows:
            console.print(_table(title.capitalize(), ("what", "left", "right"), rows))
    if found.weights:
        columns = ("variable", "left", "right", "‖left‖", "‖right‖", "‖change‖", "largest")
        rows = [
            (item.path, item.left, item.right, *map(_number, (item.left_norm, item.right_norm)),
             _number(item.distance), _number(item.largest))
            for item in found.weights
        ]  # fmt: skip
        console.print(_table("Weights", columns, rows))


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


@cli.command()
@click.argument("place", metavar="FILE.py:Class")
@click.option("--arguments", default="{}", help="The constructor's arguments, as a JSON object.")
@click.option("--input", "inputs", default=None, help='Shapes of an input, as JSON: [null, 4] or {"a": [null, 4]}.')
@_as_json
def check(place: str, arguments: str, inputs: str | None, as_json: bool) -> None:
    """Whether a class makes models that come back, before it is trained for hours."""
    file, _, name = place.rpartition(":")
    if not file or not Path(file).is_file():
        raise click.UsageError(f"expected FILE.py:Class, got {place}")
    from mlflow_keras_subclass import checking

    kind = _imported(Path(file), name)
    try:
        model = kind(**json.loads(arguments))
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"{name} could not be constructed: {error}. Give --arguments.") from None
    with _failing():
        result = checking.check(model, None if inputs is None else _example(json.loads(inputs)))
    if as_json:
        _print_json(result.to_json())
    else:
        click.echo(str(result))
    raise SystemExit(0 if result.ok else 1)


def _imported(file: Path, name: str) -> Any:
    # Armed before the file imports Keras, so that the constructor's arguments are recorded.
    importlib.import_module("mlflow_keras_subclass")
    sys.path.insert(0, str(file.absolute().parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise click.UsageError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    kind = getattr(module, name, None)
    if not isinstance(kind, type):
        raise click.UsageError(f"{file} has no class {name}")
    return kind


def _example(shapes: Any) -> Any:
    numpy = importlib.import_module("numpy")
    if isinstance(shapes, dict):
        return {key: _example(item) for key, item in shapes.items()}
    return numpy.zeros([2 if size is None else size for size in shapes], "float32")


@cli.command()
@click.argument("uri")
@click.option("--path", help="Only this file.")
@_as_json
def source(uri: str, path: str | None, as_json: bool) -> None:
    """The source of the class and of all it needs, as it was on disk."""
    from mlflow_keras_subclass.inspection import inspect_model

    with _failing():
        sources = [item for item in inspect_model(_local(uri)).sources if path in (None, item.path)]
    if not sources:
        click.echo(f"Error: no source file {path or ''}", err=True)
        raise SystemExit(1)
    if as_json:
        _print_json({item.path: item.text for item in sources})
        return
    console = _console()
    for item in sources:
        if len(sources) > 1:
            console.rule(item.path)
        if console.is_terminal:
            console.print(Syntax(item.text, "python", background_color="default"))
        else:
            click.echo(item.text)


@cli.command()
@click.argument("uri")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--repository", help="A local clone or a URL to take the commit from; the recorded one if left out.")
@_as_json
def reproduce(uri: str, directory: Path, repository: str | None, as_json: bool) -> None:
    """Make DIRECTORY the source as it was when the model was logged: the commit, with what was not committed."""
    reproducing = importlib.import_module("mlflow_keras_subclass.reproduce")
    with _failing():
        made = reproducing.reproduce(uri, directory, repository=repository)
    if as_json:
        _print_json(dataclasses.asdict(made))
        return
    click.echo(f"{made.path} is at {made.commit}{', with the patch applied' if made.patched else ''}.")
    for item in made.files:
        click.echo(f"{item.path}: {item.result}")
    for line in made.notes:
        click.echo(f"Note: {line}")


@cli.command("list")
@click.option("--experiment", help="Name of an experiment; all if left out.")
@_as_json
def list_models(experiment: str | None, as_json: bool) -> None:
    """The logged models of this flavor, newest first."""
    from mlflow_keras_subclass import catalog

    with _failing():
        rows = catalog.logged_models(experiment)
    if as_json:
        _print_json(rows)
        return
    columns = ("model", "name", "class", "commit", "dirty", "proof", "metrics")
    shown = [
        (row["model_id"], row["name"], row["model_class"], (row["git_commit"] or "")[:10] or None, row["git_dirty"],
         row["proof"], ", ".join(f"{key}={value:.4g}" for key, value in row["metrics"].items()))
        for row in rows
    ]  # fmt: skip
    _console().print(_table("Logged models", columns, shown))


@cli.command()
@click.argument("uri")
@click.argument("target", type=click.Path(path_type=Path))
@_as_json
def export(uri: str, target: Path, as_json: bool) -> None:
    """Write a model as FILE.keras, FILE.weights.h5 or a SavedModel directory, to leave this flavor."""
    from mlflow_keras_subclass import checking

    with _failing():
        path = checking.export(uri, target)
    if as_json:
        _print_json({"path": str(path)})
    else:
        click.echo(f"Wrote {path}.")


if __name__ == "__main__":
    cli()
