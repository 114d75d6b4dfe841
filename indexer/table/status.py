"""What an index holds, counted."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from indexer.config import fingerprint_digest
from indexer.table import catalog
from indexer.table.delta import live_files
from indexer.table.paths import IndexPaths, digest_in_name
from indexer.table.runs import run_reports
from indexer.table.schema import EMBEDDINGS
from indexer.table.sidecar import part_sizes, parts_by_digest


def describe(
    paths: IndexPaths,
    tag: str,
    tables: Mapping[str, DeltaTable],
    *,
    videos: pa.Table,
    errors: pa.Table,
) -> dict[str, Any]:
    """Counts of one model's videos, clips, errors and files, and all models and runs.

    Args:
        paths: of the index.
        tag: of the model.
        tables: snapshots, by name.
        videos: the answer of `LabelIndex.videos`.
        errors: the answer of `LabelIndex.errors`.
    """
    indexed = videos.filter(pc.field("status") == "indexed")
    seconds = pc.sum(indexed["duration_seconds"]).as_py() or 0.0
    return {
        "videos": {
            status: pc.sum(pc.equal(videos["status"], status)).as_py() or 0
            for status in ("indexed", "failed", "incomplete")
        },
        "clips": pc.sum(videos["clips"]).as_py() or 0,
        "hours": seconds / 3600,
        "errors": dict(sorted(Counter(errors["error_code"].to_pylist()).items())),
        "tables": {name: _size(table, tag) for name, table in tables.items()},
        "similarity": _covered(paths, tag, tables[EMBEDDINGS.name]),
        "models": [_summary(model) for model in catalog.models(paths)],
        "runs": list(run_reports(paths)),
    }


def _size(table: DeltaTable, tag: str) -> dict[str, int]:
    files = live_files(table, tag)
    return {
        "files": len(files),
        "bytes": sum(file.size_bytes for file in files),
        "rows": sum(file.rows for file in files),
    }


def _covered(paths: IndexPaths, tag: str, embeddings: DeltaTable) -> dict[str, int]:
    """The similarity sidecar, and how many clips it covers."""
    sizes = part_sizes(paths, tag)
    digests = parts_by_digest(sizes)
    files = [f for f in live_files(embeddings, tag) if digest_in_name(f.path) in digests]
    return {
        "files": len(sizes),
        "bytes": sum(sizes.values()),
        "rows": sum(file.rows for file in files),
    }


def _summary(model: catalog.RegisteredModel) -> dict[str, Any]:
    facts = model.fingerprint.get("model", {})
    return {
        "tag": model.tag,
        "created_at": model.created_at,
        "id": facts.get("id"),
        "revision": facts.get("revision"),
        "sampling": model.fingerprint.get("sampling", {}).get("mode"),
        "labels": len(model.labels),
        "fingerprint": fingerprint_digest(model.fingerprint)[:12],
    }
