"""Web pages that need nothing but themselves: no network, no script, light and dark. Imports nothing of ours.

MLflow shows them in a frame with ``sandbox="allow-scripts"``, and a person may open them from disk; every text is
escaped, since names and docstrings are the user's.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

__all__ = ["Raw", "chips", "code", "collapsible", "document", "escape", "name", "section", "table"]

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2733; --soft: #5f6b7a; --line: #d9dfe6; --fill: #f4f6f9;
  --accent: #0b62c4; --bar: #7aa7dd; --good: #12703c; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --back: #14181d; --text: #e3e8ee; --soft: #9aa7b5; --line: #323b46;
  --fill: #1d232b; --accent: #7db5ff; --bar: #48719f; --good: #5fd394; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 20px 24px 60px; max-width: 1100px; background: var(--back); color: var(--text);
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 22px; margin: 0 0 2px; } h2 { font-size: 16px; margin: 30px 0 8px; }
p { margin: 4px 0 10px; } .soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
code, pre, .mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 12.5px; }
pre { margin: 6px 0; padding: 10px 12px; background: var(--fill); border: 1px solid var(--line); border-radius: 6px;
  overflow-x: auto; line-height: 1.45; }
.wide { overflow-x: auto; } table { border-collapse: collapse; min-width: 45%; margin-bottom: 10px; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 12.5px; }
th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
td { overflow-wrap: break-word; } td.number, th.number { text-align: right; white-space: nowrap; }
.chip { display: inline-block; margin: 4px 6px 4px 0; padding: 1px 9px; border: 1px solid var(--line);
  border-radius: 11px; background: var(--fill); font-size: 12.5px; }
details { margin: 4px 0; } summary { cursor: pointer; padding: 3px 0; }
.tree details, .tree .leaf { margin: 0; padding: 2px 0; } .tree summary { padding: 0; }
.tree details details, .tree .leaf { margin-left: 5px; padding-left: 14px; border-left: 1px solid var(--line); }
.tree .leaf { padding-left: 30px; text-indent: -12px; }
svg { display: block; } svg text { fill: var(--text); font: 12px system-ui, sans-serif; }
svg .kind { fill: var(--soft); font-size: 11px; }
svg .box { fill: var(--fill); stroke: var(--line); } svg .in { stroke-dasharray: 4 3; }
svg .edge { fill: none; stroke: var(--soft); stroke-width: 1.2; } svg .tip { fill: var(--soft); }
svg .bar { fill: var(--bar); }
"""


class Raw(str):
    """Markup that is meant as such; any other text is escaped."""

    __slots__ = ()


def escape(value: object) -> str:
    """``value`` as text that cannot start markup; ``Raw`` stays as it is."""
    return value if isinstance(value, Raw) else html.escape(str(value), quote=True)


def document(title: str, body: Iterable[str]) -> str:
    """A whole page."""
    # Nothing may be fetched or run, whatever text slipped through.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{_highlighting()}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _highlighting() -> str:
    light = HtmlFormatter(style="default").get_style_defs("pre")
    dark = HtmlFormatter(style="github-dark").get_style_defs("pre")
    # The page's own background is used in both.
    plain = "pre, pre * { background: none; } pre { background: var(--fill) !important; color: var(--text); }"
    # Lines of a patch, as they are known from code reviews; the dark style has such grounds itself.
    light += "\npre .gd { background: #ffe3e0; } pre .gi { background: #dcf5e3; }"
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n{plain}"


def section(title: str, *parts: str) -> Raw:
    """A titled part of the page."""
    # Nothing links to it: in MLflow's frame, which has no origin, Chromium does not follow a link within the page.
    return Raw(f"<section><h2>{escape(title)}</h2>\n" + "\n".join(parts) + "</section>")


def name(path: str) -> Raw:
    """The path of a layer or variable, which breaks between its parts where there is no room."""
    return Raw(f'<span class="mono">{escape(path).replace(".", "<wbr>.").replace("[", "<wbr>[")}</span>')


def chips(texts: Iterable[str]) -> Raw:
    """Short facts in a row."""
    return Raw("<p>" + "".join(f'<span class="chip">{escape(text)}</span>' for text in texts) + "</p>")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[int] = ()) -> Raw:
    """A table; ``numbers`` are the columns to align on the right."""
    kinds = ['class="number"' if number in numbers else "" for number in range(len(columns))]
    head = "".join(f"<th {kind}>{escape(column)}</th>" for kind, column in zip(kinds, columns, strict=True))
    lines = [
        "<tr>" + "".join(f"<td {kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    ]
    return Raw(f'<div class="wide"><table><tr>{head}</tr>\n' + "\n".join(lines) + "</table></div>")


def collapsible(title: object, body: str, *, is_open: bool = False) -> Raw:
    """A part that a click opens."""
    state = " open" if is_open else ""
    return Raw(f"<details{state}><summary>{escape(title)}</summary>\n{body}</details>")


def code(text: str, language: str, *, limit: int = 200_000) -> Raw:
    """Highlighted text in a language that Pygments knows; what is over ``limit`` is cut, and said so."""
    cut = text[:limit]
    lines = highlight(cut, get_lexer_by_name(language), HtmlFormatter(nowrap=True))
    more = "" if len(text) <= limit else f'<p class="soft">{len(text) - limit:,} characters more in the file.</p>'
    return Raw(f"<pre>{lines}</pre>{more}")
