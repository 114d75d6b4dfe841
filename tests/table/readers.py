"""Reads a table of an index with every engine that people use, without any help of ours."""

from datetime import datetime
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
from deltalake import DeltaTable

from indexer import storage

Rows = list[dict[str, Any]]

ENGINES = ("deltalake", "duckdb", "polars delta", "polars glob", "pandas")


def read_all(index_uri: str, table: str) -> dict[str, Rows]:
    """The rows of a table as each engine sees them, as plain Python values in one order."""
    root = storage.join(index_uri, table)
    options = storage.delta_storage_options(index_uri)
    glob = storage.join(root, "model=*", "**", "*.parquet")
    access = {name: value for name, value in options.items() if name.startswith("AWS_")} or None
    found: dict[str, Rows] = {
        "deltalake": DeltaTable(root, storage_options=options).to_pyarrow_table().to_pylist(),
        "duckdb": _duckdb(glob),
        "polars delta": pl.scan_delta(root, storage_options=access).collect().to_dicts(),
        "polars glob": pl.read_parquet(
            glob, hive_partitioning=True, storage_options=access
        ).to_dicts(),
        "pandas": _pandas(root),
    }
    assert tuple(found) == ENGINES
    return {engine: sorted(map(_plain, rows), key=repr) for engine, rows in found.items()}


def _duckdb(glob: str) -> Rows:
    with duckdb.connect() as connection:
        if storage.scheme_of(glob) == "s3":
            connection.register_filesystem(storage.filesystem(glob)[0])
        relation = connection.sql(
            "SELECT * FROM read_parquet($1, hive_partitioning = true)", params=[glob]
        )
        rows: Rows = relation.to_arrow_table().to_pylist()
        return rows


def _pandas(root: str) -> Rows:
    fs, path = storage.filesystem(root)
    frame = pd.read_parquet(path, filesystem=fs, dtype_backend="pyarrow")
    rows: Rows = frame.to_dict("records")
    return rows


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _value(row[name]) for name in sorted(row)}


def _value(value: Any) -> Any:
    if isinstance(value, list | np.ndarray):
        return [_value(item) for item in value]
    if value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, datetime):
        return value.timestamp()
    return value
