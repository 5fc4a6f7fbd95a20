"""``report.html``: what it says of a small model, and what it leaves closed or out of a big one."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlflow_keras_subclass.artifacts.page import Heading, write
from mlflow_keras_subclass.call_graph import INPUT, CallGraph, Graph, Node
from mlflow_keras_subclass.files import ArtifactWriter
from mlflow_keras_subclass.staging import copy_summary
from mlflow_keras_subclass.tensors import TensorSource, write_tensors

HEADING = Heading(
    class_name="Net", model_class="shop:Net", doc="Says <b>what</b>.", uri="models:/m-1", facts=("a fact",)
)
GIT = {
    "commit": "c" * 40,
    "branch": "main",
    "tag": None,
    "remote_url": "https://example.org/shop.git",
    "repository_of": "class",
    "dirty": True,
    "status": "ok",
    "patch_omitted": None,
    "sources": [{"path": "shop.py", "status": "modified"}],
}
VERSIONS = {"python": "3.11.7", "keras": "3.15.1", "backend": "jax", "backend_version": "0.9"}
# Over this, MLflow's page shows text without colours.
PREVIEW_BYTES = 5 * 2**20


def model_directory(root: Path, layers: Mapping[str, str], arrays: Mapping[str, np.ndarray], **files: Any) -> Path:
    """What a save leaves in ``root`` for the page: layers by path and class, and the variables' values."""
    writer = ArtifactWriter(root, "keras_subclass")
    sources = {
        path: TensorSource(shape=array.shape, dtype=array.dtype.name, value=lambda array=array: array)
        for path, array in arrays.items()
    }
    write_tensors(writer, "state.safetensors", sources)
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("path", "shape", "dtype", "parameters", "trainable", "kind", "sha256"))
    for path, array in arrays.items():
        rows.writerow((path, "x".join(map(str, array.shape)), array.dtype.name, array.size, True, "layer", "0" * 64))
    writer.write_text("weights.csv", table.getvalue())
    records = {path: {"class": kind, "trainable": path != "frozen"} for path, kind in layers.items()}
    writer.write_json("structure.json", {"layers": records})
    writer.write_json("config.json", files.get("config", {"constructor": {"kwargs": {"units": 4}}, "compile": None}))
    writer.write_json("git.json", {**GIT, **files.get("git", {})})
    writer.write_json("manifest.json", {"versions": VERSIONS})
    writer.write_text("source/shop.py", files.get("source", "class Net(keras.Model):\n    pass\n"))
    if "patch" in files:
        writer.write_text("uncommitted.diff.txt", files["patch"])
    (root / "requirements.txt").write_text("keras==3.15.1\n", encoding="utf-8")
    return root


def graph(path: str, *names: str, kind: str = "Dense") -> Graph:
    """The layers ``names`` below ``path``, called one after the other."""
    prefix = f"{path}." if path else ""
    layers = [Node(path=f"{prefix}{name}", kind=kind, shapes=("(·, 4)",), calls=1) for name in names]
    nodes = (Node(path=INPUT, kind="", shapes=(), calls=0), *layers)
    return Graph(path=path, nodes=nodes, edges=tuple((place, place + 1) for place in range(len(layers))))


def page(root: Path, *graphs: Graph) -> str:
    write(root, HEADING, CallGraph(graphs=graphs))
    return (root / "report.html").read_text(encoding="utf-8")


def text_of(markup: str) -> str:
    """What a person reads of it."""
    body = re.sub(r"<style>.*?</style>", "", markup, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", body)))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    layers = {"": "Net", "frozen": "Dense", "tower": "Tower", "tower.one": "Dense"}
    arrays = {"frozen.bias": np.zeros(4, "float32"), "tower.one.kernel": rng.normal(size=(30, 4)).astype("float32")}
    return model_directory(tmp_path, layers, arrays, patch="--- a\n+++ b\n-old\n+new\n")


def test_all_of_a_small_model_is_open(small: Path) -> None:
    markup = page(small, graph("", "tower", "frozen"), graph("tower", "one"))

    closed = re.findall(r"<details><summary>(.*?)</summary>", markup)
    assert closed == ["compile, specs, definitions"]


@pytest.mark.parametrize(
    "said",
    [
        "Says <b>what</b>.",
        "models:/m-1a fact",
        "tower Tower (·, 4) · 120 parameters",
        "tower.one Dense (·, 4) · 120 parameters",
        "frozen Dense (·, 4) · 4 parameters · frozen",
        "tower.one.kernel30 × 4 float32",
        "frozen.bias4 float320 ± 00 … 0",
        "uncommitted changesyes",
        "shop.pymodified",
        '"units": 4',
        "class Net(keras.Model)",
        "-old +new",
        "Python3.11.7 Keras3.15.1 jax0.9",
        "keras==3.15.1",
        "was not proven",
    ],
)
def test_page_says(small: Path, said: str) -> None:
    assert said in text_of(page(small, graph("", "tower", "frozen"), graph("tower", "one")))


def test_layers_and_weights_are_in_the_order_of_the_calls(small: Path) -> None:
    """And not in that of the alphabet, which the files have."""
    text = text_of(page(small, graph("", "tower", "frozen"), graph("tower", "one")))

    assert text.index("tower Tower") < text.index("frozen Dense (·, 4) ·")
    assert text.index("tower.one.kernel") < text.index("frozen.bias")


def test_source_and_patch_are_in_colour(small: Path) -> None:
    markup = page(small)

    assert '<span class="k">class</span>' in markup
    assert re.search(r'<span class="gd">-old\s*</span>', markup)
    assert re.search(r'<span class="gi">\+new\s*</span>', markup)


def test_blocks_that_look_the_same_are_drawn_once(small: Path) -> None:
    blocks = [graph(f"block{number}", "up", "down") for number in range(5)]
    other = graph("last", "up", "down", kind="Conv2D")
    pair = [graph("left", "up", "down", "out"), graph("right", "up", "down", "out")]
    markup = page(small, graph("", "tower", "frozen"), *blocks, other, *pair)

    assert markup.count('<svg role="img"') == 4
    text = text_of(markup)
    assert "block0 calls 2 layers, and so do 4 more, in the same way" in text
    assert "The same: block1, block2, block3, block4" in text
    assert "last calls 2 layers" in text
    assert "left calls 3 layers, and so does right" in text


def test_a_layer_that_calls_one_other_needs_no_drawing(small: Path) -> None:
    markup = page(small, graph("", "tower", "frozen"), graph("tower", "one"))

    assert markup.count('<svg role="img"') == 1


def test_values_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    arrays = {
        "some.kernel": np.array([1.0, np.nan, 2.0, np.inf], "float32"),
        "none.kernel": np.array([np.nan, np.nan], "float32"),
    }
    text = text_of(page(model_directory(tmp_path, {"": "Net", "some": "Dense", "none": "Dense"}, arrays)))

    assert "1.5 ± 0.5" in text
    assert "2 not finite" in text
    assert "no finite value" in text


@pytest.mark.parametrize(
    "values",
    [
        np.full(9, np.finfo("float32").min, "float32"),
        np.array([1e300, -1.7e308, 1.7e308]),
        np.full(9, 2**63 + 5, "uint64"),
        np.array([1e18, np.nextafter(1e18, 2e18)]),
        np.array([0.0, 5e-324]),
    ],
)
def test_numbers_of_any_size_have_a_distribution(tmp_path: Path, values: np.ndarray[Any, Any]) -> None:
    """A mask may hold the smallest number of its dtype."""
    text = page(model_directory(tmp_path, {"": "demo:Net"}, {"mask": values}))

    assert text.count("<svg") == 1


def test_what_git_could_not_tell_is_said(tmp_path: Path) -> None:
    unknown = {"commit": None, "branch": None, "remote_url": None, "dirty": None, "status": "git-missing"}
    text = text_of(page(model_directory(tmp_path, {"": "Net"}, {}, git={**unknown, "patch_omitted": "too large"})))

    assert "uncommitted changesnot known" in text
    assert "git-missing" in text
    assert "no patchtoo large" in text


def test_a_commit_that_is_not_the_classs_own_is_named_as_such(tmp_path: Path) -> None:
    git = {"repository_of": "working-directory"}
    text = text_of(page(model_directory(tmp_path, {"": "Net"}, {}, git=git)))

    assert "repositoryof the working directory: the class lies in none" in text


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of 4000 layers and 8000 variables, with all else as long as it may be."""
    blocks = [f"stacks[{number // 100}].blocks[{number % 100}]" for number in range(4000)]
    layers = {"": "Net", **{f"stacks[{number}]": "Stack" for number in range(40)}, **dict.fromkeys(blocks, "Dense")}
    rng = np.random.default_rng(0)
    values = rng.normal(size=200).astype("float32")
    arrays = {f"{block}.{variable}": values for block in blocks for variable in ("bias", "kernel")}
    stacks = [
        graph(f"stacks[{number}]", *(f"blocks[{place}]" for place in range(100)), kind=f"Dense{number}")
        for number in range(40)
    ]
    root = model_directory(
        tmp_path_factory.mktemp("big"),
        layers,
        arrays,
        source="value = [1, 2, 'three']  # four\n" * 40_000,
        patch="--- a\n+++ b\n" + "+x\n-y\n" * 100_000,
        config={"constructor": {"kwargs": list(range(50_000))}, "compile": list(range(50_000))},
    )
    return page(root, graph("", *(f"stacks[{number}]" for number in range(40))), *stacks)


def test_page_of_a_big_model_can_be_previewed(big: str) -> None:
    assert len(big.encode("utf-8")) < PREVIEW_BYTES


def test_page_of_a_big_model_is_closed(big: str) -> None:
    """Of what is open, the first level of the layers and the file of the source."""
    assert re.findall(r"<details open><summary>(?:<[^>]+>)*([\w.]+)", big) == ["model", "shop.py"]
    assert not re.search(r'<svg(?! role="img")', re.sub(r"<details>.*?</details>", "", big, flags=re.DOTALL))


def test_page_of_a_big_model_says_what_it_leaves_out(big: str) -> None:
    text = text_of(big)

    assert "1,041 more layers in structure.json." in text
    assert "5,500 more variables in weights.csv." in text
    assert "20 more kinds of layers call several others." in text
    assert text.count("characters more in the file.") == 4


def test_summary_for_the_run_has_small_files_where_the_card_names_them(small: Path, tmp_path: Path) -> None:
    """Neither arrays nor pickles, and no file that a browser would wait for."""
    page(small)
    data = small / "keras_subclass"
    (small / "README.md").write_text("# Net\n", encoding="utf-8")
    (data / "class.cloudpickle").write_bytes(b"x")
    (data / "structure.json").write_bytes(b" " * (2**20 + 1))
    copy_summary(small, tmp_path / "summary", "m-1")

    found = {path.relative_to(tmp_path / "summary").as_posix() for path in (tmp_path / "summary").rglob("*.*")}
    names = ("config.json", "git.json", "manifest.json", "source/shop.py", "uncommitted.diff.txt", "weights.csv")
    expected = {"README.md", "report.html", "requirements.txt", *(f"keras_subclass/{name}" for name in names)}
    assert found == expected
    card = (tmp_path / "summary" / "README.md").read_text(encoding="utf-8")
    assert "`models:/m-1`" in card
    assert card.endswith("\n\n# Net\n")


def test_a_model_that_could_not_be_traced_says_so(small: Path) -> None:
    assert "Which layer calls which is not known" in text_of(page(small))


def test_layers_of_a_flat_model_are_closed(tmp_path: Path) -> None:
    """Hundreds of layers beside each other are one line, not a line each."""
    names = [f"layers[{number}]" for number in range(150)]
    arrays = {f"{name}.kernel": np.ones(2, "float32") for name in names}
    root = model_directory(tmp_path, {"": "Net", **dict.fromkeys(names, "Dense")}, arrays)

    assert "<details><summary>150 layers</summary>" in page(root)
