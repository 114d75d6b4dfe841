"""The nearest clips, against numpy in float64."""

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import QueryError
from indexer.table import similar as similar_module
from indexer.table.answers import SIMILAR
from indexer.table.query import LabelIndex
from indexer.table.sidecar import Batch, Part, part_bytes
from indexer.table.similar import NEIGHBOURS, Choice, nearest
from tests.table.make import Run, new_index, unit


def embeddings(vectors_ND, per_video=3):
    count = len(vectors_ND)
    return ds.dataset(
        pa.table(
            {
                "clip_id": [f"{i:04x}" for i in np.random.default_rng(0).permutation(count)],
                "video_id": [f"v{i // per_video}" for i in range(count)],
                "embedding": pa.array(list(vectors_ND.astype(np.float32)), pa.list_(pa.float32())),
            }
        )
    )


NO_ROWS = pa.table(
    {
        "clip_id": pa.array([], pa.string()),
        "video_id": pa.array([], pa.string()),
        "embedding": pa.array([], pa.list_(pa.float32())),
    }
)


def oracle(rows, query_D, wanted):
    table = rows.to_table()
    vectors_ND = np.array(table["embedding"].to_pylist(), np.float64)
    norms_N = np.linalg.norm(vectors_ND, axis=1)
    query_D = np.asarray(query_D, np.float64)
    with np.errstate(all="ignore"):
        cosines_N = np.round(vectors_ND @ query_D / norms_N / np.linalg.norm(query_D), 12)
    clip_ids, videos = (table[name].to_pylist() for name in ("clip_id", "video_id"))
    order = sorted(range(len(videos)), key=lambda i: (-cosines_N[i], clip_ids[i]))
    found, seen = [], set()
    for i in order:
        fits = norms_N[i] > 0 and clip_ids[i] not in wanted.without
        fits = fits and (wanted.videos is None or videos[i] in wanted.videos)
        fits = fits and videos[i] != wanted.without_video
        if fits and not (wanted.distinct_videos and videos[i] in seen):
            seen.add(videos[i])
            found.append(clip_ids[i])
    return found[: wanted.top]


def part_of(rows, covers="0" * 16, batch_rows=7):
    tables = [pa.Table.from_batches([b]) for b in rows.to_batches(batch_size=batch_rows)]
    return Part(covers, pa.py_buffer(part_bytes(tables)), "part")


def ids(table):
    assert table.schema.equals(NEIGHBOURS)
    return table["clip_id"].to_pylist()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 999),
    count=st.integers(1, 60),
    wanted=st.builds(
        Choice,
        top=st.integers(1, 12),
        without=st.sampled_from([(), ("0001",), ("0001", "0002", "0005")]),
        videos=st.sampled_from([None, (), ("v0", "v3", "v5"), ("zz",)]),
        without_video=st.sampled_from([None, "v1"]),
        distinct_videos=st.booleans(),
    ),
    values=st.sampled_from([2, 3, 1000]),
    scale=st.sampled_from([1.0, 1e-30, 1e-42, 1e30, 2.0**-16]),
    covered=st.sampled_from([0.0, 0.5, 1.0]),
    queries=st.integers(1, 3),
    batch_rows=st.sampled_from([1, 7, 1000]),
)
def test_the_answer_is_that_of_comparing_everything_in_float64(
    seed, count, wanted, values, scale, covered, queries, batch_rows
):
    generator = np.random.default_rng(seed)
    vectors_ND = generator.integers(-values, values, (count, 4)) * scale
    vectors_ND[generator.random(count) < 0.2] = vectors_ND[0]
    rows = embeddings(vectors_ND)
    table = rows.to_table()
    cut = int(covered * count)
    rest, parts = ds.dataset(table.slice(cut)), []
    if cut:
        parts = [part_of(ds.dataset(table.slice(0, cut)), batch_rows=batch_rows)]
    queries_QD = generator.integers(1, values + 1, (queries, 4)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similar_module, "_BATCH_ROWS", batch_rows)
        patch.setattr(similar_module, "_FIRST_LOOK_ROWS", 1)
        found = nearest(rest, parts, queries_QD, wanted)
    for query_D, answer in zip(queries_QD, found, strict=True):
        assert ids(answer) == oracle(rows, query_D, wanted)


def test_clips_that_only_float64_tells_apart_are_told_apart(monkeypatch):
    generator = np.random.default_rng(4)
    query_D = generator.standard_normal(768).astype(np.float32)
    other_ND = generator.standard_normal((400, 768))
    rows = embeddings((query_D + 1e-4 * other_ND).astype(np.float32))
    monkeypatch.setattr(similar_module, "_BATCH_ROWS", 16)
    wanted = Choice(top=5)
    (found,) = nearest(rows, [], query_D, wanted)
    assert ids(found) == oracle(rows, query_D, wanted)


@pytest.mark.parametrize("length", [1e-30, 1e30])
@pytest.mark.parametrize("sign", [-1, 1])
def test_lengths_whose_squares_float32_cannot_hold(length, sign, monkeypatch):
    generator = np.random.default_rng(5)
    query_D = generator.standard_normal(768)
    rows = embeddings(length * (generator.standard_normal((50, 768)) + sign * query_D))
    monkeypatch.setattr(similar_module, "_BATCH_ROWS", 8)
    (found,) = nearest(rows, [], query_D, Choice(top=5))
    assert ids(found) == oracle(rows, query_D, Choice(top=5))


def test_few_rows_are_compared_as_they_are_stored(monkeypatch):
    generator = np.random.default_rng(1)
    rows = embeddings(generator.normal(size=(20_000, 32)))
    compared = []
    plain = Batch.vectors
    monkeypatch.setattr(
        Batch, "vectors", lambda self, rows_N: compared.append(len(rows_N)) or plain(self, rows_N)
    )
    query_D = generator.normal(size=32)
    (found,) = nearest(ds.dataset(NO_ROWS), [part_of(rows, batch_rows=5000)], [query_D], Choice(10))
    assert ids(found) == oracle(rows, query_D, Choice(10))
    assert sum(compared) < 1000


def test_similarities_are_cosines():
    rows = embeddings(np.array([[2.0, 0.0], [1.0, 1.0], [-3.0, 0.0], [0.0, 0.0]]))
    for rest, parts in ((rows, []), (ds.dataset(NO_ROWS), [part_of(rows)])):
        (found,) = nearest(rest, parts, [[5.0, 0.0]], Choice(9))
        assert found["similarity"].to_pylist() == pytest.approx([1.0, 0.5**0.5, -1.0])


@pytest.mark.parametrize("query", [[0.0, 0.0], [np.nan, 1.0]])
def test_a_vector_without_direction_is_refused(query):
    with pytest.raises(QueryError, match="like nothing"):
        nearest(embeddings(np.ones((1, 2))), [], [query], Choice(1))


def test_a_vector_of_another_length_is_refused():
    rows = embeddings(np.ones((1, 2)))
    for rest, parts in ((rows, []), (ds.dataset(NO_ROWS), [part_of(rows)])):
        with pytest.raises(QueryError, match="has 3 numbers, the embeddings of this model have 2"):
            nearest(rest, parts, [[1.0, 2.0, 3.0]], Choice(1))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    run = Run(new_index(str(tmp_path_factory.mktemp("similar") / "index")))
    angles = {"s3://films/a.mp4": [0, 10, 90], "s3://films/b.mp4": [1, 11], "/home/c.mp4": [2]}
    for uri, degrees in angles.items():
        radians = np.deg2rad(degrees)
        vectors_ND = np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)
        run.add(unit(uri, range(len(degrees)), embeddings_ND=vectors_ND))
    return LabelIndex.open(run.paths.root_uri)


def places(table):
    assert table.schema.equals(SIMILAR)
    return [(r["uri"].rpartition("/")[2], r["clip_index"]) for r in table.to_pylist()]


def test_a_moment_of_a_video_finds_clips_like_it(index):
    near = [("b.mp4", 0), ("c.mp4", 0), ("a.mp4", 1), ("b.mp4", 1), ("a.mp4", 2)]
    assert places(index.similar("s3://films/a.mp4@3.5")) == near
    assert places(index.similar("a.mp4@0", top=2)) == near[:2]
    first = index.video("a.mp4")["clip_id"][0].as_py()
    assert places(index.similar(first)) == near


def test_one_clip_of_each_other_video(index):
    assert places(index.similar("a.mp4@0", distinct_videos=True)) == [("b.mp4", 0), ("c.mp4", 0)]


def test_answers_may_be_limited_to_some_videos(index):
    assert places(index.similar("/home/c.mp4@1", video="*/films/*", top=1)) == [("b.mp4", 0)]


@pytest.mark.parametrize(
    ("clip", "says"),
    [
        ("0" * 32, "no clip"),
        ("a.mp4@99", "no clip"),
        ("a.mp4@-1", "no clip"),
        ("a.mp4@start", "there should be seconds, not 'start'"),
        ("zz.mp4@1", "no videos"),
    ],
)
def test_a_clip_that_is_not_there_is_refused(index, clip, says):
    with pytest.raises(QueryError, match=says):
        index.similar(clip)
