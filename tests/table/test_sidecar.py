"""The similarity sidecar belongs to the data files, and to nothing that is gone."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer import storage
from indexer.errors import StorageError
from indexer.table import catalog
from indexer.table import sidecar as sidecar_module
from indexer.table.codes import CodedQueries, directions, distances, encode
from indexer.table.compact import compact
from indexer.table.delete import delete_videos
from indexer.table.query import LabelIndex
from indexer.table.recovery import recover
from indexer.table.repair import repair
from indexer.table.rows import clip_id
from indexer.table.sidecar import Batch, covered_digest, part_bytes, part_sizes
from indexer.table.sidecar_checks import part_fault
from indexer.table.similar import Choice
from indexer.table.verify import verify
from tests.table.make import FINGERPRINT, TAG, VOCABULARY, Run, new_index, ref, unit

VIDEOS = [f"s3://films/{name}.mp4" for name in "abc"]


@pytest.fixture
def run(tmp_path):
    run = Run(new_index(str(tmp_path / "index")))
    for uri in VIDEOS:
        run.add(unit(uri, range(4)))
    return run


def answers(run, tag=TAG):
    """What is like each clip, by all clips and by the best of each video."""
    index = LabelIndex.open(run.paths.root_uri, tag)
    rows = index.rows("embeddings").to_table().sort_by("clip_id")
    vectors = rows["embedding"].to_pylist()
    found = [
        answer.to_pylist()
        for distinct in (False, True)
        for answer in index._likeness.neighbours.of(vectors, Choice(7, distinct_videos=distinct))
    ]
    return [*found, index.similar(rows["clip_id"][0].as_py()).to_pylist()]


def parts(run, tag=TAG):
    return sorted(part_sizes(run.paths, tag))


def of_sidecar(verification):
    return [finding for finding in verification.findings if finding.table == "_similarity"]


def covered_rows(run):
    return LabelIndex.open(run.paths.root_uri).status()["similarity"]["rows"]


Vectors = st.tuples(
    st.integers(0, 999), st.sampled_from([1, 2, 4, 33]), st.sampled_from([1.0, 1e-44, 1e35])
)


@settings(max_examples=60)
@given(Vectors, st.integers(1, 3))
def test_a_cosine_lies_between_the_bounds_of_its_code(vectors, queries):
    seed, width, scale = vectors
    generator = np.random.default_rng(seed)
    vectors_ND = (generator.normal(size=(40, width)) ** 3 * scale).astype(np.float32)
    vectors_ND[::7] = 0
    vectors_ND[1::7] = np.sign(vectors_ND[1::7]) * np.float32(scale)
    codes = encode(vectors_ND)
    units_ND, has_direction_N = directions(vectors_ND)
    units_QD, _ = directions(generator.normal(size=(queries, width)))
    for unit_D, (lower_N, upper_N) in zip(
        units_QD, CodedQueries(units_QD).bounds(codes), strict=True
    ):
        cosines_N = units_ND @ unit_D
        assert (lower_N <= cosines_N)[has_direction_N].all()
        assert (upper_N >= cosines_N)[has_direction_N].all()
        assert (upper_N == -np.inf)[~has_direction_N].all()
    assert (distances(units_ND, codes.codes_ND, codes.scales_N) <= codes.errors_N).all()


def test_a_part_holds_every_bit_of_the_embeddings():
    values = np.array(
        [[0.5, -3.0], [1e-7, 2.0], [1 / 3, 1.0], [7e4, -1e38], [-0.0, 2.0**-24]], np.float32
    )
    rows = pa.table(
        {
            "clip_id": ["a", "b", "c", "d", "e"],
            "video_id": ["v"] * 5,
            "embedding": pa.array(list(values), pa.list_(pa.float32())),
        }
    )
    batch = pa.ipc.open_file(part_bytes([rows])).get_batch(0)
    assert [len(packed) for packed in batch["vector"].to_pylist()] == [4, 8, 8, 8, 4]
    kept = Batch(batch).vectors(np.arange(5))
    assert kept.tobytes() == values.tobytes()


def test_answers_are_the_same_with_and_without_a_sidecar_and_with_a_stale_one(run):
    before = answers(run)
    compact(run.paths, TAG)
    assert len(parts(run)) == 1
    assert covered_rows(run) == 12
    assert answers(run) == before
    run.add(unit("s3://films/new.mp4", range(4)))
    assert covered_rows(run) == 12
    mixed = answers(run)
    (part,) = parts(run)
    storage.delete(run.paths.similarity_part(TAG, part))
    assert answers(run) == mixed
    compact(run.paths, TAG)
    assert covered_rows(run) == 16
    assert answers(run) == mixed
    assert part not in parts(run)


def test_a_compaction_with_nothing_to_code_writes_nothing(run, monkeypatch):
    compact(run.paths, TAG)
    before = parts(run)
    monkeypatch.setattr(sidecar_module, "part_bytes", None)
    done = compact(run.paths, TAG)
    assert parts(run) == before
    assert (done[-1].table, done[-1].rows, done[-1].files_after) == ("_similarity", 0, 1)


def test_a_part_of_a_file_that_was_replaced_is_not_looked_at(run):
    compact(run.paths, TAG)
    run.committer.remove_videos([ref(VIDEOS[1]).video_id], [VIDEOS[1]])
    assert len(parts(run)) == 1
    assert covered_rows(run) == 0
    found = answers(run)
    assert len(found) == 2 * 8 + 1
    gone = ref(VIDEOS[1]).video_id
    assert all(row.get("video_id") != gone for answer in found for row in answer)


def test_each_model_has_a_sidecar_of_its_own(run):
    catalog.register_model(run.paths, "other", FINGERPRINT, VOCABULARY)
    other = Run(run.paths, "other", "run-2")
    other.add(unit(VIDEOS[0], range(2), embeddings_ND=np.eye(2, 5, dtype=np.float32) + 1))
    before = answers(run), answers(run, "other")
    compact(run.paths, TAG)
    compact(run.paths, "other")
    assert len(parts(run)) == len(parts(run, "other")) == 1
    assert (answers(run), answers(run, "other")) == before


def bytes_below(uri):
    fs, root = storage.filesystem(uri)
    return {path: fs.cat_file(path) for path in fs.find(root)}


def test_no_byte_of_a_deleted_video_is_left_in_the_sidecar(run):
    compact(run.paths, TAG)
    doomed = ref(VIDEOS[2]).video_id
    row = (
        LabelIndex.open(run.paths.root_uri)
        .rows("embeddings")
        .to_table()
        .filter(pc.field("video_id") == doomed)
    )
    vector_D = np.array(row["embedding"][0].as_py(), np.float32)
    code = encode(vector_D[None]).codes_ND.tobytes()
    traces = [doomed.encode(), clip_id(doomed, 0).encode(), code, vector_D.tobytes()]
    folder = run.paths.similarity(TAG)
    (content,) = bytes_below(folder).values()
    assert all(trace in content for trace in traces)
    delete_videos(run.paths, [VIDEOS[2]])
    assert not any(trace in content for content in bytes_below(folder).values() for trace in traces)
    compact(run.paths, TAG)
    assert covered_rows(run) == 8
    assert not any(trace in content for content in bytes_below(folder).values() for trace in traces)
    assert not verify(run.paths).broken


def test_what_a_killed_compaction_left_is_removed_by_the_next_job(run):
    compact(run.paths, TAG)
    (part,) = parts(run)
    for name in (".0123.tmp", f"part-{'0' * 16}-{'1' * 16}.arrow", "notes.txt"):
        storage.write_bytes(run.paths.similarity_part(TAG, name), b"x")
    found = of_sidecar(verify(run.paths))
    assert [(f.promise, f.broken) for f in found] == [("stray", False)] * 3
    removed = recover(run.paths, TAG).orphans_removed
    assert len(removed) == 3
    assert parts(run) == [part]


def named(content, digest="0" * 16):
    return f"part-{digest}-{hashlib.sha256(content).hexdigest()[:16]}.arrow"


def changed_part(content, change):
    rows = change(pa.ipc.open_file(content).read_all())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def stored_rows(count=20):
    vectors_ND = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    return pa.table(
        {
            "clip_id": [f"c{number}" for number in range(count)],
            "video_id": ["v"] * count,
            "embedding": pa.array(list(vectors_ND), pa.list_(pa.float32())),
        }
    )


def with_column(name, change):
    def changed(rows):
        place = rows.schema.get_field_index(name)
        return rows.set_column(place, rows.schema.field(name), change(rows[name].combine_chunks()))

    return changed


def nudged(codes):
    values = codes.values.to_numpy().copy()
    values[9] ^= 0x40
    return pa.FixedSizeListArray.from_arrays(pa.array(values), codes.type.list_size)


def turned(vectors):
    packed = vectors.to_pylist()
    return pa.array([packed[0][:-1] + b"\x01", *packed[1:]], pa.binary())


WRONG = [
    (with_column("code", nudged), "farther from its embedding"),
    (with_column("vector", turned), "are not those of its data file"),
    (with_column("error", lambda e: pa.array(e.to_numpy() / 2)), "farther from its embedding"),
    (with_column("scale", lambda s: pa.array(s.to_numpy() * 0)), "has a direction"),
    (with_column("clip_id", lambda ids: ids.take(pa.array([1, 0, *range(2, 20)]))), "rows of its"),
    (lambda rows: rows.slice(0, 19), "not the rows of its data file"),
    (lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]), "has 21 rows, its data file has 20"),
    (lambda rows: rows.drop_columns(["error"]), "its columns are"),
]


@pytest.mark.parametrize(("change", "says"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_with_a_part_is_said(change, says):
    rows = stored_rows()
    right = part_bytes([rows.slice(0, 12), rows.slice(12)])
    assert part_fault(named(right), right, [rows.slice(0, 5), rows.slice(5)]) is None
    wrong = changed_part(right, change)
    assert says in part_fault(named(wrong), wrong, [rows.slice(0, 5), rows.slice(5)])


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-100], lambda b: b[:500] + b"?" + b[501:]], ids=range(2)
)
def test_a_damaged_part_is_found_by_its_name(damage):
    content = part_bytes([stored_rows()])
    assert "its sha256 is" in part_fault(named(content), damage(content), [stored_rows()])


def test_a_wrong_part_is_found_by_verify_and_removed_by_repair(run):
    compact(run.paths, TAG)
    (old,) = parts(run)
    uri = run.paths.similarity_part(TAG, old)
    wrong = changed_part(storage.read_bytes(uri), WRONG[0][0])
    storage.delete(uri)
    new = run.paths.similarity_part(TAG, named(wrong, covered_digest(old)))
    storage.write_bytes(new, wrong)
    (finding,) = of_sidecar(verify(run.paths))
    assert (finding.promise, finding.broken) == ("similarity", True)
    assert f"{run.paths.similarity(TAG)[: -len(TAG)]}{finding.file}" == new
    assert not of_sidecar(repair(run.paths).left)
    assert parts(run) == []


def test_a_part_that_is_cut_short_is_refused(run):
    compact(run.paths, TAG)
    (part,) = parts(run)
    path = Path(run.paths.similarity_part(TAG, part))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StorageError, match=r"is damaged: .*; `indexer verify --repair` removes it"):
        answers(run)


def test_on_s3_parts_are_copied_once_and_forgotten_when_they_are_gone(
    s3_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = Run(new_index(f"{s3_folder}/similar"))
    for uri in VIDEOS[:2]:
        run.add(unit(uri, range(3)))
    before = answers(run)
    compact(run.paths, TAG)
    assert answers(run) == before
    (cached,) = tmp_path.rglob("*.arrow")
    assert [cached.name] == parts(run)
    made = cached.stat().st_ino
    assert answers(run) == before
    assert cached.stat().st_ino == made
    delete_videos(run.paths, VIDEOS[:1])
    answers(run)
    assert list(tmp_path.rglob("*.arrow")) == []


def test_a_copy_that_is_not_what_its_name_says_is_refused(s3_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = Run(new_index(f"{s3_folder}/similar-damaged"))
    run.add(unit(VIDEOS[0], range(3)))
    compact(run.paths, TAG)
    (part,) = parts(run)
    uri = run.paths.similarity_part(TAG, part)
    storage.write_bytes(uri, storage.read_bytes(uri)[:-1] + b"?")
    with pytest.raises(StorageError, match="its sha256 is"):
        answers(run)
    assert list(tmp_path.rglob("*.*")) == []
