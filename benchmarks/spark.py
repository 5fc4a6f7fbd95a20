"""``mlflow.pyfunc.spark_udf``: rows a second against mlflow.tensorflow, on a standalone cluster of two workers.

Usage: MKS_EXECUTOR=python python benchmarks/spark.py [rows] [rounds]; that Python lacks this package.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from clusters import session, standalone
from common import OURS, TENSORFLOW, save, table
from models import rows
from pyspark.sql import functions


def measured(spark: Any, folder: Path, count: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of the first job and of each later one, which take turns, of each flavor."""
    values = rows("tiny", 1000).tolist()
    few = spark.createDataFrame([(value,) for value in values], "x array<float>")
    many = few.crossJoin(functions.broadcast(spark.range(count // 1000))).repartition(4).cache()
    many.count()
    found: dict[str, list[float]] = {}
    udfs = {
        flavor: mlflow.pyfunc.spark_udf(
            spark, str(save(flavor, "tiny", folder / flavor)), result_type="array<float>", env_manager="local"
        )
        for flavor in (OURS, TENSORFLOW)
    }
    for _ in range(rounds + 1):
        for flavor, udf in udfs.items():
            started = time.perf_counter()
            total = many.select(functions.sum(functions.element_at(udf("x"), 1))).collect()[0][0]
            found.setdefault(flavor, []).append(time.perf_counter() - started)
            assert np.isfinite(total)
    return found


def main(count: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cluster").mkdir()
        with standalone(folder / "cluster") as address, session(address, os.environ["MKS_EXECUTOR"]) as spark:
            found = measured(spark, folder, count, rounds)
    ours, peer = found[OURS][1:], found[TENSORFLOW][1:]
    lines = [
        [flavor, f"{times[0]:.1f} s", f"{count / min(times[1:]):,.0f}", f"{count / statistics.median(times[1:]):,.0f}"]
        for flavor, times in found.items()
    ]
    ratio = statistics.median(other / own for own, other in zip(ours, peer, strict=True))
    lines.append(["ratio", "", "", ratio])
    header = ["flavor", "first job", "rows/s, best", "rows/s, median"]
    table(f"spark_udf, {count:,} rows of one array column, two workers of one core", header, lines)


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 100_000,
        int(sys.argv[2]) if len(sys.argv) > 2 else 2,
    )
