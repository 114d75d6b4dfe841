"""Relabelling of a large synthetic index: time, memory, and scores against numpy.

    PYTHONPATH=. python benchmarks/relabel.py --clips 1000000 --folder /tmp/relabel

Makes the index of `benchmarks/compact.py` unless the folder has one, labels it with a random head
of 100 labels, does it again (which should do nothing), and compares the best labels of some
thousand clips with numpy's.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from benchmarks._index import TAG, make_index
from indexer.table.delta import open_table
from indexer.table.head import Head
from indexer.table.paths import IndexPaths
from indexer.table.read import model_rows
from indexer.table.relabel import relabel
from indexer.table.schema import CLIPS, EMBEDDINGS, TableSpec

LABELS = 100
WIDTH = 768
COMPARED = 4096


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    paths = IndexPaths(str(arguments.folder / "index"))
    if not (arguments.folder / "index").exists():
        make_index(paths, arguments.clips, width=WIDTH, keep_logits=True)
    found: dict[str, object] = {"peak_mb_before": _peak_mb()}
    rng = np.random.default_rng(0)
    vectors = _first(paths, TAG, EMBEDDINGS, ds.scalar(True))["embedding"]
    width = len(vectors[0].as_py())
    names = tuple(f"label {number}" for number in range(LABELS))
    weight_KD = (rng.normal(size=(LABELS, width)) / np.sqrt(width)).astype(np.float32)
    head = Head(weight_KD, np.zeros(LABELS, np.float32), names)
    for name in ("first", "again"):
        start, used = time.perf_counter(), time.process_time()
        made = relabel(paths, head, source=TAG, tag="relabelled")
        found |= {
            f"{name}_seconds": round(time.perf_counter() - start, 1),
            f"{name}_cpu_seconds": round(time.process_time() - used, 1),
            f"{name}_clips": made.clips,
            f"{name}_peak_mb": _peak_mb(),
        }
    found["wrong_best_labels"] = _wrong(paths, "relabelled", head)
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if found["wrong_best_labels"] else 0


def _wrong(paths: IndexPaths, tag: str, head: Head) -> int:
    """Clips whose best label is not that of the highest logit, and those that are missing."""
    vectors = _first(paths, tag, EMBEDDINGS, ds.scalar(True))
    ids = vectors["clip_id"].to_pylist()
    clips = _first(paths, tag, CLIPS, ds.field("clip_id").isin(ids))
    names = clips["top_labels"].to_pylist()
    best = {
        clip_id: name[0] for clip_id, name in zip(clips["clip_id"].to_pylist(), names, strict=True)
    }
    vectors_ND = np.array(vectors["embedding"].to_pylist(), np.float32)
    right = [head.labels[k] for k in (vectors_ND @ head.weight_KD.T).argmax(axis=1)]
    return sum(best.get(clip_id) != label for clip_id, label in zip(ids, right, strict=True))


def _first(paths: IndexPaths, tag: str, spec: TableSpec, wanted: ds.Expression) -> pa.Table:
    """Some of a model's rows."""
    table = open_table(paths, spec)
    if table is None:
        sys.exit(f"{paths.root_uri} has no table {spec.name}")
    return model_rows(table, tag).head(COMPARED, filter=wanted)


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


if __name__ == "__main__":
    sys.exit(main())
