"""``mlflow.pyfunc.spark_udf`` on a standalone cluster whose executors have the requirements and nothing else.

``make test-spark-cluster``; ``MKS_EXECUTOR`` is their Python, which has neither this package nor the classes below.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from clusters import session, standalone
from pyspark.sql import functions

import mlflow_keras_subclass as mks

X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
ROOMS = np.arange(40)


class Dense(keras.Model):
    """(None, 4) to (None, 3); notes in a file each time that it is constructed."""

    def __init__(self, notes: str) -> None:
        super().__init__()
        self.out = keras.layers.Dense(3)
        with open(notes, "a", encoding="utf-8") as file:  # noqa: PTH123
            file.write(f"{os.getpid()}\n")

    def call(self, x: Any) -> Any:
        return self.out(x)


class House(keras.Model):
    """Two named inputs, two named outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.out = keras.layers.Dense(2)

    def call(self, inputs: Any) -> Any:
        both = self.out(inputs["age"])
        return {"price": both[:, 0] + keras.ops.cast(inputs["rooms"], "float32"), "both": both}


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("cluster")
    with standalone(folder) as address, session(address, os.environ["MKS_EXECUTOR"]) as found:
        yield found


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notes") / "constructed.txt"


@pytest.fixture(scope="module")
def dense(notes: Path) -> keras.Model:
    keras.utils.set_random_seed(1)
    model = Dense(str(notes))
    model(X)
    return model


@pytest.fixture(scope="module")
def house() -> keras.Model:
    model = House()
    model({"age": X[:, :1], "rooms": ROOMS})
    return model


@pytest.fixture(scope="module")
def frame(spark: Any) -> Any:
    rows = [(number, x.tolist(), *map(float, x), float(x[0]), number) for number, x in enumerate(X)]
    schema = "number int, x array<float>, a double, b double, c double, d double, age float, rooms long"
    return spark.createDataFrame(rows, schema).repartition(8).cache()


def scored(frame: Any, column: Any) -> list[Any]:
    """The values of ``column``, in the order of the rows of ``X``."""
    return [row[1] for row in sorted(frame.select("number", column.alias("score")).collect())]


def udf(spark: Any, path: Path, result_type: str) -> Any:
    return mlflow.pyfunc.spark_udf(spark, str(path), result_type=result_type, env_manager="local")


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=1e-5, atol=1e-6)


def test_executors_lack_the_package_and_the_class(spark: Any) -> None:
    """Else nothing below would show anything."""

    def importable(number: int) -> list[str]:
        import importlib.util

        names = ("mlflow_keras_subclass", "test_spark", "clusters", "mlflow", "keras")
        return [name for name in names if importlib.util.find_spec(name) is not None]

    found = spark.sparkContext.parallelize(range(4), 4).map(importable).collect()

    assert found == [["mlflow", "keras"]] * 4


def test_array_column_and_one_load_in_each_python_worker(
    spark: Any, frame: Any, dense: Any, notes: Path, tmp_path: Path
) -> None:
    """Eight partitions and two jobs, two executors of one Python worker each."""
    mks.save_model(dense, tmp_path / "m", prove=False)
    before = notes.read_text(encoding="utf-8").split()
    score = udf(spark, tmp_path / "m", "array<float>")
    expected = np.asarray(dense(X))
    close(scored(frame, score("x")), expected)
    close(scored(frame, score("x")), expected)
    loaded = notes.read_text(encoding="utf-8").split()[len(before) :]

    assert str(os.getpid()) not in loaded
    assert 1 <= len(loaded) <= 2
    assert len({*loaded}) == len(loaded)


def test_scalar_columns_and_a_struct_of_them(spark: Any, frame: Any, dense: Any, tmp_path: Path) -> None:
    """With a signature of columns: by position, or by name in a struct whose fields are in another order."""
    mks.save_model(
        dense, tmp_path / "m", prove=False, input_example=pd.DataFrame(X.astype(float), columns=list("abcd"))
    )
    score, expected = udf(spark, tmp_path / "m", "array<float>"), np.asarray(dense(X))

    close(scored(frame, score("a", "b", "c", "d")), expected)
    close(scored(frame, score(functions.struct("d", "c", "b", "a"))), expected)


def test_named_inputs_and_a_dict_of_outputs(spark: Any, frame: Any, house: Any, tmp_path: Path) -> None:
    """As columns and as a struct; the outputs come as the fields of a struct."""
    mks.save_model(house, tmp_path / "m", prove=False)
    score = udf(spark, tmp_path / "m", "struct<price: float, both: array<float>>")
    expected = house({"age": X[:, :1], "rooms": ROOMS})

    for column in (score("age", "rooms"), score(functions.struct("rooms", "age"))):
        found = scored(frame, column)
        close([row["price"] for row in found], expected["price"])
        close([row["both"] for row in found], expected["both"])
