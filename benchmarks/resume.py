"""Planning a run over an archive of which nearly everything is done.

python benchmarks/resume.py --videos 10000000

Makes an index whose `videos` table holds the outcome of that many videos (one in a hundred failed,
one in a hundred has three units, one in a thousand has changed since), then measures, in a process
of its own, what comparing a manifest of the same videos with it takes. The bar is 60 s and 4 GB for
ten million videos on two cores.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from indexer.config import IndexConfig
from indexer.manifest import MANIFEST_SCHEMA
from indexer.runtime.todo import compare_manifest
from indexer.table import catalog
from indexer.table.commit import Committer
from indexer.table.paths import IndexPaths
from indexer.table.schema import VIDEOS
from indexer.table.write import write_file

TAG: Final = "synthetic"
FILE_ROWS: Final = 250_000
NOW: Final = datetime(2026, 11, 22, tzinfo=UTC)


def main() -> None:
    """Makes the index, plans over it, prints what that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to make it, or where it was made before")
    parser.add_argument("--measure", action="store_true", help="only the second half")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "manifest.parquet").exists():
            make(folder, options.videos)
        command = [sys.executable, __file__, "--measure", "--folder", str(folder)]
        out = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
        print(out.stdout, end="")


def make(folder: Path, videos: int) -> None:
    """Writes the index and the manifest."""
    paths = IndexPaths(str(folder / "index"))
    catalog.create_index(paths)
    committer = Committer(paths, TAG, "made")
    manifest = pq.ParquetWriter(folder / "manifest.parquet", MANIFEST_SCHEMA, compression="zstd")
    for start in range(0, videos, FILE_ROWS):
        listed = _listed(start, min(FILE_ROWS, videos - start))
        file = write_file(_outcomes(listed), VIDEOS, paths, TAG, f"made-{start}")
        committer.commit([file])
        manifest.write_table(_with_changes(listed))
    manifest.close()


def measure(folder: Path) -> dict[str, object]:
    """Compares the manifest with the index, as `plan_job` does."""
    config = IndexConfig(inputs=("unused",), index=str(folder / "index"))
    manifest = pq.read_table(folder / "manifest.parquet")
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started, cpu = time.perf_counter(), time.process_time()
    found = compare_manifest(manifest, IndexPaths(config.index), TAG, config)
    return {
        "videos": manifest.num_rows,
        "done": found.done_videos,
        "todo": found.todo.num_rows,
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "manifest_bytes": before_bytes,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _listed(start: int, rows: int) -> pa.Table:
    digits = np.random.default_rng(start).bytes(16 * rows).hex().encode()
    offsets = pa.py_buffer(np.arange(rows + 1, dtype=np.int32) * 32)
    ids = pa.StringArray.from_buffers(rows, offsets, pa.py_buffer(digits))
    numbers = range(start, start + rows)
    columns = [
        ids,
        [f"s3://archive/camera/{number % 997:03}/video-{number:09}.mp4" for number in numbers],
        [10_000_000 + number for number in numbers],
        [f"{10_000_000 + number}-{number * 2654435761 % 2**128:032x}" for number in numbers],
        ["{}"] * rows,
    ]
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def _with_changes(listed: pa.Table) -> pa.Table:
    keys = listed["content_key"].to_pylist()
    keys[::1000] = [f"{key}-new" for key in keys[::1000]]
    position = listed.schema.get_field_index("content_key")
    return listed.set_column(position, listed.schema.field(position), [keys])


def _outcomes(listed: pa.Table) -> pa.Table:
    rows = listed.num_rows
    failed = [number % 100 == 1 for number in range(rows)]
    columns: dict[str, object] = {name: listed[name] for name in MANIFEST_SCHEMA.names}
    columns |= {
        "status": ["failed" if bad else "indexed" for bad in failed],
        "error_code": ["corrupt" if bad else None for bad in failed],
        "error_message": ["it is" if bad else None for bad in failed],
        "attempt": [1] * rows,
        "unit_index": [0] * rows,
        "units": [3 if number % 100 == 2 else 1 for number in range(rows)],  # noqa: PLR2004
        "clips": [12] * rows,
        "warnings": [[]] * rows,
        "decode_seconds": [1.5] * rows,
        "fetch_seconds": [0.5] * rows,
        "worker": ["host:1"] * rows,
        "run_id": ["made"] * rows,
        "finished_at": [NOW] * rows,
    }
    columns |= {
        name: pa.nulls(rows, VIDEOS.schema.field(name).type)
        for name in ("duration_seconds", "width", "height", "codec", "fps", "rotation")
    }
    table = pa.table({name: columns[name] for name in VIDEOS.data_schema.names}, VIDEOS.data_schema)
    more = [table.filter(pa.compute.equal(table["units"], 3)) for _ in range(2)]
    position = table.schema.get_field_index("unit_index")
    field = table.schema.field(position)
    units = [
        part.set_column(position, field, pa.array([unit] * part.num_rows, pa.int32()))
        for unit, part in enumerate(more, start=1)
    ]
    return pa.concat_tables([table, *units])


if __name__ == "__main__":
    main()
