"""Short clips planted in longer videos: how many `duplicates` finds, and what else it finds.

    python -m benchmarks.duplicates --folder /tmp/planted --check

Makes videos of several shots each, cuts a clip out of some of them at any frame, re-encodes it
with another codec and quality, and rescales it. Decodes and scores all of them with the bundled
model as a run does, but in this process, and asks the index. What was made or indexed before is not
made again. The bar is all of 50 clips among 500 videos, and at most 2 pairs that nobody planted.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import torch

from benchmarks._planted import Planted, make_videos
from indexer.config import IndexConfig
from indexer.model.classify import Classifier
from indexer.runtime.decoding import decode_videos
from indexer.runtime.pipeline import row_context
from indexer.runtime.scoring import score_units
from indexer.runtime.todo import plan_job
from indexer.runtime.writing import write_units
from indexer.table import catalog
from indexer.table.commit import Committer
from indexer.table.comparison import MIN_HITS, MIN_SIMILARITY
from indexer.table.query import LabelIndex
from indexer.video.sandbox import Sandbox

VIDEOS_A_COMMIT: Final = 25
BATCH_CLIPS: Final = 16
MOST_FALSE_PAIRS: Final = 2


def main() -> int:
    """Makes, indexes, asks and compares."""
    options = _options()
    torch.set_num_threads(1)
    videos = options.folder / f"videos-{options.seed}"
    index = options.folder / f"index-{options.seed}-{options.hop}"
    truth = make_videos(
        videos,
        videos=options.videos,
        planted=options.planted,
        seed=options.seed,
        jobs=options.jobs,
    )
    begun = time.process_time()
    index_videos(videos, index, hop_seconds=options.hop, model=options.model)
    indexed = time.process_time()
    found = LabelIndex.open(str(index)).duplicates(
        min_similarity=options.min_similarity, min_hits=options.min_hits
    )
    facts = compare(found.to_pylist(), truth, tolerance_seconds=1.1 * options.hop) | {
        "index_cpu_seconds": round(indexed - begun, 1),
        "duplicates_cpu_seconds": round(time.process_time() - indexed, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    text = json.dumps(facts, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text)
    return int(options.check and bool(facts["missed"] or len(facts["false"]) > MOST_FALSE_PAIRS))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the videos and the index")
    parser.add_argument("--videos", type=int, default=500)
    parser.add_argument("--planted", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hop", type=float, default=0.5, help="seconds between windows")
    parser.add_argument("--model", default="demo", help="what `indexer run --model` takes")
    parser.add_argument("--min-similarity", type=float, default=MIN_SIMILARITY)
    parser.add_argument("--min-hits", type=int, default=MIN_HITS)
    parser.add_argument("--jobs", type=int, default=2, help="processes that make videos")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the bar is missed")
    return parser.parse_args()


def index_videos(videos: Path, index: Path, *, hop_seconds: float, model: str) -> None:
    """Decodes, scores and writes as a run does, but in this process and without Ray."""
    config = IndexConfig.load(
        overrides={
            "inputs": (str(videos),),
            "index": str(index),
            "model.id": model,
            "sampling.hop_seconds": hop_seconds,
        }
    )
    plan = plan_job(config)
    catalog.create_index(plan.paths)
    catalog.register_model(plan.paths, plan.tag, plan.fingerprint, plan.checkpoint.labels)
    committer, context = Committer(plan.paths, plan.tag, plan.run_id), row_context(plan)
    classifier = Classifier(plan.checkpoint, batch_size=BATCH_CLIPS)
    with Sandbox(plan.decode_plan) as sandbox:
        for start in range(0, plan.todo.num_rows, VIDEOS_A_COMMIT):
            todo = plan.todo.slice(start, VIDEOS_A_COMMIT)
            decoded = pa.concat_tables(decode_videos(todo, plan.decode_plan, sandbox))
            scored = score_units(decoded, classifier, config.sampling.fusion)
            receipt = write_units(scored, paths=plan.paths, context=context, task=f"t{start}")
            committer.commit(receipt.files)
            print(f"{start + todo.num_rows} of {plan.todo.num_rows} videos", file=sys.stderr)


def compare(
    found: Sequence[dict[str, Any]], truth: Sequence[Planted], *, tolerance_seconds: float
) -> dict[str, Any]:
    """Which clips were found in their video at their time, and which pairs are something else."""
    planted = {(cut.clip, cut.source): cut.start_seconds for cut in truth}
    right: set[str] = set()
    false: list[dict[str, Any]] = []
    for row in found:
        names = Path(row["uri"]).name, Path(row["other_uri"]).name
        offset = row["other_start_seconds"] - row["start_seconds"]
        if names in planted and abs(offset - planted[names]) <= tolerance_seconds:
            right.add(names[0])
        else:
            false.append(row)
    missed = sorted(cut.clip for cut in truth if cut.clip not in right)
    return {"planted": len(truth), "found": len(right), "missed": missed, "false": false}


if __name__ == "__main__":
    sys.exit(main())
