"""draft"""
import sys, time
from datetime import UTC, datetime
from pathlib import Path
import pyarrow as pa
import torch
from indexer.config import IndexConfig
from indexer.model.classify import Classifier
from indexer.runtime.decoding import decode_videos
from indexer.runtime.scoring import score_units
from indexer.runtime.todo import plan_job
from indexer.runtime.writing import write_units
from indexer.table import catalog
from indexer.table.commit import Committer
from indexer.table.rows import RowContext
from indexer.video.sandbox import Sandbox

VIDEOS_A_COMMIT = 25

def index_videos(videos: Path, index: Path, *, hop_seconds: float, model: str) -> int:
    """Decodes, scores and writes as a run does, but in this process and without Ray."""
    config = IndexConfig.load(
        overrides={
            "inputs": (str(videos),),
            "index": str(index),
            "model.id": model,
            "sampling.hop_seconds": hop_seconds,
            "shard": sys.argv[4],
        }
    )
    plan = plan_job(config)
    catalog.create_index(plan.paths)
    catalog.register_model(plan.paths, plan.tag, plan.fingerprint, plan.checkpoint.labels)
    committer = Committer(plan.paths, plan.tag, plan.run_id)
    context = RowContext(
        tag=plan.tag,
        run_id=plan.run_id,
        labels=plan.checkpoint.labels,
        top_k=config.model.top_k,
        min_score=config.model.min_score,
        keep_logits=config.output.logits,
        stored_mantissa_bits=config.precision.stored_mantissa_bits,
        indexed_at=datetime.now(UTC),
    )
    classifier = Classifier(plan.checkpoint, batch_size=16)
    with Sandbox(plan.decode_plan) as sandbox:
        for start in range(0, plan.todo.num_rows, VIDEOS_A_COMMIT):
            todo = plan.todo.slice(start, VIDEOS_A_COMMIT)
            decoded = pa.concat_tables(decode_videos(todo, plan.decode_plan, sandbox))
            scored = score_units(decoded, classifier, config.sampling.fusion)
            receipt = write_units(scored, paths=plan.paths, context=context, task=f"{start}")
            committer.commit(receipt.files)
            print(start, time.process_time(), file=sys.stderr)
    return plan.todo.num_rows

if __name__ == "__main__":
    torch.set_num_threads(1)
    t=time.process_time()
    index_videos(Path(sys.argv[1]), Path(sys.argv[2]), hop_seconds=float(sys.argv[3]), model="demo")
    print(time.process_time()-t)
