"""The bundled model's own head, from its own checkpoint, over the embeddings it gave."""

import json
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable

import indexer.model
from indexer.model.classify import Classifier
from indexer.model.weights import resolve
from indexer.table import catalog
from indexer.table.head import read_head
from indexer.table.paths import IndexPaths
from indexer.table.relabel import relabel
from indexer.table.rows import RowContext, unit_tables
from indexer.table.write import write_tables
from tests.table.make import NOW, Run, unit

TAG = "demo-own"
BITS = 10
ROUNDING = 2.0 ** -(BITS + 1)
"""By which rounding moves a stored number, relative to it."""


@pytest.fixture(scope="module")
def relabelled(tmp_path_factory):
    """The source's and the new rows of each clip, and the head."""
    checkpoint = resolve("demo", schemes=("file",))
    size = checkpoint.image_size
    shape = (24, checkpoint.num_frames, size, size, 3)
    frames_NTHWC = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
    frames_NTHWC[::2] = np.sort(frames_NTHWC[::2], axis=2)  # half of them are no mere noise
    scores = Classifier(checkpoint, batch_size=8).classify(frames_NTHWC)
    paths = IndexPaths(str(tmp_path_factory.mktemp("own") / "index"))
    catalog.create_index(paths)
    settings = {"precision": {"stored_mantissa_bits": BITS}, "top_k": 10, "min_score": 0.0}
    catalog.register_model(paths, TAG, settings, checkpoint.labels)
    run = Run(paths, TAG)
    context = RowContext(TAG, run.run_id, checkpoint.labels, 10, 0.0, True, BITS, NOW)
    outcome = unit(clips=range(24), logits_NK=scores.logits_NK, embeddings_ND=scores.embeddings_ND)
    rows = unit_tables([outcome], context)
    run.committer.commit(write_tables(rows, paths, TAG, run.run_id, "t"))
    folder = Path(indexer.model.__file__).parent / "demo"
    names = tmp_path_factory.mktemp("names") / "labels.json"
    names.write_text(json.dumps(json.loads((folder / "config.json").read_text())["id2label"]))
    head = read_head(folder / "model.safetensors", names)
    made = relabel(paths, head)
    return rows_by_clip(paths, TAG), rows_by_clip(paths, made.model), head


def rows_by_clip(paths, tag):
    found = {}
    for name in ("clips", "embeddings"):
        table = DeltaTable(paths.table(name)).to_pyarrow_table(filters=[("model", "=", tag)])
        for row in table.to_pylist():
            found.setdefault(row["clip_id"], {}).update(row)
    return found


def test_logits_are_those_of_the_source_within_the_rounding_of_what_is_stored(relabelled):
    """|new - old| <= 2^-11 (sum |w e| + |old| + |new|), with the stored e, and float32's noise."""
    source, new, head = relabelled
    assert source.keys() == new.keys()
    worst = 0.0
    for clip_id, old in source.items():
        e_D = np.array(old["embedding"], np.float64)
        assert new[clip_id]["embedding"] == old["embedding"]
        old_K, new_K = np.array(old["logits"]), np.array(new[clip_id]["logits"])
        bound_K = np.abs(head.weight_KD.astype(np.float64)) @ np.abs(e_D) + np.abs(old_K)
        bound_K = ROUNDING * 1.01 * (bound_K + np.abs(new_K)) + 1e-5
        assert (np.abs(new_K - old_K) <= bound_K).all()
        worst = max(worst, float(np.abs(new_K - old_K).max()))
    assert 0 < worst < 0.02


def test_labels_are_those_of_the_source(relabelled):
    source, new, _ = relabelled
    best = set()
    for clip_id, old in source.items():
        was = dict(zip(old["top_labels"], old["top_scores"], strict=True))
        now = dict(zip(new[clip_id]["top_labels"], new[clip_id]["top_scores"], strict=True))
        assert was.keys() == now.keys()
        assert max(abs(was[name] - now[name]) for name in was) < 0.005
        margin = old["top_scores"][0] - old["top_scores"][1]
        assert margin < 0.01 or old["top_labels"][0] == new[clip_id]["top_labels"][0]
        best.add(old["top_labels"][0])
    assert len(best) > 1  # the clips do differ
