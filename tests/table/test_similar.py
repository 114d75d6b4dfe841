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
from indexer.table.similar import NEIGHBOURS, nearest
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


def oracle(rows, query_D, top, without=(), distinct_videos=False):
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
        fits = norms_N[i] > 0 and clip_ids[i] not in without
        if fits and not (distinct_videos and videos[i] in seen):
            seen.add(videos[i])
            found.append(clip_ids[i])
    return found[:top]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 99),
    count=st.integers(0, 60),
    top=st.integers(1, 12),
    distinct=st.booleans(),
    values=st.sampled_from([2, 3, 1000]),
    batch_rows=st.sampled_from([1, 7, 1000]),
)
def test_all_are_compared_and_ties_go_by_clip_id(seed, count, top, distinct, values, batch_rows):
    generator = np.random.default_rng(seed)
    vectors_ND = generator.integers(-values, values, (count, 4)).astype(np.float32)
    query_D = generator.integers(1, values + 1, 4).astype(np.float32)
    rows = embeddings(vectors_ND) if count else embeddings(np.zeros((1, 4)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similar_module, "_BATCH_ROWS", batch_rows)
        found = nearest(rows, query_D, top=top, distinct_videos=distinct, without=["0001"])
    assert found.schema.equals(NEIGHBOURS)
    expected = oracle(rows, query_D, top, ["0001"], distinct)
    assert found["clip_id"].to_pylist() == expected


def test_similarities_are_cosines():
    rows = embeddings(np.array([[2.0, 0.0], [1.0, 1.0], [-3.0, 0.0], [0.0, 0.0]]))
    found = nearest(rows, [5.0, 0.0], top=9)
    assert found["similarity"].to_pylist() == pytest.approx([1.0, 0.5**0.5, -1.0])


@pytest.mark.parametrize("query", [[0.0, 0.0], [np.nan, 1.0]])
def test_a_vector_without_direction_is_refused(query):
    with pytest.raises(QueryError, match="like nothing"):
        nearest(embeddings(np.ones((1, 2))), query, top=1)


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
