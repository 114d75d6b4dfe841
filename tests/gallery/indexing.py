"""A run in this process: the stages of a job one after the other, without Ray."""

from indexer.config import IndexConfig
from indexer.model.classify import Classifier
from indexer.runtime.decoding import decode_videos
from indexer.runtime.pipeline import row_context
from indexer.runtime.scoring import score_units
from indexer.runtime.todo import JobPlan, plan_job
from indexer.runtime.writing import write_units
from indexer.table import catalog
from indexer.table.commit import Committer
from indexer.table.query import LabelIndex
from indexer.video.sandbox import Sandbox


def index_videos(inputs: str, index: str, **settings: object) -> LabelIndex:
    """Indexes videos with the bundled model."""
    given = {"inputs": (inputs,), "index": index, "model.id": "demo", "model.min_score": 0.05}
    plan: JobPlan = plan_job(IndexConfig.load(overrides=given | settings))
    catalog.create_index(plan.paths)
    catalog.register_model(plan.paths, plan.tag, plan.fingerprint, plan.checkpoint.labels)
    committer = Committer(plan.paths, plan.tag, plan.run_id)
    classifier, context = Classifier(plan.checkpoint, batch_size=4), row_context(plan)
    with Sandbox(plan.decode_plan) as sandbox:
        for number, unit in enumerate(decode_videos(plan.todo, plan.decode_plan, sandbox)):
            scored = score_units(unit, classifier, plan.config.sampling.fusion)
            receipt = write_units(scored, paths=plan.paths, context=context, task=f"t{number}")
            committer.commit(receipt.files)
    return LabelIndex.open(index)
