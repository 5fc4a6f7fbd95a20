"""Drawings as inline SVG: a call graph from top to bottom, and a small histogram. Imports markup and call_graph."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_keras_subclass.call_graph import INPUT, Graph, Node
from mlflow_keras_subclass.markup import Raw, escape

__all__ = ["call_graph", "histogram"]

_HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 40, 22, 34, 8
_LETTER = 7.0
_LONGEST = 34
# Two layers with so little between their middles are above each other.
_STRAIGHT = 60


def call_graph(graph: Graph, *, most: int = 150) -> Raw:
    """``graph`` with each layer below those whose outputs it takes; the first ``most`` layers by order of call."""
    nodes = graph.nodes[:most]
    edges = [(one, other) for one, other in graph.edges if one < len(nodes) and other < len(nodes)]
    rows = _rows(len(nodes), edges)
    widths = [_width(node, graph.path) for node in nodes]
    places, total = _places(rows, widths)
    height = len(rows) * (_HEIGHT + _GAP_Y) - _GAP_Y + 2 * _MARGIN
    parts = [_edge(places[one], widths[one], places[other], widths[other]) for one, other in edges]
    parts += [_box(node, graph.path, places[number], widths[number]) for number, node in enumerate(nodes)]
    more = len(graph.nodes) - len(nodes)
    note = f'<p class="soft">{more} more layers are called.</p>' if more > 0 else ""
    return Raw(
        f'<div class="wide"><svg role="img" width="{total:.0f}" height="{height}" viewBox="0 0 {total:.0f} {height}">'
        + "".join(parts)
        + f"</svg></div>{note}"
    )


def _rows(count: int, edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The nodes by row: each one below the last of those it takes from. An edge backwards (a loop) moves nothing."""
    depth = [0] * count
    for node in range(count):
        above = [depth[source] for source, target in edges if target == node and source < node]
        depth[node] = 1 + max(above, default=-1)
    rows: list[list[int]] = [[] for _ in range(max(depth, default=-1) + 1)]
    for node, row in enumerate(depth):
        rows[row].append(node)
    return rows


def _places(rows: Sequence[Sequence[int]], widths: Sequence[float]) -> tuple[dict[int, tuple[float, float]], float]:
    lengths = [sum(widths[node] for node in row) + _GAP_X * (len(row) - 1) for row in rows]
    # Edges that go around others need room on the right.
    total = float(max(lengths, default=0.0) + 2 * _MARGIN + (90 if len(rows) > 2 else 0))
    places: dict[int, tuple[float, float]] = {}
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        x = (total - length) / 2 - (45 if len(rows) > 2 else 0)
        for node in row:
            places[node] = (x, _MARGIN + number * (_HEIGHT + _GAP_Y))
            x += widths[node] + _GAP_X
    return places, total


def _width(node: Node, below: str) -> float:
    first, second = _label(node, below)
    return max(60.0, _LETTER * max(len(first), len(second)) + 20)


def _label(node: Node, below: str) -> tuple[str, str]:
    if node.path == INPUT:
        return "input", ""
    name = node.path.removeprefix(f"{below}.") if below else node.path
    times = f" ×{node.calls}" if node.calls > 1 else ""
    return _short(f"{name}{times}"), _short(f"{node.kind} {' '.join(node.shapes[:1])}".strip())


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _box(node: Node, below: str, place: tuple[float, float], width: float) -> str:
    (x, y), (first, second) = place, _label(node, below)
    style = "box in" if node.path == INPUT else "box"
    middle = x + width / 2
    lines = [f'<text x="{middle:.1f}" y="{y + (17 if second else 25):.1f}" text-anchor="middle">{escape(first)}</text>']
    if second:
        lines.append(
            f'<text class="kind" x="{middle:.1f}" y="{y + 32:.1f}" text-anchor="middle">{escape(second)}</text>'
        )
    title = escape(f"{node.path} {node.kind} {' '.join(node.shapes)}")
    return (
        f'<g><title>{title}</title><rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{_HEIGHT}" rx="6"/>{"".join(lines)}</g>'
    )


def _edge(start: tuple[float, float], start_width: float, end: tuple[float, float], end_width: float) -> str:
    x1, y1 = start[0] + start_width / 2, start[1] + _HEIGHT
    x2, y2 = end[0] + end_width / 2, end[1]
    if y2 <= y1 - _HEIGHT:
        # A loop: back up along the right side.
        x1, y1 = start[0] + start_width, start[1] + _HEIGHT / 2
        x2, y2 = end[0] + end_width, end[1] + _HEIGHT / 2
        bend = max(x1, x2) + 18
        return f'<path class="edge" d="M{x1:.1f} {y1:.1f} C{bend:.1f} {y1:.1f} {bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"/>'
    half = (y2 - y1) / 2
    if half > _HEIGHT and abs(x1 - x2) < _STRAIGHT:
        # Past the rows between: around the layers that would hide it.
        x1, y1 = start[0] + start_width, start[1] + _HEIGHT / 2
        bend = max(x1, x2) + 30 + half / 4
        x2 += min(end_width / 3, 24)
        line = f"M{x1:.1f} {y1:.1f} C{bend:.1f} {y1:.1f} {bend:.1f} {y2 - half / 2:.1f} {x2:.1f} {y2 - 5:.1f}"
        return f'<path class="edge" d="{line}"/>{_tip(x2, y2)}'
    line = f"M{x1:.1f} {y1:.1f} C{x1:.1f} {y1 + half:.1f} {x2:.1f} {y2 - half:.1f} {x2:.1f} {y2 - 5:.1f}"
    return f'<path class="edge" d="{line}"/>{_tip(x2, y2)}'


def _tip(x: float, y: float) -> str:
    return f'<polygon class="tip" points="{x - 3.5:.1f},{y - 6:.1f} {x + 3.5:.1f},{y - 6:.1f} {x:.1f},{y:.1f}"/>'


def histogram(counts: Sequence[int]) -> Raw:
    """Bars of the height of ``counts``, as one outline: a page has two thousand of these."""
    top = max(counts, default=0) or 1
    # A count that is not zero is seen beside the highest.
    heights = [-(-24 * count // top) for count in counts]
    outline = "".join(f"V{24 - height}h5" for height in heights)
    width = len(counts) * 5
    return Raw(
        f'<svg width="{width}" height="24" viewBox="0 0 {width} 24"><path class="bar" d="M0 24{outline}V24z"/></svg>'
    )
