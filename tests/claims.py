"""``python tests/claims.py``: holds the README against the tables and files that it cites, and prints what it found.

Each check yields a line for each claim that it looked at, and raises ``ClaimError`` with the claim and its evidence
where they differ. Needs nothing but Python 3.11 or a TOML reader, and the files of the repository.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]

# A row of the README's table of comparison, and the rows of docs/comparison.md that it stands for.
_ROWS = {
    "required or dict argument, no `get_config`": ("required argument", "dict argument"),
    "an argument with a default, passed another value": ("defaults changed",),
    "attribute set after construction": ("attribute set later",),
    "layer in a plain Python object": ("layer in a plain object",),
    "training goes on with dropout": ("dropout",),
    "own `train_step`": ("own `train_step`",),
    "registered, `**kwargs`, `get_config`": ("by the book",),
}
_COLUMNS = ("`mlflow.keras`", "`mlflow.tensorflow`", "`mlflow.pyfunc`", "`.keras`, class given", "this package")

# A row of the README's table of figures: the page that it cites, and where its numbers stand there.
_FIGURES = {
    "models of published packages that come back bit for bit: installed; without their source": (
        "docs/real_models.md",
        [r"^\*\*Exact: (\d+) of (\d+) installed, (\d+) of (\d+) shipped\*\*"],
    ),
    "`mlflow models serve`, requests a second in those of `mlflow.tensorflow`, at 1, 8 and 32 clients": (
        "docs/benchmarks.md",
        [rf"^\| {clients} \| (?:20|15) \| ([\d.]+) \|" for clients in (1, 8, 32)],
    ),
    "`predict` of one row, in the time of `mlflow.keras`: tiny MLP, small CNN": (
        "docs/benchmarks.md",
        [r"^\| tiny MLP, batch 1,.*? \| ([\d.]+) / ", r"^\| small CNN, batch 1 \|.*? \| ([\d.]+) / "],
    ),
    "memory that loading 1 GiB of weights takes at its peak, in the weights": (
        "docs/benchmarks.md",
        [
            r"^\| `load_model` of a directory \|.*? \|.*? \| ([\d.]+) \|",
            r"^\| `mlflow\.keras\.load_model`, local store \|.*? \|.*? \| ([\d.]+) \|",
        ],
    ),
}


class ClaimError(AssertionError):
    """A claim, and what is cited for it says something else."""


def claims(readme: str) -> Iterator[str]:
    """One line for each claim in ``readme`` that was held against its source."""
    yield from _comparison(readme)
    yield from _versions(readme)
    yield from _figures(readme)
    yield from _names(readme)
    yield from _links(readme)


def tables(text: str) -> Iterator[list[dict[str, str]]]:
    """The tables of a page, each as rows by column."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        header, _, *rows = ([cell.strip() for cell in line[1:-1].split(" | ")] for line in block.splitlines())
        yield [dict(zip(header, row, strict=True)) for row in rows]


def page(name: str) -> str:
    """A file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def _is(claim: str, said: object, found: object, source: str) -> str:
    if said != found:
        raise ClaimError(f"README: {claim}: it says {said!r}, and {source} says {found!r}.")
    return f"{claim}: {said} ({source})"


def _comparison(readme: str) -> Iterator[str]:
    measured = {row["model"]: row for row in next(tables(page("docs/comparison.md")))}
    said = next(table for table in tables(readme) if "`mlflow.keras`" in table[0])
    by_claim = {next(iter(row.values())): list(row.values()) for row in said}
    for claim, models in _ROWS.items():
        for column, cell in zip(_COLUMNS, by_claim[claim][1:6], strict=True):
            for model in models:
                yield _is(f"{claim}, {column}", cell, _in_words(measured[model][column]), "docs/comparison.md")
    for name in ("`mlflow.keras`", "`.keras`"):
        exact = [model for model, row in measured.items() if row[name] == "exact"]
        yield _is(f"{name} loads without the source", [], exact, "docs/comparison.md")
    number = _number(readme, r"^(\w+) models as people write them")
    yield _is("number of models compared", number, len(measured), "docs/comparison.md")
    versions = dict(re.findall(r"(keras|mlflow) (\d[\d.]*\d)", page("docs/comparison.md")))
    said_versions = re.search(r"Measured with Keras ([\d.]+) and MLflow ([\d.]+);", readme)
    assert said_versions, "the README no longer says with what it was measured"
    yield _is(
        "versions compared", said_versions.groups(), (versions["keras"], versions["mlflow"]), "docs/comparison.md"
    )


def _in_words(cell: str) -> str:
    """A cell of docs/comparison.md as the README says it."""
    if cell.startswith("**SILENTLY WRONG**"):
        return "other losses" if "losses differ" in cell else "silently wrong"
    return cell.partition(" (")[0]


def _number(text: str, pattern: str) -> int:
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    found = re.search(pattern, text, re.MULTILINE)
    assert found, f"the README no longer has {pattern!r}"
    return words.index(found.group(1).lower())


def _versions(readme: str) -> Iterator[str]:
    project = tomllib.loads(page("pyproject.toml"))["project"]
    floors = dict(re.findall(r"^(keras|mlflow)>=([\d.]+)", "\n".join(project["dependencies"]), re.MULTILINE))
    said = re.search(r"Python (3\.\d+)\s+to (3\.\d+), MLflow ([\d.]+\d) or newer, Keras ([\d.]+\d) or newer", readme)
    assert said, "the README no longer says which versions are supported"
    first, last, mlflow, keras = said.groups()
    yield _is("oldest Python", f">={first}", project["requires-python"], "pyproject.toml")
    yield _is("oldest MLflow", mlflow, floors["mlflow"], "pyproject.toml")
    yield _is("oldest Keras", keras, floors["keras"], "pyproject.toml")
    environments = next(tables(page("docs/compatibility.md")))
    pythons = {row["environment"].partition("-")[0] for row in environments}
    between = {f"3.{minor}" for minor in range(int(first[2:]), int(last[2:]) + 1)}
    yield _is("every Python in between was tried", sorted(between), sorted(pythons & between), "docs/compatibility.md")
    extras = set(project["optional-dependencies"])
    named = set(re.findall(r"`\[([\w-]+)\]`", readme)) | {"tensorflow", "jax", "torch", "tf-keras"}
    yield _is("extras", sorted(named), sorted(named & extras), "pyproject.toml")


def _figures(readme: str) -> Iterator[str]:
    """The numbers of each row of the table of figures are those that its page has in the place that is meant."""
    rows = {row["what"]: row for row in next(table for table in tables(readme) if "figure" in table[0])}
    if rows.keys() != _FIGURES.keys():
        raise ClaimError(f"README: figures that are not held against anything: {rows.keys() ^ _FIGURES.keys()}.")
    for what, (source, patterns) in _FIGURES.items():
        found: list[str] = []
        for pattern in patterns:
            match = re.search(pattern, page(source), re.MULTILINE)
            assert match, f"{source} no longer has {pattern!r}"
            found += match.groups()
        said = re.findall(r"\d[\d,.]*\d|\d", rows[what]["figure"])
        if f"]({source})" not in rows[what]["measured in"]:
            raise ClaimError(f"README: {what}: expected a link to {source}, got {rows[what]['measured in']}.")
        yield _is(what, said, found, source)
    totals = [kind for row in next(tables(page("docs/real_models.md"))) for kind in (row["installed"], row["shipped"])]
    exact = sum(map(int, re.findall(r"Exact: (\d+) .*, (\d+) of", page("docs/real_models.md"))[0]))
    yield _is("real models, counted", exact, totals.count("exact"), "docs/real_models.md")
    tried = next(tables(page("docs/reliability.md")))
    yield _is("silent failures", {"0"}, {row["silent failures"] for row in tried}, "docs/reliability.md")


def _names(readme: str) -> Iterator[str]:
    said = re.search(r"`mlflow-keras-subclass ([\w|]+)`", readme)
    assert said, "the README no longer lists the commands"
    cli = page("mlflow_keras_subclass/cli.py")
    commands = re.findall(r'^@cli\.command\((?:"(\w+)")?\)\n(?:@.*\n|    .*\n|\)\n)*def (\w+)', cli, re.MULTILINE)
    found = sorted(name or function for name, function in commands)
    yield _is("commands", sorted(said.group(1).split("|")), found, "mlflow_keras_subclass/cli.py")
    makefile = page("Makefile")
    for target in sorted(set(re.findall(r"(?:`|^)make ([a-z][a-z-]+)", readme, re.MULTILINE))):
        if not re.search(rf"^{target}\b.*:", makefile, re.MULTILINE):
            raise ClaimError(f"README: make {target} is no target of the Makefile.")
        yield f"make {target} (Makefile)"


def _links(readme: str) -> Iterator[str]:
    named = set(re.findall(r"\]\(([^)#]+)\)", readme)) | set(
        re.findall(r"`((?:tests|benchmarks|examples)/[\w./]*)`", readme)
    )
    for name in sorted(named):
        if "://" not in name:
            if not (ROOT / name).exists():
                raise ClaimError(f"README: {name} is not there.")
            yield f"{name} is there"


def main() -> None:
    """Print every claim with its source."""
    for line in claims(page("README.md")):
        print(line)


if __name__ == "__main__":
    main()
