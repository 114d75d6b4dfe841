"""One question, asked of our command and of engines that know nothing of us: the same rows."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from indexer.table.compact import compact
from tests.table.make import TAG, Run, new_index, unit
from tests.test_cli import call

LABEL, LEAST, TOP = "Moving Right", 0.2, 15
COLUMNS = ["label", "score", "uri", "clip_index", "clip_id"]
ORDER = ["score", "uri", "clip_index"]
DESCENDING = [True, False, False]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Compacted, so that a glob sees each row once; many scores are equal."""
    run = Run(new_index(str(tmp_path_factory.mktemp("same") / "index")))
    for batch in range(4):
        logits = np.random.default_rng(batch).integers(0, 3, (6, 5)).astype(np.float32)
        uris = [f"s3://videos/{batch}-{number}.mp4" for number in range(5)]
        run.add(*(unit(uri, range(6), logits_NK=logits) for uri in uris), top_k=5)
    compact(run.paths, TAG)
    return run.paths.root_uri


def ours(index, capsys):
    code, out, err = call(capsys, "search", index, LABEL, "--min-score", str(LEAST),
                          "--top", str(TOP), "--format", "json")  # fmt: skip
    assert code == 0, err
    return [[row[name] for name in COLUMNS] for row in json.loads(out)]


def by_duckdb(index):
    question = (
        "SELECT label, score, uri, clip_index, clip_id FROM read_parquet($1) WHERE label = $2 "
        "AND score >= $3::FLOAT ORDER BY score DESC, uri, clip_index LIMIT $4"
    )
    glob = f"{index}/labels/model=*/**/*.parquet"
    with duckdb.connect() as connection:
        return connection.execute(question, [glob, LABEL, LEAST, TOP]).fetchall()


def by_pandas(index):
    rows = pd.read_parquet(f"{index}/labels")
    rows = rows[(rows["label"] == LABEL) & (rows["score"] >= np.float32(LEAST))]
    rows = rows.sort_values(ORDER, ascending=[not down for down in DESCENDING])
    return rows[COLUMNS].head(TOP).to_numpy().tolist()


def by_polars(index):
    wanted = (pl.col("label") == LABEL) & (pl.col("score") >= pl.lit(LEAST, pl.Float32))
    rows = pl.scan_delta(f"{index}/labels").filter(wanted).sort(ORDER, descending=DESCENDING)
    return rows.select(COLUMNS).head(TOP).collect().rows()


def by_deltalake(index):
    wanted = (pc.field("label") == LABEL) & (pc.field("score") >= np.float32(LEAST))
    rows = DeltaTable(f"{index}/labels").to_pyarrow_dataset().to_table(COLUMNS, filter=wanted)
    directions = ["descending" if down else "ascending" for down in DESCENDING]
    rows = rows.sort_by(list(zip(ORDER, directions, strict=True))).slice(0, TOP)
    return [list(row.values()) for row in rows.to_pylist()]


SPARK = """
import json, sys
from pyspark.sql import SparkSession, functions as F
spark = (SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
         .config("spark.driver.host", "127.0.0.1").getOrCreate())
index, label, least, top, columns = json.loads(sys.argv[1])
rows = (spark.read.parquet(f"{index}/labels/model=*")
        .where((F.col("label") == label) & (F.col("score") >= F.lit(least).cast("float")))
        .orderBy(F.desc("score"), "uri", "clip_index").select(columns).limit(top))
print(json.dumps([list(row) for row in rows.collect()]))
"""


def by_spark(index):
    python = os.environ.get("SPARK_PYTHON", sys.executable)
    arguments = json.dumps([index, LABEL, LEAST, TOP, COLUMNS])
    told = subprocess.run(
        [python, "-c", SPARK, arguments], capture_output=True, text=True, check=False, timeout=170
    )
    assert told.returncode == 0, told.stderr[-2000:]
    return json.loads(told.stdout.splitlines()[-1])


@pytest.mark.parametrize("engine", [by_duckdb, by_pandas, by_polars, by_deltalake])
def test_every_engine_gives_our_rows(index, engine, capsys):
    rows = ours(index, capsys)
    assert len(rows) == TOP
    assert [list(row) for row in engine(index)] == rows


@pytest.mark.slow
def test_spark_gives_our_rows(index, capsys):
    """Without Delta's own jars Spark reads the documented glob."""
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, which is not installed")
    if "SPARK_PYTHON" not in os.environ and importlib.util.find_spec("pyspark") is None:
        pytest.skip("pyspark is not installed here; SPARK_PYTHON may name a Python that has it")
    assert by_spark(index) == ours(index, capsys)
