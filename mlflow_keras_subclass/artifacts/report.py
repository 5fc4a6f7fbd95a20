"""What a person sees first: the model card (``README.md``) and its short form, the logged model's description.

Pure functions of a record, so that the CLI and the tests can call them without a model. Imports manifest. Must not
import Keras or MLflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlflow_keras_subclass.manifest import (
    CLASS_FILE,
    CODE_DIR,
    CONFIG_FILE,
    DATA_DIR,
    FINGERPRINT_FILE,
    GIT_FILE,
    GRAPH_DIR,
    GRAPH_FILE,
    MANIFEST_FILE,
    OBJECTS_FILE,
    OPTIMIZER_FILE,
    PAGE_FILE,
    PATCH_FILE,
    PROOF_FILE,
    SOURCE_DIR,
    STATE_FILE,
    STRUCTURE_FILE,
    SUMMARY_FILE,
    VOCABULARIES_DIR,
    WEIGHTS_TABLE_FILE,
)

__all__ = ["REPORT_FILE", "Card", "TensorRow", "card", "note", "summary"]

REPORT_FILE = "README.md"

_MOST_LISTED = 10
_GUIDE = {
    PAGE_FILE: "all of it on one page: the diagram of the calls, layers, weights, source, proof",
    f"{DATA_DIR}/{CONFIG_FILE}": "the class, its constructor's arguments, input and output spec, how it was compiled",
    f"{DATA_DIR}/{STRUCTURE_FILE}": "every layer: its path, class, arguments, dtype policy, trainable or not",
    f"{DATA_DIR}/{SUMMARY_FILE}": "Keras' summary of the model",
    f"{DATA_DIR}/{WEIGHTS_TABLE_FILE}": "every variable: path, shape, dtype, parameters, digest",
    f"{DATA_DIR}/{STATE_FILE}": "the values of the variables",
    f"{DATA_DIR}/{STATE_FILE}.index.json": "which of the files beside it holds which variable",
    f"{DATA_DIR}/{OPTIMIZER_FILE}": "the state of the optimizer, for going on with training",
    f"{DATA_DIR}/{VOCABULARIES_DIR}": "lookup tables",
    f"{DATA_DIR}/{SOURCE_DIR}": "the source of the class and of all it needs, as it was on disk",
    f"{DATA_DIR}/{CLASS_FILE}": "the class definition that loading uses",
    f"{DATA_DIR}/{OBJECTS_FILE}": "objects that have no form as data",
    f"{DATA_DIR}/{GIT_FILE}": "commit, branch and remote of the source",
    f"{DATA_DIR}/{PATCH_FILE}": "changes that were not committed",
    f"{DATA_DIR}/{FINGERPRINT_FILE}": "what the model answered to a probe when it was logged",
    f"{DATA_DIR}/{GRAPH_FILE}": "what the graph returns, and where the values of its variables are",
    f"{DATA_DIR}/{GRAPH_DIR}": "the model as a graph of its backend: served without the class",
    f"{DATA_DIR}/{PROOF_FILE}": "what was compared when it was rebuilt in an isolated process, and the result",
    f"{DATA_DIR}/{MANIFEST_FILE}": "size and sha256 of every file above",
    CODE_DIR: "code that was logged with the model",
    "requirements.txt": "the packages that serve it",
    "input_example.json": "an input that the model takes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRow:
    """One input or output: its name (``None`` if it has none), shape with ``None`` where open, and dtype."""

    name: str | None
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What there is to say about a logged model.

    Attributes:
        uri: How to address it: ``models:/m-…``, or ``None`` when it lies in a directory.
        not_finite: Paths of the weights that hold NaN or an infinity.
        globals: What the model's code reads from global variables and is stored with it, by name: what it is.
        files: The files of the model directory, as relative paths.
    """

    uri: str | None
    model_class: str
    class_name: str
    doc: str
    inputs: tuple[TensorRow, ...]
    outputs: tuple[TensorRow, ...]
    parameter_count: int
    trainable_count: int
    not_finite: tuple[str, ...]
    globals: Mapping[str, str]
    commit: str | None
    branch: str | None
    remote_url: str | None
    dirty: bool | None
    keras_version: str
    backend: str
    backend_version: str
    python_version: str
    manifest_sha256: str
    files: tuple[str, ...]


def card(record: Card) -> str:
    """The model card."""
    parts = [
        f"# {_text(record.class_name)}",
        *([_text(record.doc)] if record.doc else []),
        _facts(record),
        "## What it takes and returns\n\n" + _table(record),
        "## Load\n\n" + _load(record),
        "## Serve\n\n" + _serve(record),
        "## Reproduce\n\n" + _reproduce(record),
        "## Files\n\n" + _files(record),
        "## Trust\n\n" + _trust(record),
    ]
    return "\n\n".join(parts) + "\n"


def note(record: Card) -> str:
    """The short form, shown as the logged model's description."""
    parts = [
        f"**{_text(record.class_name)}**" + (f": {_text(record.doc)}" if record.doc else ""),
        _facts(record),
        _load(record),
        _fenced("sh", _serve_command(record)),
        "More in README.md and report.html under Artifacts.",
    ]
    return "\n\n".join(parts) + "\n"


def summary(text: str, uri: str) -> str:
    """The model card ``text`` for the copy of what a person reads, which lies in the run."""
    return f"> A copy for reading. The model itself, with its weights and all other files, is `{uri}`.\n\n{text}"


def _facts(record: Card) -> str:
    fixed = record.parameter_count - record.trainable_count
    return "\n".join(
        [
            f"- class: `{record.model_class}`",
            f"- parameters: {record.parameter_count:,} ({record.trainable_count:,} trainable, {fixed:,} not)",
            *_not_finite(record),
            *_globals(record),
            f"- commit: {_commit(record)}",
            f"- made with: Python {record.python_version}, Keras {record.keras_version}, {record.backend} "
            f"{record.backend_version}",
        ]
    )


def _not_finite(record: Card) -> list[str]:
    if not record.not_finite:
        return []
    return [f"- NaN or infinite values in: {', '.join(f'`{path}`' for path in record.not_finite[:_MOST_LISTED])}"]


def _globals(record: Card) -> list[str]:
    if not record.globals:
        return []
    listed = ", ".join(f"`{name}` ({what})" for name, what in record.globals.items())
    return [f"- stored with it, because its code reads them from global variables: {listed}"]


def _commit(record: Card) -> str:
    if record.commit is None:
        return "none; the source was not in a Git repository with a commit"
    state = {True: ", with **uncommitted changes**", False: "", None: ", not known whether with uncommitted changes"}
    branch = f" on `{record.branch}`" if record.branch else ""
    remote = f" of {_text(record.remote_url)}" if record.remote_url else ""
    return f"`{record.commit}`{branch}{remote}{state[record.dirty]}"


def _table(record: Card) -> str:
    rows = [("takes", row) for row in record.inputs] + [("returns", row) for row in record.outputs]
    if not rows:
        return "Not recorded: the model was not called before it was logged."
    lines = ["| | name | shape | dtype |", "|---|---|---|---|"]
    lines += [f"| {kind} | {_name(row.name)} | `{_shape(row.shape)}` | {row.dtype} |" for kind, row in rows]
    if not record.outputs:
        lines += ["", "What it returns was not recorded."]
    return "\n".join([*lines, "", "`None` is any number; the first dimension is the batch."])


def _name(name: str | None) -> str:
    return "(no name)" if name is None else f"`{_text(name)}`"


def _shape(shape: Iterable[int | None]) -> str:
    return str(tuple(shape))


def _load(record: Card) -> str:
    code = [
        "import mlflow",
        "import mlflow_keras_subclass as mks",
        "",
        f"# The {record.class_name} itself, with fit, its attributes and methods:",
        f'model = mks.load_model("{_address(record)}")',
        "# What a server runs, compiled and with predict only:",
        f'served = mlflow.pyfunc.load_model("{_address(record)}")',
    ]
    return _fenced("python", "\n".join(code))


def _serve(record: Card) -> str:
    return (
        _fenced("sh", _serve_command(record))
        + "\n\nChoose a device with `MLFLOW_KERAS_SUBCLASS_DEVICE=cpu` (or `gpu`, `gpu:1`) in the server's environment."
    )


def _serve_command(record: Card) -> str:
    return f"mlflow models serve -m {_address(record)} --env-manager local -p 5000"


def _reproduce(record: Card) -> str:
    install = "pip install -r requirements.txt"
    if record.commit is None:
        return (
            f"There is no commit; the source as it was is under `{DATA_DIR}/{SOURCE_DIR}/`.\n\n{_fenced('sh', install)}"
        )
    lines = [f"git clone {record.remote_url}"] if record.remote_url else []
    lines.append(f"git checkout {record.commit}")
    patch = f"{DATA_DIR}/{PATCH_FILE}"
    if patch in record.files:
        lines.append(f"git apply <this model>/{patch}")
    steps = _fenced("sh", "\n".join([*lines, install]))
    return f"{steps}\n\nThe first steps in one: `mlflow-keras-subclass reproduce {_address(record)} <new directory>`."


def _files(record: Card) -> str:
    rows = [
        (path, text)
        for path, text in _GUIDE.items()
        if path in record.files or any(name.startswith(f"{path}/") for name in record.files)
    ]
    if not rows:
        return "None."
    return "\n".join(["| file | what is in it |", "|---|---|", *(f"| `{path}` | {text} |" for path, text in rows)])


def _trust(record: Card) -> str:
    return (
        f"Loading checks every file against `{DATA_DIR}/{MANIFEST_FILE}`, whose sha256 is `{record.manifest_sha256}`, "
        "and then runs the class definition stored here. Load only models whose author you trust. To run nothing "
        "that is stored, give your own class: "
        f'`mks.load_model(uri, custom_objects={{"{record.class_name.rpartition(".")[2]}": YourClass}})`.'
    )


def _address(record: Card) -> str:
    return record.uri or "<path of this directory>"


def _fenced(language: str, code: str) -> str:
    return f"```{language}\n{code}\n```"


def _text(text: str) -> str:
    """One line of foreign text that cannot break a table or start markup."""
    escaped = " ".join(text.split())
    for sign in "\\`*_|<>[]#":
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped
