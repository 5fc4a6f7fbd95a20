"""``report.html``: all that a person wants to see of a model on one page, made from the files just written.

Beside the model card, not instead of it: the card is text that MLflow renders, this is the diagram, the weights and
the source in colour. Nothing reads it back. Imports files, manifest, tensors, call_graph, diagram and markup; must
not import Keras or MLflow.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mlflow_keras_subclass import diagram
from mlflow_keras_subclass.call_graph import INPUT, CallGraph, Graph
from mlflow_keras_subclass.manifest import (
    CONFIG_FILE,
    DATA_DIR,
    GIT_FILE,
    MANIFEST_FILE,
    PAGE_FILE,
    PATCH_FILE,
    PROOF_FILE,
    REQUIREMENTS_FILE,
    SOURCE_DIR,
    STATE_FILE,
    STRUCTURE_FILE,
    WEIGHTS_TABLE_FILE,
)
from mlflow_keras_subclass.markup import Raw, chips, code, collapsible, document, escape, name, section, table
from mlflow_keras_subclass.tensors import TensorReader, Tensors, opened_tensors

__all__ = ["Heading", "write"]

_SAMPLED = 8192
_BINS = 24
# The page stays below the 5 MiB over which MLflow shows text without colours, though its limit for pages is 50 MiB.
_MOST_VARIABLES = 2500
_MOST_LAYERS = 3000
_MOST_GRAPHS = 20
_MOST_NAMES = 30
_OPEN_ROWS = 40
_OPEN_GROUPS = 100
_SOURCE_CHARACTERS = 120_000
_PATCH_CHARACTERS = 120_000
_CONFIGURATION_CHARACTERS = 30_000
_PARAMETER_KINDS = ("layer", "untracked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """The top of the page; ``uri`` is ``None`` where the model lies in a directory."""

    class_name: str
    model_class: str
    doc: str
    uri: str | None
    facts: tuple[str, ...]


def write(root: Path, heading: Heading, graph: CallGraph) -> None:
    """Write ``report.html`` into the model directory ``root``, in which all else of ours is there."""
    data = root / DATA_DIR
    layers = _json(data / STRUCTURE_FILE)["layers"]
    with (data / WEIGHTS_TABLE_FILE).open(encoding="utf-8", newline="") as file:
        variables = list(csv.DictReader(file))
    tree = _Tree(layers, variables, graph)
    parts = {
        "Calls": _calls(graph),
        "Layers": _layers(tree),
        "Weights": _weights(_Folder(data), tree),
        "Proof": _proof(data / PROOF_FILE),
        "Configuration": _configuration(data / CONFIG_FILE),
        "Source": _sources(data / SOURCE_DIR),
        "Git": _commit(data),
        "Environment": _environment(root, data),
    }
    body = [
        f"<h1>{escape(heading.class_name)}</h1>",
        f'<p class="soft">{escape(heading.doc or heading.model_class)}</p>',
        chips([*([heading.uri] if heading.uri else []), *heading.facts]),
        *(section(title, text) for title, pieces in parts.items() if (text := "\n".join(pieces))),
    ]
    (root / PAGE_FILE).write_bytes(document(heading.class_name, body).encode("utf-8"))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# --- calls


def _calls(graph: CallGraph) -> Iterator[str]:
    if not graph.graphs:
        yield _soft(
            "Which layer calls which is not known: the model was not called, or could not be traced without data."
        )
        return
    first, *inner = graph.graphs
    yield _soft("Each layer is below those whose output it takes; · stands for any size.")
    drawing = diagram.call_graph(first)
    is_long = len(first.nodes) > _OPEN_ROWS
    yield collapsible(f"The model calls {len(first.nodes) - 1} layers", drawing) if is_long else drawing
    alike = list(_alike(inner).values())
    for paths in alike[:_MOST_GRAPHS]:
        yield _inner_calls(paths)
    if len(alike) > _MOST_GRAPHS:
        yield _soft(f"{len(alike) - _MOST_GRAPHS} more kinds of layers call several others.")


def _alike(graphs: Sequence[Graph]) -> dict[Any, list[Graph]]:
    """Graphs of several layers by what they look like, so that a block that is there a hundred times is drawn once."""
    found: dict[Any, list[Graph]] = {}
    for graph in graphs:
        nodes = tuple((node.path.removeprefix(graph.path), node.kind, node.shapes, node.calls) for node in graph.nodes)
        if len(nodes) > 2:
            found.setdefault((nodes, graph.edges), []).append(graph)
    return found


def _inner_calls(graphs: Sequence[Graph]) -> str:
    first, *others = graphs
    count = len(first.nodes) - 1
    if not others:
        return collapsible(f"{first.path} calls {count} layers", diagram.call_graph(first))
    names = ", ".join(item.path for item in others[:_MOST_NAMES]) + (", …" if len(others) > _MOST_NAMES else "")
    too = f"so does {others[0].path}" if len(others) == 1 else f"so do {len(others)} more, in the same way"
    title = f"{first.path} calls {count} layers, and {too}"
    return collapsible(title, diagram.call_graph(first) + _soft(f"The same: {names}"))


def _soft(text: str) -> Raw:
    return Raw(f'<p class="soft">{escape(text)}</p>')


# --- layers


class _Tree:
    """Layers and variables below each other, in the order of the calls where it is known."""

    def __init__(self, layers: Mapping[str, Any], variables: Sequence[Mapping[str, str]], graph: CallGraph) -> None:
        called = [node for item in graph.graphs for node in item.nodes if node.path != INPUT]
        rank = {node.path: number for number, node in reversed([*enumerate(called)])}
        self.layers = layers
        self.shapes = {node.path: " ".join(node.shapes[:2]) for node in reversed(called)}
        self.children: dict[str, list[str]] = {path: [] for path in layers}
        self.counts = dict.fromkeys(layers, 0)
        self.own: dict[str, list[Mapping[str, str]]] = {path: [] for path in layers}
        for path in layers:
            if path:
                self.children[next(_owners(path, layers, proper=True))].append(path)
        for below in self.children.values():
            below.sort(key=lambda path: rank.get(path, len(rank)))
        for row in variables:
            if row["kind"] in _PARAMETER_KINDS:
                owners = list(_owners(row["path"], layers))
                self.own[owners[0]].append(row)
                for path in owners:
                    self.counts[path] += int(row["parameters"])

    def below(self, path: str) -> Iterator[str]:
        """The layer and all below it, from top to bottom."""
        yield path
        for child in self.children[path]:
            yield from self.below(child)

    def variables(self, path: str) -> list[Mapping[str, str]]:
        """The variables of the layer and of all below it."""
        return [row for item in self.below(path) for row in self.own[item]]


def _owners(path: str, layers: Mapping[str, Any], *, proper: bool = False) -> Iterator[str]:
    """The layers that hold ``path``, innermost first; the model itself is the last."""
    if path in layers and path and not proper:
        yield path
    for end in range(len(path) - 1, 0, -1):
        if path[end] in ".[(" and path[:end] in layers:
            yield path[:end]
    yield ""


def _layers(tree: _Tree) -> Iterator[str]:
    shown = set(list(tree.below(""))[:_MOST_LAYERS])
    yield Raw(f'<div class="tree">{_branch("", tree, shown, is_small=len(tree.layers) <= _OPEN_ROWS)}</div>')
    if more := len(tree.layers) - len(shown):
        yield _soft(f"{more:,} more layers in {STRUCTURE_FILE}.")


def _branch(path: str, tree: _Tree, shown: set[str], *, is_small: bool) -> Raw:
    record = tree.layers[path]
    frozen = "" if record["trainable"] else " · frozen"
    facts = f"{record['class']} {tree.shapes.get(path, '')} · {tree.counts[path]:,} parameters{frozen}"
    title = Raw(f'{name(path or "model")} <span class="soft">{escape(facts)}</span>')
    below = [child for child in tree.children[path] if child in shown]
    if not below:
        return Raw(f'<div class="leaf">{title}</div>')
    inner = "\n".join(_branch(child, tree, shown, is_small=is_small) for child in below)
    return collapsible(title, inner, is_open=is_small or (path == "" and len(below) <= _OPEN_ROWS))


# --- weights


class _Folder:
    """Files that were written a moment ago, as ``opened_tensors`` reads them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> tuple[str, ...]:
        return tuple(path.name for path in self._root.iterdir())

    def read_json(self, name: str) -> Any:
        return _json(self._root / name)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        path = self._root / name
        with path.open("rb") as file:
            yield file, path.stat().st_size


def _weights(data: TensorReader, tree: _Tree) -> Iterator[str]:
    total = len(tree.variables(""))
    with opened_tensors(data, STATE_FILE) as tensors:
        if total <= _OPEN_ROWS:
            yield _statistics(tensors, tree.variables(""))
            shown = total
        else:
            groups, shown = _grouped_statistics(tensors, tree)
            joined = "\n".join(groups)
            yield collapsible(f"{len(groups)} layers", joined) if len(groups) > _OPEN_GROUPS else joined
    more = f" {total - shown:,} more variables in {WEIGHTS_TABLE_FILE}." if total > shown else ""
    yield _soft(f"Of each variable up to {_SAMPLED:,} values are taken.{more}")


def _grouped_statistics(tensors: Tensors, tree: _Tree) -> tuple[list[str], int]:
    """A table, to be opened, for each layer of the model; and the number of variables shown."""
    groups: list[str] = []
    shown = 0
    for path in ["", *tree.children[""]]:
        rows = tree.own[""] if path == "" else tree.variables(path)
        if not rows or shown >= _MOST_VARIABLES:
            continue
        some = rows[: _MOST_VARIABLES - shown]
        shown += len(some)
        facts = f"{len(rows):,} variables · {sum(int(row['parameters']) for row in rows):,} parameters"
        title = Raw(f'{name(path or "model")} <span class="soft">{escape(facts)}</span>')
        groups.append(collapsible(title, _statistics(tensors, some)))
    return groups, shown


def _statistics(tensors: Tensors, rows: Sequence[Mapping[str, str]]) -> str:
    columns = ("variable", "mean ± deviation", "smallest … largest", "distribution")
    return table(columns, [_row(tensors, row) for row in rows]) if rows else ""


def _row(tensors: Tensors, row: Mapping[str, str]) -> tuple[object, ...]:
    shape = row["shape"].replace("x", " × ") or "scalar"
    head = Raw(f'{name(row["path"])}<br><span class="soft">{escape(shape)} {escape(row["dtype"])}</span>')
    values = tensors.sample(row["path"], _SAMPLED)
    if values.dtype.kind not in "fiu" and values.dtype.name != "bfloat16":
        return (head, "", "", "")
    values = values.astype("float64")
    finite = values[np.isfinite(values)]
    if not finite.size:
        return (head, "", "", Raw('<span class="bad">no finite value</span>'))
    drawn: str = diagram.histogram(_counts(finite)) if finite.size > 1 else ""
    if finite.size < values.size:
        drawn += f'<span class="bad">{values.size - finite.size} not finite</span>'
    with np.errstate(over="ignore"):  # of float64
        mean, deviation = finite.mean(), finite.std()
    return (head, f"{mean:.3g} ± {deviation:.3g}", f"{finite.min():.3g} … {finite.max():.3g}", Raw(drawn))


def _counts(values: np.ndarray[Any, Any]) -> list[int]:
    """A histogram of any finite numbers: numpy's own bins fail where values are large, or close to each other."""
    low, high = values.min(), values.max()
    span = high / 2 - low / 2
    places = (values / 2 - low / 2) / span if span > 0 else np.full(values.shape, 0.5)
    counts: list[int] = np.histogram(places, bins=min(_BINS, max(4, values.size // 4)), range=(0, 1))[0].tolist()
    return counts


# --- what else was written


def _proof(path: Path) -> Iterator[str]:
    if not path.is_file():
        yield Raw('<p class="bad">That it comes back was not proven when it was logged.</p>')
        return
    proof = _json(path)
    text = (
        f"Rebuilt in an isolated process without the user's modules and compared: {proof['layers']} layers, "
        f"{proof['variables']} variables bit for bit, {proof['attributes']} attributes. {proof['seconds']:.1f} s."
    )
    yield Raw(f'<p class="good">{escape(text)}</p>')
    answers = dict(proof["entry_points"])
    if proof.get("graph"):
        answers["graph"] = proof["graph"]
    yield table(("asked by", "its answers were"), list(answers.items()))
    routes = [(route, reason or "yes") for route, reason in proof["routes"].items()]
    yield table(("the class comes back by", ""), routes)


def _configuration(path: Path) -> Iterator[str]:
    config = _json(path)
    rest = {key: config[key] for key in config if key != "constructor"}
    shown, more = (
        code(json.dumps(item, indent=2, sort_keys=True), "json", limit=_CONFIGURATION_CHARACTERS)
        for item in (config["constructor"], rest)
    )
    yield shown
    yield collapsible("compile, specs, definitions", more)


def _sources(folder: Path) -> Iterator[str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    left = _SOURCE_CHARACTERS
    for path in paths:
        text = path.read_bytes().decode("utf-8", "backslashreplace")
        shown = code(text, "python", limit=max(left, 0))
        yield collapsible(path.relative_to(folder).as_posix(), shown, is_open=len(paths) == 1)
        left -= len(text)


def _commit(data: Path) -> Iterator[str]:
    git = _json(data / GIT_FILE)
    rows = [(key, git[key]) for key in ("commit", "branch", "tag") if git[key] is not None]
    rows += [("remote", git["remote_url"])] if git["remote_url"] is not None else []
    if git["repository_of"] == "working-directory":
        rows += [("repository", "of the working directory: the class lies in none")]
    rows += [("uncommitted changes", {True: "yes", False: "no", None: "not known"}[git["dirty"]])]
    rows += [("what is known", git["status"])] if git["status"] != "ok" else []
    rows += [("no patch", git["patch_omitted"])] if git["patch_omitted"] is not None else []
    yield table(("", ""), rows)
    if claims := [(item["path"], item["status"]) for item in git["sources"]]:
        yield table(("source file", "compared with the commit"), claims)
    if (data / PATCH_FILE).is_file():
        patch = (data / PATCH_FILE).read_bytes().decode("utf-8", "backslashreplace")
        shown = code(patch, "diff", limit=_PATCH_CHARACTERS)
        yield collapsible("What was not committed", shown, is_open=len(patch) < 10_000)


def _environment(root: Path, data: Path) -> Iterator[str]:
    versions = _json(data / MANIFEST_FILE)["versions"]
    backend = (versions["backend"], versions["backend_version"])
    yield table(("made with", ""), [("Python", versions["python"]), ("Keras", versions["keras"]), backend])
    if (root / REQUIREMENTS_FILE).is_file():
        requirements = (root / REQUIREMENTS_FILE).read_text(encoding="utf-8")
        yield Raw(f'<p class="soft">{REQUIREMENTS_FILE}</p>') + code(requirements, "text", limit=20_000)
