"""A fuzzer of ``/invocations``: any body gets the right answer or a 4xx that says why, and the server stays as it was.

``python request_fuzzing.py 2000`` serves three models and asks each that often (``make test-fuzz-server``). Bodies come
from schemathesis, by an OpenAPI schema of what the model takes and by its negation, and from edits of good requests.
What a request means is read here a second time, with numpy and pandas alone: a 200 must be the answer to that.
"""

from __future__ import annotations

import copy
import io
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pandas as pd
import schemathesis
from fuzzing import changed
from hypothesis import strategies as st
from schemathesis.core import NotSet
from servers import Server, python_without_package, serving

SEED = 20261126
JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
FORMATS = ("inputs", "instances", "dataframe_split", "dataframe_records")


class Request(NamedTuple):
    """A body and its type; ``good`` ones must be answered."""

    body: bytes
    content_type: str | None
    good: bool = False


class Reply(NamedTuple):
    """What came back."""

    status: int
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one served model takes and answers.

    Attributes:
        columns: JSON schema of one row's value of each input.
        dtypes: The numpy dtype that a server makes of each input.
        shapes: The shape of each input, its rows aside.
        answer: From arrays by name to predictions, and to the size of the terms that were summed for each.
        tables: Scalar columns, which also come as CSV.
    """

    columns: Mapping[str, Mapping[str, Any]]
    dtypes: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    answer: Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]
    tables: bool = False


# --- what is asked


def requests_for(target: Target) -> st.SearchStrategy[Request]:
    """Good requests, what schemathesis makes of the schema and of its negation, and good requests that were edited."""
    good = _good(target)
    operation = schemathesis.openapi.from_dict(_openapi(target))["/invocations"]["POST"]
    modes = [operation.as_strategy(generation_mode=mode).map(_of_case) for mode in schemathesis.GenerationMode]
    edited = st.builds(_edited, good, st.randoms(use_true_random=False))
    return st.one_of(good, *modes, edited, edited, edited)


def _good(target: Target) -> st.SearchStrategy[Request]:
    cells = {name: _cell(schema) for name, schema in target.columns.items()}
    forms = [*FORMATS, *([CSV, PARQUET] if target.tables else [])]
    rows = st.lists(st.fixed_dictionaries(cells), min_size=1, max_size=5)
    return st.builds(_request, rows, st.sampled_from(forms), st.just(target))


def _cell(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    match schema["type"]:
        case "array":
            return st.lists(_cell(schema["items"]), min_size=schema["minItems"], max_size=schema["maxItems"])
        case "number":
            return st.floats(-(2.0**99), 2.0**99, width=32)
        case "integer":
            return st.integers(-(2**40), 2**40)
    return st.one_of(st.sampled_from(["good", "bad", ""]), st.text(st.characters(codec="utf-8"), max_size=9))


def _request(rows: list[dict[str, Any]], form: str, target: Target) -> Request:
    columns = {name: [row[name] for row in rows] for name in target.columns}
    if form in (CSV, PARQUET):
        frame, file = pd.DataFrame(columns), io.BytesIO()
        frame.to_csv(file, index=False) if form == CSV else frame.to_parquet(file)
        return Request(file.getvalue(), form, good=True)
    # A nested cell in a table is flattened by MLflow where it has one value, and by nobody else.
    scalars = {name: [_scalar(item) for item in items] for name, items in columns.items()}
    match form:
        case "inputs":
            value: Any = columns
        case "instances":
            value = rows
        case "dataframe_split":
            value = {"columns": list(scalars), "data": [list(row) for row in zip(*scalars.values(), strict=True)]}
        case _:
            value = [dict(zip(scalars, row, strict=True)) for row in zip(*scalars.values(), strict=True)]
    return Request(json.dumps({form: value}).encode(), JSON, good=True)


def _scalar(item: Any) -> Any:
    return item[0] if isinstance(item, list) and len(item) == 1 else item


def _openapi(target: Target) -> dict[str, Any]:
    columns = {name: {"type": "array", "items": schema} for name, schema in target.columns.items()}
    row = {"type": "object", "required": list(columns), "properties": dict(target.columns)}
    forms = {
        "inputs": {"type": "object", "required": list(columns), "properties": columns},
        "instances": {"type": "array", "items": row},
        "dataframe_records": {"type": "array", "items": row},
    }
    bodies = [{"type": "object", "required": [name], "properties": {name: form}} for name, form in forms.items()]
    operation = {
        "requestBody": {"required": True, "content": {JSON: {"schema": {"anyOf": bodies}}}},
        "responses": {"200": {"description": "predictions"}},
    }
    info = {"title": "scoring", "version": "1"}
    return {"openapi": "3.1.0", "info": info, "paths": {"/invocations": {"post": operation}}}


def _of_case(case: schemathesis.Case) -> Request:
    body = case.body
    if not isinstance(body, bytes):
        body = b"" if isinstance(body, NotSet) else json.dumps(body).encode()
    return Request(body, case.media_type or JSON)


# Written as they are: json.dumps writes none of them.
_RAW = {
    "@huge@": b"1e400",
    "@tiny@": b"1e-400",
    "@digits@": b"1" * 4000,
    "@more digits@": b"-" + b"7" * 5000,
    "@deep@": b"[" * 500 + b"]" * 500,
    "@deeper@": b"[" * 5000 + b"]" * 5000,
    "@nan@": b"NaN",
    "@infinity@": b"-Infinity",
    "@duplicate@": b'{"age": 1, "age": 2}',
    "@surrogate@": b'"\\ud800"',
}
_VALUES = [
    *_RAW,
    *(None, True, False, 0, -1, 1.5, 1e39, 1e300, -0.0, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**30),
    *("", "a", "1.5", "nan", "\0", "é" * 50, "2026-11-26", [], {}, [[]], [None], [1, "a"], [[1.0], [1.0, 2.0]]),
    *([[[[1]]]], [1.0] * 4, {"0": 1}, [{"age": [1.0]}], "x" * 10_000, [0.0] * 3000),
]
_PARAMS = [None, {}, [], 3, "x", {"batch_size": -1}, {"batch_size": 2}, {"output": "class"}, {"unknown": [1]}]
_TYPES = [
    *(None, "", ";", "application/json; charset=utf-8", "application/json; charset=latin-1", "application/json;x=1"),
    *("text/plain", "text/csv", "text/csv; charset=UTF-8", PARQUET, "multipart/form-data", "application/x-ndjson"),
    *("APPLICATION/JSON", "application/octet-stream", "*/*", "é"),
]


def _edited(request: Request, chosen: random.Random) -> Request:
    body, content_type = request.body, request.content_type
    kind = chosen.randrange(10)
    if kind == 0:
        content_type = chosen.choice(_TYPES)
    elif kind < 3 or content_type != JSON:
        body = changed(body, chosen)
    else:
        document = json.loads(body)
        for _ in range(chosen.choice((1, 1, 2))):
            document = _document_edited(document, chosen)
        body = json.dumps(document).encode()
        for mark, raw in _RAW.items():
            body = body.replace(json.dumps(mark).encode(), raw)
    return Request(body, content_type)


def _document_edited(document: Any, chosen: random.Random) -> Any:
    """``document`` with one value replaced, removed, doubled or wrapped, a key more, or params."""
    places = list(_places(document))
    if not places or chosen.randrange(12) == 0:
        return {**document, "params": chosen.choice(_PARAMS)} if isinstance(document, dict) else [document]
    # The deeper places are the more numerous ones: each depth has its turn.
    depth = chosen.choice(sorted({len(place) for place in places}))
    *path, last = chosen.choice([place for place in places if len(place) == depth])
    changed_document = copy.deepcopy(document)
    parent = changed_document
    for key in path:
        parent = parent[key]
    match chosen.randrange(6):
        case 0:
            del parent[last]
        case 1 if isinstance(parent, list):
            parent.append(parent[last])
        case 1:
            parent[chosen.choice(["extra", "", "inputs", "instances", "é"])] = parent[last]
        case 2:
            parent[last] = [parent[last]]
        case _:
            parent[last] = copy.deepcopy(chosen.choice(_VALUES))
    return changed_document


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


# --- what it is to be answered


def verdict(target: Target, request: Request, reply: Reply) -> str:
    """One of ``right``, ``refused`` and ``mlflow``, a 500 that MLflow gives before the flavor is asked.

    Raises:
        AssertionError: Anything else.
    """
    shown = f"{request.content_type} {request.body[:600]!r} -> {reply.status} {reply.body[:600]!r}"
    if reply.status == 200:
        expected = _read(target, request)
        assert expected is not None, f"answered what cannot be read: {shown}"
        assert _is_answer(target, expected, reply.body), f"wrong answer: {shown}"
        return "right"
    if reply.status == 500 and mlflow_fails(request):
        return "mlflow"
    assert 400 <= reply.status < 500, f"failed on a client's data: {shown}"
    assert not request.good, f"refused what is good: {shown}"
    assert reply.body, f"refused without a word: {shown}"
    return "refused"


def mlflow_fails(request: Request) -> bool:
    """Whether MLflow 3.17.2 answers 500 before it asks the flavor; docs/serving.md lists them."""
    if request.content_type is None:
        return True
    if request.content_type.split(";")[0].strip() != JSON:
        return False
    try:
        document = json.loads(request.body)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    except (ValueError, RecursionError):  # an integer of more than 4300 digits; nesting
        return True
    table = document.get("dataframe_split") if isinstance(document, dict) else None
    names = table.get("columns") if isinstance(table, dict) else None
    return isinstance(names, list) and any(isinstance(name, list | dict) for name in names)


def _read(target: Target, request: Request) -> dict[str, np.ndarray] | None:
    """The arrays that a request means, read as loosely as MLflow reads them; ``None`` if it means none."""
    mime = (request.content_type or "").split(";")[0].strip()
    try:
        if mime == CSV:
            columns = dict(pd.read_csv(io.BytesIO(request.body)))
        elif mime == PARQUET:
            columns = dict(pd.read_parquet(io.BytesIO(request.body)))
        else:
            columns = _columns(target, json.loads(request.body))
            if target.tables:  # pandas repeats a single value for every row
                columns = dict(pd.DataFrame(columns))
        found = {}
        for name, dtype in target.dtypes.items():
            column = columns[name]
            if isinstance(column, pd.Series):  # a list of one value in a table is that value
                if column.dtype.kind == "u":
                    column = column.astype(np.int64)  # pandas lets 2**63 become negative
                column = [_scalar(item) for item in column]
            array = np.array(column, dtype)
            found[name] = array.reshape(len(array), *target.shapes[name])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, IndexError, AttributeError):
        return None
    return found


def _columns(target: Target, document: Any) -> Any:
    (form,) = [key for key in document if key in FORMATS]
    value = document[form]
    if form == "dataframe_split":
        return dict(pd.DataFrame(value["data"], columns=value.get("columns"), index=value.get("index")))
    if form == "dataframe_records":
        return dict(pd.DataFrame(value))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        # MLflow collects each input by itself, so that a row that lacks one is not noticed.
        return {name: [row[name] for row in value if name in row] for name in target.columns}
    return value if isinstance(value, dict) else {next(iter(target.columns)): value}


def _is_answer(target: Target, arrays: Mapping[str, np.ndarray], body: bytes) -> bool:
    predictions = json.loads(body, parse_constant=_refuse_constant)["predictions"]
    if predictions and isinstance(predictions[0], dict):  # of a DataFrame
        predictions = [list(row.values()) for row in predictions]
    found = np.array(predictions, np.float64)
    with np.errstate(all="ignore"):
        expected, scale = target.answer(arrays)
        if found.size == expected.size == 0:
            return True
        if found.shape != expected.shape:
            return False
        finite = np.isfinite(expected) & np.isfinite(found)
        near = np.abs(found - expected) <= 1e-5 * scale + 1e-6
        # A number that JSON lacks is null; at the end of the range either side may have it.
        return bool((near | ~finite)[(scale < 1e38)].all())


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# --- asking


def fuzz(server: Server, target: Target, *, examples: int, seed: int = SEED) -> Counter[str]:
    """Counts of verdicts over ``examples`` requests to a server of ``target``.

    Raises:
        AssertionError: At the smallest request that was found with another outcome.
    """
    counts: Counter[str] = Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(requests_for(target))
    def ask(request: Request) -> None:
        counts[verdict(target, request, Reply(*server.send(request.body, request.content_type)))] += 1

    ask()
    return counts


def heavy() -> dict[str, Request]:
    """Bodies of 40 MB, which are refused, and few enough to ask one by one."""
    size = 40 * 10**6
    texts = {
        "an integer": b'{"inputs": {"age": [[' + b"1" * size + b']], "rooms": [3]}}',
        "open brackets": b"[" * size,
        "nulls": b'{"inputs": {"age": [[null' + b",null" * (size // 5) + b']], "rooms": [3]}}',
        "a string": b'{"inputs": {"age": [["' + b"x" * size + b'"]], "rooms": [3]}}',
        "spaces": b" " * size,
    }
    return {name: Request(text, JSON) for name, text in texts.items()}


def house(kernel: np.ndarray, bias: np.ndarray) -> Target:
    """``age`` times ``kernel`` plus ``bias`` plus ``rooms``: two named tensors."""

    def answer(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        parts = [arrays["age"].astype(np.float64) @ kernel, bias, arrays["rooms"].astype(np.float64)[:, None]]
        return sum(parts), sum(np.abs(part) for part in parts)

    age = {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 1}
    return Target(
        columns={"age": age, "rooms": {"type": "integer"}},
        dtypes={"age": np.float32, "rooms": np.int64},
        shapes={"age": (1,), "rooms": ()},
        answer=answer,
    )


def _columns_target(kernel: np.ndarray, bias: np.ndarray) -> Target:
    """A dense layer with a signature of scalar columns, which takes CSV and Parquet."""

    def answer(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        x = np.stack([arrays[name] for name in "abcd"], axis=1)
        return x @ kernel + bias, np.abs(x) @ np.abs(kernel) + np.abs(bias)

    columns = {name: {"type": "number"} for name in "abcd"}
    shapes: dict[str, tuple[int, ...]] = {name: () for name in columns}
    dtypes = {name: np.float64 for name in columns}
    return Target(columns=columns, dtypes=dtypes, shapes=shapes, answer=answer, tables=True)


def _texts_target() -> Target:
    def answer(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        found = np.array([{"good": 1, "bad": 2}.get(text, 0) for text in arrays["texts"]], np.float64)
        return found, np.zeros_like(found)

    return Target(columns={"texts": {"type": "string"}}, dtypes={"texts": object}, shapes={"texts": ()}, answer=answer)


def save_models(folder: Path) -> dict[str, Target]:
    """Three models in ``folder``, by the names of their directories."""
    import keras

    import mlflow_keras_subclass as mks

    class House(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.out = keras.layers.Dense(1)

        def call(self, inputs: Any) -> Any:
            return self.out(inputs["age"]) + keras.ops.cast(inputs["rooms"], "float32")[:, None]

    class Dense(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.out = keras.layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.out(x)

    class Words(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.look = keras.layers.StringLookup(vocabulary=["good", "bad"])

        def call(self, inputs: Any) -> Any:
            return self.look(inputs["texts"])

    models = {"house": House(), "columns": Dense(), "texts": Words()}
    models["house"]({"age": np.ones((2, 1), np.float32), "rooms": np.array([1, 2])})
    frame = pd.DataFrame(np.ones((2, 4)), columns=list("abcd"))
    models["columns"](frame.to_numpy(np.float32))
    models["texts"]({"texts": keras.ops.convert_to_tensor(np.array(["good", "x"], object))})
    examples = {"columns": frame}
    for name, model in models.items():
        mks.save_model(model, folder / name, prove=False, input_example=examples.get(name))
    weights = {name: [np.asarray(w, np.float64) for w in models[name].get_weights()] for name in ("house", "columns")}
    return {
        "house": house(*weights["house"]),
        "columns": _columns_target(*weights["columns"]),
        "texts": _texts_target(),
    }


def main(examples: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = python_without_package(folder / "venv")
        for model, target in save_models(folder).items():
            with serving(folder / model, folder, python=python) as server:
                counts = fuzz(server, target, examples=examples // 4, seed=SEED - 1)
                before = server.resident_mib()
                counts += fuzz(server, target, examples=examples)
                after = server.resident_mib()
                print(
                    model, dict(counts), f"resident {before:.0f} MiB after warm-up, {after:.0f} at the end", flush=True
                )
                if model == "house":
                    for what, request in heavy().items():
                        reply = Reply(*server.send(*request[:2]))
                        found = verdict(target, request, reply)
                        print(
                            f"40 MB of {what}: {reply.status} ({found})", f"{server.resident_mib():.0f} MiB", flush=True
                        )
                assert fuzz(server, target, examples=50)["right"] > 0


if __name__ == "__main__":
    main(int(sys.argv[1]))
