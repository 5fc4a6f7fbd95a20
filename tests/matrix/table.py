"""What became of every model in every pair of environments, as a page for people."""

import datetime
import math
import re

# What a refusal names: another Python, another release or kind of Keras, or another backend.
EXPLAINED = re.compile(
    r"holds bytecode of Python 3\.\d+|was logged with (Keras|tf_keras|tensorflow|jax|torch) \d|KERAS_BACKEND=\w+"
    r"|No module named '\w+': it was not needed to load the model, but is needed now"
    r"|\w+ is installed here in a version without \w"
)
CLOSE = re.compile(r"differ by at most (\S+)$")
# Of float32 over a few layers, on another release or backend; 1.2e-7 was seen for one of them.
TOLERANCE = 1e-5
KINDS = ("exact", "close", "refused", "wrong")
_ABOUT = """\
`make test-matrix` makes this page: {cases} models of the zoo ({today}, CPU). Each environment logs those that its
Keras and backend have, without the proof, and loads in one process what all of them logged, where the source is absent.

- *exact*: every variable, the native call and the pyfunc's answers are the same bit for bit. On another backend, where
  seeds and counters are integers of another width, they are compared by value.
- *close*: the variables are, and the answers to within {tolerance:g}.
- *refused*: an error says which Python, version or backend is needed, or what to change. Each is below.
- *wrong*: anything else. `make test-matrix` fails.
"""
_OLDEST = """\
*Oldest* is what `uv pip install --resolution lowest-direct` takes: the lowest versions that `pyproject.toml` allows and
that have a wheel for the Python. `jax`, `torch` and `tf_keras-newest` are what `make test-jax` and its like run in.
"""


def kind_of(verdict):
    """One of ``KINDS``."""
    if verdict == "exact":
        return "exact"
    if _difference(verdict) <= TOLERANCE:
        return "close"
    return "refused" if verdict.startswith("load: ") and EXPLAINED.search(last(verdict)) else "wrong"


def _difference(verdict):
    found = CLOSE.search(verdict)
    return float(found.group(1)) if found else math.inf


def last(verdict):
    """The error that a traceback ends with, on one line."""
    lines = [line for line in verdict.strip().splitlines() if line.strip()]
    start = max(
        (n for n, line in enumerate(lines) if re.match(r"\S+(Error|Exception): ", line)), default=len(lines) - 1
    )
    return " ".join(line.strip() for line in lines[start:])


def summary(verdict):
    """The error of a refusal without folders and version numbers."""
    text = re.sub(r"/\S+?/(?=[^/\s]+/?[:\s])", "", last(verdict)).removeprefix("mlflow_keras_subclass.errors.")
    return re.sub(r"\d+(\.\d+)+", "x", text)


def places(pairs, names):
    """Pairs of environments in few words: ``a, b → c, d; e → f``."""
    aways = {home: tuple(away for away in names if (home, away) in pairs) for home in names}
    homes = {}
    for home, found in aways.items():
        homes.setdefault(found, []).append(home)
    return "; ".join(f"{', '.join(group)} → {', '.join(found)}" for found, group in homes.items() if found)


def page(versions, logged, loaded):
    """The page, and whether nothing on it is wrong.

    Args:
        versions: What is installed in each environment, in the order of the columns.
        logged: The verdicts of each environment that logged, by case.
        loaded: The verdicts of each pair of environments, by case.
    """
    names, found = list(versions), {kind: {} for kind in KINDS}
    close = {}
    for pair, verdicts in loaded.items():
        for case, verdict in verdicts.items():
            kind = kind_of(verdict)
            found[kind].setdefault((case, summary(verdict)), []).append(pair)
            if kind == "close":
                close.setdefault(case, {})[pair] = _difference(verdict)
    wrong = [f"`{case}` ({places(pairs, names)}): {text}" for (case, text), pairs in found["wrong"].items()]
    wrong += [
        f"`{case}`, logged in {name}: {last(verdict)}"
        for name, verdicts in logged.items()
        for case, verdict in verdicts.items()
        if verdict != "logged"
    ]
    cases = sorted({case for verdicts in logged.values() for case in verdicts})
    total = {kind: sum(map(len, items.values())) for kind, items in found.items()}
    lines = [
        "# Compatibility",
        "",
        *_ABOUT.format(cases=len(cases), today=datetime.date.today().isoformat(), tolerance=TOLERANCE).splitlines(),
        "",
        f"In sum: {', '.join(f'{number} {kind}' for kind, number in total.items())}.",
        "",
        "| environment | Python | Keras | backend | MLflow | cloudpickle | numpy |",
        "|---|---|---|---|---|---|---|",
        *(f"| {name} | " + " | ".join(versions[name]) + " |" for name in names),
        "",
        *_OLDEST.splitlines(),
        "",
        "Rows: where a model was logged; columns: where it is loaded.",
        "",
        "| logged \\ loaded | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
        *(f"| {home} | " + " | ".join(_cell(loaded[home, away]) for away in names) + " |" for home in names),
        "",
        "## Close",
        "",
        *(
            f"- `{case}` ({places(apart, names)}): by at most {max(apart.values()):.1e}"
            for case, apart in close.items()
        ),
        "",
        "## Refused",
        "",
        *(f"- {line}" for line in _grouped(found["refused"], names)),
    ]
    if wrong:
        lines += ["", "## Wrong", "", *(f"- {item[:500]}" for item in wrong)]
    return "\n".join([*lines, ""]), not wrong


def _cell(verdicts):
    counts = {kind: sum(kind_of(verdict) == kind for verdict in verdicts.values()) for kind in KINDS}
    return ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)


def _grouped(found, names):
    """One line for each text and the pairs that it is said of, with all cases of both."""
    groups = {}
    for (case, text), pairs in sorted(found.items()):
        groups.setdefault((text, tuple(pairs)), []).append(f"`{case}`")
    for (text, pairs), cases in groups.items():
        yield f"{', '.join(cases)} ({places(pairs, names)}): {text[:400]}"
