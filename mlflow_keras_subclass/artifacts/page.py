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
from mlflow_keras_subclass.call_graph import CallGraph
from mlflow_keras_subclass.manifest import (
    CONFIG_FILE,
    DATA_DIR,
    GIT_FILE,
    PAGE_FILE,
    PATCH_FILE,
    PROOF_FILE,
    REQUIREMENTS_FILE,
    SOURCE_DIR,
    STATE_FILE,
    STRUCTURE_FILE,
    WEIGHTS_TABLE_FILE,
)
from mlflow_keras_subclass.markup import Raw, chips, code, collapsible, document, escape, section, table
from mlflow_keras_subclass.tensors import TensorReader, Tensors, opened_tensors

__all__ = ["Heading", "write"]

_SAMPLED = 8192
_BINS = 24
_MOST_VARIABLES = 300
_MOST_LAYERS = 2000
_MOST_GRAPHS = 20
_OPEN_ROWS = 40
_SOURCE_CHARACTERS = 300_000
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
    body = [
        f"<h1>{escape(heading.class_name)}</h1>",
        f'<p class="soft">{escape(heading.doc or heading.model_class)}</p>',
        chips([*([heading.uri] if heading.uri else []), *heading.facts]),
        _calls(graph),
        _layers(layers, variables, graph),
        _weights(_Folder(data), variables, layers),
        *_proof(data / PROOF_FILE),
        *_configuration(data / CONFIG_FILE),
        *_sources(data / SOURCE_DIR),
        *_commit(data),
        *_environment(root / REQUIREMENTS_FILE),
    ]
    (root / PAGE_FILE).write_bytes(document(heading.class_name, body).encode("utf-8"))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _calls(graph: CallGraph) -> str:
    if not graph.graphs:
        return section(
            "Calls", '<p class="soft">Which layer calls which is not known: the model was not called, or could not '
            "be traced without data.</p>"
        )  # fmt: skip
    first, *inner = graph.graphs
    parts = [
        collapsible(f"{item.path} calls {len(item.nodes) - 1} layers", diagram.call_graph(item))
        for item in inner[:_MOST_GRAPHS]
    ]
    if len(inner) > _MOST_GRAPHS:
        parts.append(Raw(f'<p class="soft">{len(inner) - _MOST_GRAPHS} more layers call several others.</p>'))
    return section("Calls", diagram.call_graph(first), *parts)


# --- layers


def _layers(layers: Mapping[str, Any], variables: Sequence[Mapping[str, str]], graph: CallGraph) -> str:
    shown = dict(list(layers.items())[:_MOST_LAYERS])
    counts = dict.fromkeys(layers, 0)
    for row in variables:
        if row["kind"] in _PARAMETER_KINDS:
            for path in _owners(row["path"], layers):
                counts[path] += int(row["parameters"])
    shapes = {node.path: " ".join(node.shapes[:2]) for item in graph.graphs for node in item.nodes}
    children: dict[str, list[str]] = {path: [] for path in shown}
    for path in shown:
        if path:
            children[next(_owners(path, shown, proper=True))].append(path)
    more = len(layers) - len(shown)
    note = f'<p class="soft">{more:,} more layers in {STRUCTURE_FILE}.</p>' if more else ""
    return section("Layers", _tree("", shown, children, counts, shapes, depth=0), note)


def _owners(path: str, layers: Mapping[str, Any], *, proper: bool = False) -> Iterator[str]:
    """The layers that hold ``path``, innermost first; the model itself is the last."""
    if path in layers and path and not proper:
        yield path
    for end in range(len(path) - 1, 0, -1):
        if path[end] in ".[(" and path[:end] in layers:
            yield path[:end]
    yield ""


def _tree(
    path: str,
    layers: Mapping[str, Any],
    children: Mapping[str, Sequence[str]],
    counts: Mapping[str, int],
    shapes: Mapping[str, str],
    *,
    depth: int,
) -> Raw:
    record = layers[path]
    frozen = "" if record["trainable"] else " · frozen"
    facts = f"{record['class']} {shapes.get(path, '')} · {counts[path]:,} parameters{frozen}"
    title = Raw(f'<span class="mono">{escape(path or "model")}</span> <span class="soft">{escape(facts)}</span>')
    below = children[path]
    if not below:
        return Raw(f'<div style="margin-left: 34px">{title}</div>')
    inner = "\n".join(_tree(item, layers, children, counts, shapes, depth=depth + 1) for item in below)
    return collapsible(title, inner, is_open=depth == 0 and len(below) <= _OPEN_ROWS)


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


def _weights(data: TensorReader, variables: Sequence[Mapping[str, str]], layers: Mapping[str, Any]) -> str:
    rows = [row for row in variables if row["kind"] in _PARAMETER_KINDS]
    with opened_tensors(data, STATE_FILE) as tensors:
        lines = [_statistics(tensors, row) for row in rows[:_MOST_VARIABLES]]
    columns = ("variable", "shape", "mean", "deviation", "smallest", "largest", "distribution")
    numbers = (2, 3, 4, 5)
    note = (
        f'<p class="soft">Of each variable up to {_SAMPLED:,} values are taken.'
        + (f" {len(rows) - len(lines):,} more variables in {WEIGHTS_TABLE_FILE}." if len(rows) > len(lines) else "")
        + "</p>"
    )
    parts = [table(columns, lines[:_OPEN_ROWS], numbers=numbers)] if lines else []
    if len(lines) > _OPEN_ROWS:
        more = table(columns, lines[_OPEN_ROWS:], numbers=numbers)
        parts.append(collapsible(f"{len(lines) - _OPEN_ROWS} more", more))
    return section("Weights", *parts, note)


def _statistics(tensors: Tensors, row: Mapping[str, str]) -> tuple[object, ...]:
    shape = row["shape"].replace("x", " × ") or "scalar"
    head = (Raw(f'<span class="mono">{escape(row["path"])}</span>'), f"{shape} {row['dtype']}")
    values = tensors.sample(row["path"], _SAMPLED)
    if values.dtype.kind not in "fiu" and values.dtype.name != "bfloat16":
        return (*head, "", "", "", "", "")
    values = values.astype("float64")
    finite = values[np.isfinite(values)]
    if not finite.size:
        return (*head, "", "", "", "", Raw('<span class="bad">no finite value</span>'))
    counts = np.histogram(finite, bins=min(_BINS, max(4, finite.size // 4)))[0].tolist()
    drawn: str = diagram.histogram(counts) if finite.size > 1 else ""
    if finite.size < values.size:
        drawn += f'<span class="bad">{values.size - finite.size} not finite</span>'
    numbers = (f"{item:.4g}" for item in (finite.mean(), finite.std(), finite.min(), finite.max()))
    return (*head, *numbers, Raw(drawn))


# --- what else was written


def _proof(path: Path) -> Iterator[str]:
    if not path.is_file():
        yield section("Proof", '<p class="bad">That it comes back was not proven when it was logged.</p>')
        return
    proof = _json(path)
    text = (
        f"Rebuilt in an isolated process without the user's modules and compared: {proof['layers']} layers, "
        f"{proof['variables']} variables bit for bit, {proof['attributes']} attributes. {proof['seconds']} s."
    )
    answers = table(("asked by", "its answers were"), list(proof["entry_points"].items()))
    routes = table(
        ("the class comes back by", ""), [(name, reason or "yes") for name, reason in proof["routes"].items()]
    )
    yield section("Proof", f'<p class="good">{escape(text)}</p>', answers, routes)


def _configuration(path: Path) -> Iterator[str]:
    config = _json(path)
    rest = {key: config[key] for key in config if key != "constructor"}
    shown, more = (
        code(json.dumps(item, indent=2, sort_keys=True), "json", limit=60_000) for item in (config["constructor"], rest)
    )
    yield section("Configuration", shown, collapsible("compile, specs, definitions", more))


def _sources(folder: Path) -> Iterator[str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    left, parts = _SOURCE_CHARACTERS, []
    for path in paths:
        text = path.read_bytes().decode("utf-8", "backslashreplace")
        parts.append(
            collapsible(path.relative_to(folder).as_posix(), code(text, "python", limit=max(left, 0)),
                        is_open=len(paths) == 1)
        )  # fmt: skip
        left -= len(text)
    if parts:
        yield section("Source", *parts)


def _commit(data: Path) -> Iterator[str]:
    git = _json(data / GIT_FILE)
    rows = [(key, git[key]) for key in ("commit", "branch", "remote_url", "dirty", "status") if git[key] is not None]
    claims = [(item["path"], item["status"]) for item in git["sources"]]
    parts = [table(("", ""), rows)]
    if claims:
        parts.append(table(("source file", "compared with the commit"), claims))
    if (data / PATCH_FILE).is_file():
        patch = (data / PATCH_FILE).read_bytes().decode("utf-8", "backslashreplace")
        parts.append(collapsible("What was not committed", code(patch, "diff"), is_open=len(patch) < 10_000))
    yield section("Git", *parts)


def _environment(path: Path) -> Iterator[str]:
    if path.is_file():
        yield section("Environment", code(path.read_text(encoding="utf-8"), "text", limit=20_000))
