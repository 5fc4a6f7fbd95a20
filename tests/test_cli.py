"""The command line on real models, and report.html: what is printed, the exit codes, and what is not imported."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from click.testing import CliRunner

import mlflow_keras_subclass as mks
from mlflow_keras_subclass.cli import cli

X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


class Block(keras.layers.Layer):
    """Two layers and the input added again."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.first = keras.layers.Dense(units)
        self.second = keras.layers.Dense(units)

    def call(self, x: Any) -> Any:
        return x + 2 * self.second(self.first(x))


class Net(keras.Model):
    """A net with <b>markup</b> in its description."""

    def __init__(self, units: int = 4) -> None:
        super().__init__()
        self.block = Block(units)
        self.out = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.out(self.block(x) + x)


class Unordered(Net):
    def __init__(self) -> None:
        super().__init__()
        self.either = {keras.metrics.Mean("a"), keras.metrics.Mean("b")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two logged versions of a model, and the directories ``one`` and ``other`` with them."""
    root = tmp_path_factory.mktemp("cli")
    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    mlflow.create_experiment("cli", artifact_location=(root / "artifacts").as_uri())
    mlflow.set_experiment("cli")
    keras.utils.set_random_seed(0)
    net = Net()
    net(X)
    with mlflow.start_run():
        mlflow.log_metric("loss", 0.5)
        first = mks.log_model(net, name="net", input_example=X, log_run_artifacts="summary")
    net.out.bias.assign([1.0])
    mks.save_model(net, root / "other", prove=False)
    mlflow.artifacts.download_artifacts(first.model_uri, dst_path=str(root / "one"))
    (root / "uri").write_text(first.model_uri)
    return root


@pytest.fixture(autouse=True)
def store(saved: Path) -> Iterator[None]:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{saved}/mlflow.db")
    yield
    mlflow.set_tracking_uri(before)


def run(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(cli, [str(item) for item in arguments])
    assert result.exit_code == code, result.output
    return str(result.output)


def run_json(*arguments: Any, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code))


def test_inspect(saved: Path) -> None:
    found = run_json("inspect", saved / "one")

    assert found["manifest"]["model_class"].endswith(":Net")
    text = run("inspect", saved / "one")
    for part in ("Net", found["manifest_sha256"], "class.cloudpickle", "keras=="):
        assert part in text.replace("\n", "")


def test_verify_says_what_was_changed(saved: Path, tmp_path: Path) -> None:
    assert run_json("verify", saved / "one")["files"] > 5
    copy = tmp_path / "copy"
    shutil.copytree(saved / "one", copy)
    (copy / "keras_subclass/git.json").write_text("{}")

    assert "changed: keras_subclass/git.json" in run("verify", copy, code=1)


def test_verify_rebuild_asks_the_model_again(saved: Path) -> None:
    assert "answers as it did" in run("verify", (saved / "uri").read_text(), "--rebuild")


def test_diff_names_the_variable_and_how_far_it_moved(saved: Path, tmp_path: Path) -> None:
    found = run_json("diff", saved / "one", saved / "other")

    (weight,) = found["weights"]
    assert (weight["path"], weight["left_norm"], weight["right_norm"], weight["distance"]) == ("out.bias", 0, 1, 1)
    assert not found["source"]
    assert not found["config"]
    page = tmp_path / "diff.html"
    assert "out.bias" in run("diff", saved / "one", saved / "other", "--html", page, "--exit-code", code=1)
    assert "out.bias" in page.read_text(encoding="utf-8")
    assert "do not differ" in run("diff", saved / "one", saved / "one", "--exit-code")


def test_source_is_that_of_the_class(saved: Path) -> None:
    assert "class Net(keras.Model):" in run("source", saved / "one")
    assert "no source file" in run("source", saved / "one", "--path", "none.py", code=1)


def test_list(saved: Path) -> None:
    (row,) = run_json("list", "--experiment", "cli")

    assert row["name"] == "net"
    assert row["proof"] == "proven"
    assert row["metrics"] == {"loss": 0.5}
    assert row["model_id"] in run("list").replace("\n", "")
    assert "no experiment 'nowhere'" in run("list", "--experiment", "nowhere", code=1)


def test_export_to_what_keras_reads(saved: Path, tmp_path: Path) -> None:
    expected = mks.load_model(saved / "one")(X)
    assert run_json("export", saved / "one", tmp_path / "net.keras")["path"].endswith("net.keras")
    run("export", saved / "one", tmp_path / "net.weights.h5")
    run("export", saved / "one", tmp_path / "graph")

    assert zipfile.is_zipfile(tmp_path / "net.keras")
    again = Net()
    again(X)
    again.load_weights(tmp_path / "net.weights.h5")
    np.testing.assert_array_equal(again(X), expected)
    import tensorflow as tf

    graph = tf.saved_model.load(str(tmp_path / "graph"))
    np.testing.assert_allclose(graph.serve(X), expected, rtol=1e-5)
    assert "is there already" in run("export", saved / "one", tmp_path / "net.keras", code=1)


CHECKED = """
import keras

class Fine(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.dense = keras.layers.Dense(units)

    def call(self, x):
        return self.dense(x)

class Unordered(Fine):
    def __init__(self):
        super().__init__(2)
        self.either = {keras.metrics.Mean("a"), keras.metrics.Mean("b")}
"""


def test_check_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "checked.py"
    file.write_text(CHECKED)

    fine = run_json("check", f"{file}:Fine", "--arguments", '{"units": 3}', "--input", "[null, 4]")
    assert fine["ok"]
    assert fine["compared"]["variables"] == 2
    wrong = run_json("check", f"{file}:Unordered", "--input", "[null, 4]", code=1)
    (finding,) = wrong["findings"]
    assert finding["path"] == "either"
    line = next(number for number, text in enumerate(CHECKED.splitlines(), 1) if "self.either" in text)
    assert finding["source"].endswith(f"checked.py:{line}")
    assert "Give --arguments" in run("check", f"{file}:Fine", code=2)
    assert "expected FILE.py:Class" in run("check", "nothing", code=2)


def test_check_needs_no_training() -> None:
    result = mks.check(Unordered(), X)

    assert not result.ok
    assert re.search(r"either \(\S*test_cli\.py:\d+\): ", str(result))


def test_reading_a_directory_imports_neither_keras_nor_mlflow(saved: Path) -> None:
    code = """
import sys
from mlflow_keras_subclass_cli import main
try:
    main()
except SystemExit as end:
    heavy = [name for name in ("keras", "tensorflow", "mlflow.tracking", "mlflow.models") if name in sys.modules]
    print(end.code, heavy, file=sys.stderr)
"""
    for arguments in (["inspect", "one"], ["verify", "one"], ["source", "one"], ["diff", "one", "other"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=saved, capture_output=True, text=True, timeout=120, check=True
        )
        assert done.stderr.strip() == "0 []", (arguments, done.stderr)


class Tags(html.parser.HTMLParser):
    """Collects what a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.names.add(tag)
        self.attributes.update(name for name, _ in attrs)


def test_report_shows_the_calls_the_weights_and_the_source(saved: Path) -> None:
    page = (saved / "one/report.html").read_text(encoding="utf-8")

    assert "A net with &lt;b&gt;markup&lt;/b&gt; in its description." in page
    assert "<b>markup" not in page
    for part in ("block calls 2 layers", "out.kernel", "compared: ", "keras==", "class Net"):
        assert part in re.sub(r"</?span[^>]*>", "", page), part
    tags = Tags()
    tags.feed(page)
    assert tags.names.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base", "form"})
    assert tags.attributes.isdisjoint({"src", "href", "srcset", "action", "onclick", "onload", "onerror"})
    assert not re.search(r"url\(|@import", page.split("</style>")[0])
    assert "default-src 'none'" in page


def test_the_calls_are_traced_through_operations(saved: Path) -> None:
    page = (saved / "one/report.html").read_text(encoding="utf-8")
    drawing = page.split("<svg", 2)[1]

    assert re.findall(r"<g><title>(\S+) ", drawing) == ["(input)", "block", "out"]
    assert drawing.count('class="edge"') == 3, "input to block, block to out, input added again"


def test_a_summary_can_be_mirrored_into_the_run(saved: Path) -> None:
    run_id = mlflow.get_logged_model((saved / "uri").read_text().removeprefix("models:/")).source_run_id
    client = mlflow.MlflowClient()

    top = {Path(item.path).name for item in client.list_artifacts(run_id, "net_summary")}
    names = {Path(item.path).name for item in client.list_artifacts(run_id, "net_summary/keras_subclass")}

    assert top == {"README.md", "keras_subclass", "report.html", "requirements.txt"}
    assert {"config.json", "git.json", "model_summary.txt", "source", "weights.csv"} <= names
    assert not any(name.endswith((".safetensors", ".cloudpickle")) for name in names)
    card = mlflow.artifacts.load_text(f"runs:/{run_id}/net_summary/README.md")
    assert (saved / "uri").read_text() in card.partition("\n")[0], "it begins with where the model is"
