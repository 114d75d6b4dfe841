"""Runs jobs and reads back what they wrote, for comparisons between runs."""

from indexer.config import IndexConfig
from indexer.runtime.pipeline import run_index
from tests.table.readers import read_all

TABLES = ("clips", "embeddings", "labels", "videos")
VARIES = {"run_id", "indexed_at", "finished_at", "decode_seconds", "fetch_seconds", "worker"}
"""Columns that tell of the run, not of the video."""


def configuration(inputs, index, model, **overrides):
    """A job whose overrides are written as `section__key=value`."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    inputs = (str(inputs),) if not isinstance(inputs, tuple) else inputs
    return IndexConfig.load(
        overrides={
            "inputs": inputs,
            "index": str(index),
            "model.id": str(model),
            "sampling.min_seconds": 0.1,
            "output.commit_seconds": 0.5,
            "precision.model": "float32",  # so that any machine gives nearly the same
            **dotted,
        }
    )


def run(inputs, index, model, observer=None, **overrides):
    return run_index(configuration(inputs, index, model, **overrides), observer)


def lasting_rows(index, engine="deltalake", *, drop=frozenset()):
    """All rows of the four tables without what varies from run to run."""
    return {
        table: sorted(
            (
                {key: row[key] for key in row if key not in VARIES | drop}
                for row in read_all(str(index), table)[engine]
            ),
            key=repr,
        )
        for table in TABLES
    }
