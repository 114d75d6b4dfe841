"""A moment of a file is embedded as a run would have stored it; no Ray is started."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow.compute as pc
import pytest

from indexer.config import IndexConfig
from indexer.errors import ModelError, QueryError
from indexer.model.classify import Classifier
from indexer.runtime import moment as moment_module
from indexer.runtime.decoding import decode_videos
from indexer.runtime.moment import embed_moment
from indexer.runtime.scoring import score_units
from indexer.runtime.todo import plan_job
from indexer.runtime.writing import write_units
from indexer.table import catalog
from indexer.table.commit import Committer
from indexer.table.query import LabelIndex
from indexer.table.rows import RowContext, round_mantissa
from indexer.video.motion import encode_video, iter_scene, sample_scene
from indexer.video.sandbox import Sandbox
from tests.table.make import NOW
from tests.test_cli import call


def write_video(path, label, seconds, seed):
    scene = sample_scene(np.random.default_rng(seed), label, seconds)
    encode_video(path, iter_scene(scene, seconds, 30, 64, 64), 30)


def index_videos(config):
    """What a run does, in this process."""
    plan = plan_job(config)
    catalog.create_index(plan.paths)
    catalog.register_model(plan.paths, plan.tag, plan.fingerprint, plan.checkpoint.labels)
    report = {"model": plan.tag, "started_at": "1", "config": config.model_dump(mode="json")}
    catalog.write_run_report(plan.paths, plan.run_id, report)
    context = RowContext(
        plan.tag, plan.run_id, plan.checkpoint.labels, 5, 0.0,
        keep_logits=False, stored_mantissa_bits=10, indexed_at=NOW,
    )  # fmt: skip
    classifier = Classifier(plan.checkpoint, dtype=config.precision.model, batch_size=1)
    with Sandbox(plan.decode_plan) as sandbox:
        for number, decoded in enumerate(decode_videos(plan.todo, plan.decode_plan, sandbox)):
            scored = score_units(decoded, classifier, config.sampling.fusion)
            receipt = write_units(scored, paths=plan.paths, context=context, task=f"t{number}")
            Committer(plan.paths, plan.tag, plan.run_id).commit(receipt.files)
    return LabelIndex.open(plan.paths.root_uri)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("moment")


@pytest.fixture(scope="module")
def index(folder):
    videos = folder / "videos"
    videos.mkdir()
    write_video(videos / "long.mp4", "moving left", 24.0, 1)
    write_video(videos / "short.mp4", "growing", 4.0, 2)
    config = IndexConfig.load(
        overrides={
            "inputs": [str(videos)], "index": str(folder / "index"), "model.id": "demo",
            "sampling.segment_clips": 2,
        }
    )  # fmt: skip
    return index_videos(config)


def test_a_moment_of_an_indexed_video_has_the_stored_embedding(index, folder):
    clips = index.video("long.mp4")
    assert clips.num_rows > 4
    stored = dict(
        zip(*(index.rows("embeddings").to_table()[n].to_pylist() for n in ("clip_id", "embedding")),
            strict=True)
    )  # fmt: skip
    copy = folder / "copy.mp4"
    shutil.copy(folder / "videos" / "long.mp4", copy)
    for row in (clips.num_rows - 1, clips.num_rows // 2):
        clip = clips.slice(row, 1).to_pylist()[0]
        seconds = (clip["start_seconds"] + clip["end_seconds"]) / 2
        embedding_D = embed_moment(index.uri, index.tag, str(copy), seconds)
        assert round_mantissa(embedding_D, 10) == pytest.approx(stored[clip["clip_id"]], abs=2e-3)
        assert not np.array_equal(embedding_D, stored[clip["clip_id"]])  # rounded when stored
        assert index.similar_to(embedding_D, top=1)["clip_id"].to_pylist() == [clip["clip_id"]]


def test_only_the_unit_of_the_moment_is_decoded(index, folder, monkeypatch):
    asked = []
    plain = Sandbox.decode
    monkeypatch.setattr(
        Sandbox,
        "decode",
        lambda self, video, **options: (
            asked.append(options["skip_units"]) or plain(self, video, **options)
        ),
    )
    last = pc.max(index.video("long.mp4")["end_seconds"]).as_py() - 0.1
    embed_moment(index.uri, index.tag, str(folder / "videos" / "long.mp4"), last)
    assert len(asked[0]) >= 1
    assert 0 in asked[0]


@pytest.mark.parametrize(
    ("name", "seconds", "says"),
    [
        ("videos/long.mp4", 99.0, "no clip of .* shows 99 s"),
        ("videos/long.mp4", -1.0, "no clip of .* shows -1 s"),
        ("videos", 1.0, "several videos"),
        ("noise.mp4", 1.0, "cannot be decoded: not_a_video"),
    ],
)
def test_what_cannot_be_embedded_is_refused(index, folder, name, seconds, says):
    (folder / "noise.mp4").write_bytes(bytes(range(256)) * 64)
    with pytest.raises(QueryError, match=says):
        embed_moment(index.uri, index.tag, str(folder / name), seconds)


def test_other_weights_than_those_of_the_index_are_refused(index, folder, monkeypatch):
    plain = moment_module.resolve
    monkeypatch.setattr(
        moment_module,
        "resolve",
        lambda *args, **options: dataclasses.replace(
            plain(*args, **options), weights_sha256="0" * 64
        ),
    )
    with pytest.raises(ModelError, match="it differs in weights_sha256"):
        embed_moment(index.uri, index.tag, str(folder / "videos" / "short.mp4"), 1.0)


def test_an_index_that_does_not_name_its_model_is_refused(index, folder):
    copy = folder / "nameless"
    shutil.copytree(index.uri, copy)
    file = copy / "models" / f"{index.tag}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": {}}))
    with pytest.raises(QueryError, match="does not say which model"):
        embed_moment(str(copy), index.tag, str(folder / "videos" / "short.mp4"), 1.0)


def test_the_command_takes_a_file_that_is_not_in_the_index(index, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "new.mp4").write_bytes((folder / "videos" / "short.mp4").read_bytes())
    code, out, err = call(
        capsys, "similar", index.uri, "new.mp4@1.5", "--top", "1", "--format", "json"
    )
    assert code == 0, err
    (found,) = json.loads(out)
    assert found["uri"].endswith("short.mp4")
    assert found["similarity"] == pytest.approx(1, abs=1e-5)
    code, _, err = call(capsys, "similar", index.uri, "missing.mp4@1.5")
    assert code == 2
    assert "no videos" in err
