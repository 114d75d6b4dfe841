"""A new head over stored embeddings: the rows of a run that had scored with it."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable
from safetensors.numpy import save_file

from indexer.errors import CommitConflict, ConfigError, LeaseHeld, QueryError, StorageError
from indexer.table import catalog, lease, relabel_diff
from indexer.table import relabel as relabel_module
from indexer.table.compact import compact
from indexer.table.delete import delete_videos
from indexer.table.deleted import mark_deleted
from indexer.table.head import Head, read_head
from indexer.table.maintenance import maintaining
from indexer.table.query import LabelIndex
from indexer.table.relabel import relabel
from indexer.table.rows import round_mantissa, softmax
from indexer.table.schema import TABLES
from indexer.table.shard import Shard
from indexer.table.verify import verify
from tests.table.make import FINGERPRINT, TAG, VOCABULARY, Run, new_index, ref, unit

HOSTILE = (
    "'; DROP TABLE labels; --",
    "=cmd|' /C calc'!A0",
    "<script>alert(1)</script>",
    "a\n\tb\x00c",
    "\u65e5\u672c \N{GUITAR} \N{RIGHT-TO-LEFT OVERRIDE}",
    "__HIVE_DEFAULT_PARTITION__",
    "../../etc/passwd",
    "x" * 5000,
)


def head(labels=("jumping", "running", "standing"), seed=0, width=8):
    rng = np.random.default_rng(seed)
    weight_KD = rng.normal(size=(len(labels), width)).astype(np.float32)
    return Head(weight_KD, rng.normal(size=len(labels)).astype(np.float32), labels)


@pytest.fixture
def run(tmp_path):
    run = Run(new_index(str(tmp_path / "index")))
    run.add(unit("a", range(5)), unit("b", range(2)))
    run.add(
        unit("c", range(2), units=2),
        unit("c", range(2, 5), units=2, unit_index=1),
        unit("bad", failure="corrupt"),
    )
    return run


def rows(paths, table, tag):
    found = DeltaTable(paths.table(table)).to_pyarrow_table(filters=[("model", "=", tag)])
    return found.drop_columns(["model"])


def files_of(paths):
    return {name: set(DeltaTable(paths.table(name)).file_uris()) for name in TABLES}


def contents(paths, tag):
    return {name: sorted(map(repr, rows(paths, name, tag).to_pylist())) for name in TABLES}


def assert_follows(paths, made, new):
    """The rows under a head are those of its source, but for what the head says."""
    theirs = {name: rows(paths, name, made.source) for name in TABLES}
    ours = {name: rows(paths, name, made.model) for name in TABLES}
    labels_apart = ["top_labels", "top_scores"]
    for name, apart in (("videos", []), ("clips", labels_apart), ("embeddings", ["logits"])):
        same = [
            sorted(map(repr, table[name].drop_columns(apart).to_pylist()))
            for table in (theirs, ours)
        ]
        assert same[0] == same[1], name
    vectors = {
        row["clip_id"]: np.array(row["embedding"], np.float32)
        for row in ours["embeddings"].to_pylist()
    }
    expected = []
    for clip in ours["clips"].to_pylist():
        logits_K = vectors[clip["clip_id"]].astype(np.float64) @ new.weight_KD.T + new.bias_K
        scores_K = softmax(logits_K.astype(np.float32)[None])[0]
        best = np.argsort(-scores_K, kind="stable")[:5]
        assert clip["top_labels"] == [new.labels[k] for k in best]
        assert np.allclose(clip["top_scores"], scores_K[best], rtol=1e-6, atol=0)
        expected += [
            (new.labels[k], k, rank, clip["clip_id"], clip["uri"], clip["start_seconds"])
            for rank, k in enumerate(best, 1)
        ]
    keys = ("label", "label_id", "rank", "clip_id", "uri", "start_seconds")
    postings = [tuple(row[k] for k in keys) for row in ours["labels"].to_pylist()]
    assert sorted(postings) == sorted(expected)


def test_postings_are_those_that_numpy_finds(run):
    before = contents(run.paths, TAG)
    new = head()
    made = relabel(run.paths, new)
    assert (made.units, made.clips, made.failed_units, made.left_units) == (5, 12, 1, 0)
    assert_follows(run.paths, made, new)
    assert contents(run.paths, TAG) == before
    assert not verify(run.paths).broken


def test_done_again_it_changes_nothing(run):
    made = relabel(run.paths, head())
    before, files = contents(run.paths, made.model), files_of(run.paths)
    again = relabel(run.paths, head())
    assert (again.model, again.units, again.clips, again.removed_videos) == (made.model, 0, 0, 0)
    assert (contents(run.paths, made.model), files_of(run.paths)) == (before, files)


def test_it_follows_its_source(run):
    """New units, another try, another content, and a video that is gone."""
    new = head()
    made = relabel(run.paths, new)
    run.add(unit("d", range(3)), unit("bad", range(2), attempt=2))
    run.committer.remove_videos([ref("a").video_id, ref("b").video_id], ["a", "b"])
    run.add(unit("a", range(7, 9), content_key="11-new"))
    again = relabel(run.paths, new)
    assert (again.removed_videos, again.units, again.clips) == (2, 3, 7)
    assert_follows(run.paths, made, new)
    assert rows(run.paths, "clips", made.model).num_rows == 12


def test_the_same_content_indexed_again_is_labelled_again(run):
    new = head()
    made = relabel(run.paths, new)
    run.committer.remove_videos([ref("a").video_id], ["a"])
    later = Run(run.paths, run_id="run-2")
    later.add(unit("a", range(5), embeddings_ND=np.ones((5, 8), np.float32)))
    assert relabel(run.paths, new).removed_videos == 1
    assert_follows(run.paths, made, new)


def test_what_is_left_of_a_video_is_labelled_again(run):
    """As after a repair that had to drop a damaged file of outcomes."""
    new = head()
    made = relabel(run.paths, new)
    for name, where in (("videos", "unit_index = 1"), ("clips", "unit_index = 1")):
        DeltaTable(run.paths.table(name)).delete(f"model = '{TAG}' AND uri = 'c' AND {where}")
    lost = f"video_id = '{ref('c').video_id}' AND clip_index >= 2"
    DeltaTable(run.paths.table("embeddings")).delete(f"model = '{TAG}' AND {lost}")
    again = relabel(run.paths, new)
    assert (again.removed_videos, again.units, again.clips) == (1, 1, 2)
    assert_follows(run.paths, made, new)


@pytest.mark.parametrize("size", [1, 4])
def test_small_groups_hold_the_same_rows(run, monkeypatch, size):
    whole = relabel(run.paths, head(), tag="whole")
    monkeypatch.setattr(relabel_module, "GROUP_CLIPS", size)
    monkeypatch.setattr(relabel_diff, "ROWS", size)
    steps = []
    parts = relabel(run.paths, head(), tag="parts", progress=lambda done, of: steps.append(done))
    assert len(steps) > 2
    assert steps[-1] == 12
    assert contents(run.paths, parts.model) == contents(run.paths, whole.model)


def test_logits_stay_away_where_they_were_not_kept(tmp_path):
    run = Run(new_index(str(tmp_path / "index")))
    run.add(unit("a"), keep_logits=False)
    run.add(unit("b"))
    made = relabel(run.paths, head())
    kept = rows(run.paths, "embeddings", made.model).to_pylist()
    owners = {ref(name).video_id: name for name in "ab"}
    assert {(owners[row["video_id"]], row["logits"] is None) for row in kept} == {
        ("a", True),
        ("b", False),
    }


def test_settings_of_the_source_hold(tmp_path):
    paths = new_index(str(tmp_path / "index"), "other")
    settings = {"top_k": 2, "min_score": 0.3, "precision": {"stored_mantissa_bits": 4}}
    catalog.register_model(paths, TAG, FINGERPRINT | settings, VOCABULARY)
    Run(paths).add(unit("a", range(40)))
    made = relabel(paths, head())
    clips = rows(paths, "clips", made.model).to_pylist()
    assert {len(clip["top_labels"]) for clip in clips} == {1, 2}
    assert all(score >= 0.3 for clip in clips for score in clip["top_scores"][1:])
    logits = np.array(rows(paths, "embeddings", made.model)["logits"].to_pylist(), np.float32)
    assert np.array_equal(logits, round_mantissa(logits, 4))


def test_units_that_are_not_whole_in_the_source_wait(run):
    """As while a job replaces a video: its clips are gone, its outcome is not yet."""
    table = DeltaTable(run.paths.table("embeddings"))
    table.delete(f"video_id = '{ref('c').video_id}' AND clip_index >= 2")
    made = relabel(run.paths, head())
    assert (made.left_units, made.units, made.clips) == (1, 4, 9)
    outcomes = rows(run.paths, "videos", made.model).to_pylist()
    assert sorted((row["uri"], row["unit_index"]) for row in outcomes) == [
        ("a", 0), ("b", 0), ("bad", 0), ("c", 0),
    ]  # fmt: skip
    assert relabel(run.paths, head()).left_units == 1


def test_a_compaction_meanwhile_is_no_harm(run, monkeypatch):
    taken = []
    monkeypatch.setattr(relabel_module, "GROUP_CLIPS", 2)
    follow = relabel_module._Relabelling._follow

    def compacted_first(self, files):
        if not taken:
            taken.append(files)
            compact(run.paths, TAG)
        follow(self, files)

    monkeypatch.setattr(relabel_module._Relabelling, "_follow", compacted_first)
    made = relabel(run.paths, head())
    assert_follows(run.paths, made, head())
    assert made.clips == 12


def test_damage_is_named_and_not_copied(run):
    damaged = Path(DeltaTable(run.paths.table("embeddings")).file_uris()[0])
    content = bytearray(damaged.read_bytes())
    content[len(content) // 3] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(StorageError, match="is damaged: its sha256"):
        relabel(run.paths, head(), tag="new")
    assert rows(run.paths, "videos", "new").num_rows == 0


def test_two_heads_at_once(run):
    heads = [head(seed=1), head(("a", "b"), seed=2)]
    failed = []

    def work(number):
        try:
            relabel(run.paths, heads[number], tag=f"head-{number}")
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for number, new in enumerate(heads):
        made = relabel(run.paths, new, tag=f"head-{number}")
        assert made.units == 0
        assert_follows(run.paths, made, new)


def test_of_two_that_make_one_tag_one_is_refused(run):
    tag = relabel(run.paths, head()).model
    with (
        lease.held(run.paths, tag, Shard().writer, "other", beat_seconds=0.2),
        pytest.raises(LeaseHeld, match="run other on"),
    ):
        relabel(run.paths, head())


def test_hostile_names_are_names(run, tmp_path):
    new = head(HOSTILE)
    save_file({"weight": new.weight_KD, "bias": new.bias_K}, tmp_path / "h.safetensors")
    (tmp_path / "l.json").write_text(json.dumps(HOSTILE))
    made = relabel(run.paths, read_head(tmp_path / "h.safetensors", tmp_path / "l.json"))
    assert_follows(run.paths, made, new)
    opened = LabelIndex.open(run.paths.root_uri, made.model)
    assert set(opened.labels()["label"].to_pylist()) <= set(HOSTILE)
    for name in set(rows(run.paths, "labels", made.model)["label"].to_pylist()):
        assert opened.search(name, top=None).num_rows > 0


def test_the_index_is_looked_after_as_ever(run):
    made = relabel(run.paths, head())
    compact(run.paths, made.model)
    assert_follows(run.paths, made, head())
    gone = delete_videos(run.paths, [ref("a").video_id])
    assert set(gone.models) == {TAG, made.model}
    assert relabel(run.paths, head()).units == 0
    assert_follows(run.paths, made, head())
    delete_videos(run.paths, [ref("b").video_id], made.model)
    again = relabel(run.paths, head())
    assert (again.units, again.removed_videos) == (0, 0)
    assert "b" not in rows(run.paths, "videos", made.model)["uri"].to_pylist()
    assert not verify(run.paths).broken


def test_videos_whose_deletion_was_cut_short_are_not_copied(run):
    mark_deleted(run.paths, TAG, [ref("a").video_id])
    made = relabel(run.paths, head())
    assert "a" not in rows(run.paths, "videos", made.model)["uri"].to_pylist()
    mark_deleted(run.paths, None, [ref("b").video_id])
    assert relabel(run.paths, head()).removed_videos == 1
    assert rows(run.paths, "clips", made.model).num_rows == 5


def test_it_waits_for_a_deletion_that_does_not_know_its_tag(run):
    with (
        maintaining(run.paths, TAG, "delete"),
        pytest.raises(LeaseHeld, match="is deleting videos"),
    ):
        relabel(run.paths, head())
    assert relabel(run.paths, head()).units == 5


def test_a_deletion_looks_for_models_that_came_meanwhile(run, monkeypatch):
    begin = relabel_module.recovery.begin

    def slow(*args):
        catalog.register_model(run.paths, "late", FINGERPRINT, VOCABULARY)
        return begin(*args)

    monkeypatch.setattr("indexer.table.delete.begin", slow)
    with pytest.raises(LeaseHeld, match="got a new model"):
        delete_videos(run.paths, [ref("a").video_id])


def test_a_video_that_is_replaced_while_files_are_listed_is_looked_at_again(run, monkeypatch):
    monkeypatch.setattr(relabel_diff, "_LOOK_SECONDS", 0)
    live, removed = relabel_diff._live, []

    def replaced(paths, spec, tag):
        files = live(paths, spec, tag)
        if spec is TABLES["videos"] and len(removed) < most:
            name = "abc"[len(removed)]
            removed.append(name)
            run.committer.remove_videos([ref(name).video_id], [name])
        return files

    monkeypatch.setattr(relabel_diff, "_live", replaced)
    most = 1
    files = relabel_diff.settled_files(run.paths, TAG)
    assert files == {name: live(run.paths, TABLES[name], TAG) for name in files}
    most = 3
    monkeypatch.setattr(relabel_diff, "_LOOKS", 1)
    with pytest.raises(CommitConflict, match="keeps replacing"):
        relabel_diff.settled_files(run.paths, TAG)


def test_heads_that_do_not_fit_are_refused(run):
    with pytest.raises(ConfigError, match=r"takes embeddings of 9 values, those of .* have 8"):
        relabel(run.paths, head(width=9))
    with pytest.raises(ConfigError, match="should be letters"):
        relabel(run.paths, head(), tag="../x")
    with pytest.raises(QueryError, match="has no model 'nope'"):
        relabel(run.paths, head(), source="nope")
    huge = Head(np.full((2, 8), 3e38, np.float32), np.zeros(2, np.float32), ("a", "b"))
    with pytest.raises(ConfigError, match="beyond float32"):
        relabel(run.paths, huge, tag="huge")
    assert rows(run.paths, "videos", "huge").num_rows == 0


def test_a_tag_keeps_its_head_and_its_kind(run):
    made = relabel(run.paths, head())
    with pytest.raises(ConfigError, match=r"(?s)head_sha256.*--tag NAME"):
        relabel(run.paths, head(seed=9), tag=made.model)
    with pytest.raises(ConfigError, match=r"come from decoded videos.*--tag NAME"):
        relabel(run.paths, head(), tag=TAG)
    with pytest.raises(ConfigError, match=r"made by `indexer relabel`.*output.tag=NAME"):
        catalog.register_model(run.paths, made.model, FINGERPRINT, VOCABULARY)
    with pytest.raises(ConfigError, match=f"of another: --model {TAG}"):
        relabel(run.paths, head(seed=9), source=made.model)
    assert relabel(run.paths, head(seed=9)).source == TAG


def test_what_the_fingerprint_depends_on(run):
    tags = {
        relabel(run.paths, head()).model,
        relabel(run.paths, head(seed=1)).model,
        relabel(run.paths, head(("jumping", "running", "sitting"))).model,
    }
    assert len(tags) == 3
    assert all(tag.startswith("demo-head-") for tag in tags)
    assert not [f for f in verify(run.paths).findings if f.file.startswith("demo-head-")]


def test_an_index_of_failures_has_their_outcomes(tmp_path):
    run = Run(new_index(str(tmp_path / "index")))
    run.add(unit("bad", failure="corrupt"))
    made = relabel(run.paths, head())
    assert (made.units, made.failed_units, made.clips) == (1, 1, 0)
    assert contents(run.paths, made.model) == contents(run.paths, TAG)


def test_an_empty_index_has_nothing_to_relabel(tmp_path):
    paths = new_index(str(tmp_path / "index"))
    assert relabel(paths, head()).units == 0
    with pytest.raises(QueryError, match="there is no index"):
        relabel(type(paths)(str(tmp_path / "none")), head())


def test_an_index_on_s3(s3_folder):
    run = Run(new_index(f"{s3_folder}/index"))
    run.add(unit("a", range(5)), unit("bad", failure="corrupt"))
    made = relabel(run.paths, head())
    assert (made.units, made.clips, made.failed_units) == (2, 5, 1)
    run.committer.remove_videos([ref("a").video_id], ["a"])
    run.add(unit("b"))
    again = relabel(run.paths, head())
    assert (again.units, again.clips, again.removed_videos) == (1, 2, 1)
    assert not verify(run.paths).broken
    opened = LabelIndex.open(run.paths.root_uri, made.model)
    assert opened.search("jumping", top=None).num_rows == 2
