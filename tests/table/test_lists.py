"""Approximate answers: those of comparing the rows of some inverted lists, and their recall."""

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from indexer import storage
from indexer.errors import QueryError, StorageError
from indexer.table import lists as lists_module
from indexer.table.compact import compact
from indexer.table.delete import delete_videos
from indexer.table.lists import Lists, Recall, queries, sample, train
from indexer.table.query import LabelIndex
from indexer.table.sidecar import Part, listed_part_bytes, part_bytes, part_sizes
from indexer.table.sidecar_checks import part_fault
from indexer.table.similar import Choice, nearest
from indexer.table.verify import verify
from tests.table.make import TAG, Run, new_index, unit
from tests.table.test_sidecar import changed_part, named, with_column
from tests.test_cli_maintain import call

WIDTH = 12


@pytest.fixture
def many_lists(monkeypatch):
    """Lists of a few rows, of which a query looks into two."""
    monkeypatch.setattr(lists_module, "_ROWS_PER_LIST", 8)
    monkeypatch.setattr(lists_module, "PROBES", 2)


def clustered(rows=240, seed=0):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(20, WIDTH)) * 3
    near = centres[generator.integers(0, 20, rows)] + generator.normal(size=(rows, WIDTH))
    return near.astype(np.float32)


def pieces_of(vectors_ND, rows=50):
    return [vectors_ND[start : start + rows] for start in range(0, len(vectors_ND), rows)]


def trained(vectors_ND):
    rows = len(vectors_ND)
    return train(sample(pieces_of(vectors_ND), rows), rows)


def tables_of(vectors_ND, rows=50):
    ids = [f"c{number:04}" for number in range(len(vectors_ND))]
    embeddings = pa.array(list(vectors_ND), pa.list_(pa.float32()))
    videos = ["v"] * len(vectors_ND)
    table = pa.table({"clip_id": ids, "video_id": videos, "embedding": embeddings})
    return [table.slice(start, rows) for start in range(0, len(vectors_ND), rows)]


def part_of(content):
    return Part("0" * 16, pa.py_buffer(content), "part")


def cosines(queries_QD, vectors_ND):
    units = [
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries_QD, vectors_ND)
    ]
    return units[0] @ units[1].T


def test_a_vector_is_in_the_list_of_the_nearest_centroid(many_lists):
    vectors_ND = clustered()
    lists = trained(vectors_ND)
    assert lists.centroids_LD.shape == (30, WIDTH)
    np.testing.assert_allclose(np.linalg.norm(lists.centroids_LD, axis=1), 1, atol=1e-5)
    near_NL = cosines(vectors_ND.astype(np.float64), lists.centroids_LD)
    own_N = near_NL[np.arange(len(vectors_ND)), lists.of(vectors_ND)]
    np.testing.assert_allclose(own_N, near_NL.max(axis=1), atol=1e-5)


def test_a_query_looks_into_the_nearest_lists(many_lists):
    vectors_ND = clustered()
    lists = trained(vectors_ND)
    looks_QL = lists.probed(vectors_ND[:9])
    assert looks_QL.sum(axis=1).tolist() == [2] * 9
    near_QL = cosines(vectors_ND[:9], lists.centroids_LD)
    for looks_L, near_L in zip(looks_QL, near_QL, strict=True):
        assert set(np.flatnonzero(looks_L)) == set(np.argsort(-near_L)[:2])


def test_training_draws_the_centroids_to_the_vectors(many_lists, monkeypatch):
    vectors_ND = clustered()

    def spread(rounds):
        monkeypatch.setattr(lists_module, "_ROUNDS", rounds)
        lists = trained(vectors_ND)
        return cosines(vectors_ND, lists.centroids_LD).max(axis=1).mean()

    assert spread(10) > spread(0) + 0.01


def test_vectors_without_direction_do_no_harm(many_lists):
    vectors_ND = np.zeros((40, WIDTH), np.float32)
    assert np.isfinite(trained(vectors_ND).centroids_LD).all()
    vectors_ND = clustered(40)
    vectors_ND[::3] = 0
    part = part_of(listed_part_bytes(partial(tables_of, vectors_ND), 40))
    found = searched([part], vectors_ND[1], Choice(40, approximate=True))
    assert found[0] == "c0001"
    assert not {f"c{row:04}" for row in range(0, 40, 3)} & set(found)


def test_recall_is_the_share_of_the_ten_nearest_others(many_lists):
    vectors_ND = clustered()
    lists = trained(vectors_ND)
    queries_QD = queries(sample(pieces_of(vectors_ND), len(vectors_ND)))
    recall = Recall(lists, queries_QD)
    for piece_ND in pieces_of(vectors_ND):
        recall.add(piece_ND, lists.of(piece_ND))
    numbers_N = lists.of(vectors_ND)
    shares = []
    for query_D, looks_L in zip(queries_QD, lists.probed(queries_QD), strict=True):
        best = np.argsort(-cosines(query_D[None], vectors_ND)[0])[1:11]
        shares.append(looks_L[numbers_N[best]].mean())
    assert 0.3 < recall.share < 1
    assert recall.share == pytest.approx(np.mean(shares))


def test_an_approximate_answer_is_the_exact_one_of_the_rows_looked_at(many_lists):
    vectors_ND = clustered()
    part = part_of(listed_part_bytes(partial(tables_of, vectors_ND), len(vectors_ND)))
    numbers_N = part.lists.of(vectors_ND)
    fewer = 0
    for query in range(0, 240, 17):
        looks_L = part.lists.probed(vectors_ND[query][None])[0]
        within = np.flatnonzero(looks_L[numbers_N])
        order = within[np.argsort(-cosines(vectors_ND[query][None], vectors_ND[within])[0])]
        found = searched([part], vectors_ND[query], Choice(20, approximate=True))
        assert found == [f"c{row:04}" for row in order[:20]]
        fewer += found != searched([part], vectors_ND[query], Choice(20))
    assert fewer


def searched(parts, query_D, choice):
    schema = pa.schema(
        {"clip_id": pa.string(), "video_id": pa.string(), "embedding": pa.list_(pa.float32())}
    )
    rest = ds.dataset(schema.empty_table())
    (found,) = nearest(rest, parts, query_D[None], choice)
    return found["clip_id"].to_pylist()


def test_a_part_without_lists_is_searched_whole(many_lists):
    vectors_ND = clustered()
    part = part_of(part_bytes(tables_of(vectors_ND)))
    exact, approximate = (
        searched([part], vectors_ND[3], Choice(9, approximate=asked)) for asked in (False, True)
    )
    assert exact == approximate


# -- in an index


@pytest.fixture
def run(tmp_path):
    run = Run(new_index(str(tmp_path / "index")))
    for name in "abcdef":
        run.add(unit(f"s3://films/{name}.mp4", range(20)))
    return run


def names(run):
    return sorted(part_sizes(run.paths, TAG))


def test_lists_are_made_on_demand_and_stay(run, many_lists):
    compact(run.paths, TAG)
    (plain,) = names(run)
    compact(run.paths, TAG, lists=True)
    (listed,) = names(run)
    assert plain.endswith(".arrow")
    assert not plain.endswith(".ivf.arrow")
    assert listed.endswith(".ivf.arrow")
    compact(run.paths, TAG)
    assert names(run) == [listed]
    assert compact(run.paths, TAG, lists=True)[-1].rows == 0
    verified = verify(run.paths)
    assert not verified.broken
    assert not [finding for finding in verified.findings if finding.table == "_similarity"]
    delete_videos(run.paths, ["s3://films/a.mp4"])
    assert listed not in names(run)


def test_of_two_parts_the_one_with_lists_counts_and_the_other_is_a_stray(run, many_lists):
    compact(run.paths, TAG)
    (plain,) = names(run)
    content = storage.read_bytes(run.paths.similarity_part(TAG, plain))
    compact(run.paths, TAG, lists=True)
    (listed,) = names(run)
    storage.write_bytes(run.paths.similarity_part(TAG, plain), content)  # killed before it went
    assert LabelIndex.open(run.paths.root_uri).recall() is not None
    strays = [f.file for f in verify(run.paths).findings if f.promise == "stray"]
    assert strays == [f"{TAG}/{plain}"]
    compact(run.paths, TAG)
    assert names(run) == [listed]


def test_the_commands_say_what_recall_was_measured(run, many_lists, capsys):
    root = run.paths.root_uri
    clip = LabelIndex.open(root).rows("embeddings").to_table()["clip_id"][0].as_py()
    with pytest.raises(QueryError, match="has no inverted lists"):
        LabelIndex.open(root).similar(clip, approximate=True)
    code, _, said = call(capsys, "similar", root, clip, "--approximate")
    assert code != 0
    assert f"indexer compact --ivf {root}" in said
    code, _, said = call(capsys, "compact", root, "--ivf")
    recall = LabelIndex.open(root).recall()
    assert code == 0
    assert f"inverted lists, recall@10 {recall:.3f}" in said
    code, shown, said = call(capsys, "similar", root, clip, "--approximate")
    assert code == 0
    assert len(shown.splitlines()) == 11
    assert f"approximate: recall@10 is {recall:.3f}" in said


def test_telling_the_recall_copies_no_part(s3_folder, tmp_path, monkeypatch, many_lists):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    run = Run(new_index(f"{s3_folder}/listed"))
    run.add(unit("s3://films/a.mp4", range(40)))
    compact(run.paths, TAG, lists=True)
    index = LabelIndex.open(run.paths.root_uri)
    told = index.recall()
    assert 0 < told <= 1
    assert list(tmp_path.rglob("*.arrow")) == []
    clip = index.rows("embeddings").to_table()["clip_id"][0].as_py()
    assert index.similar(clip, approximate=True).num_rows == 10
    assert len(list(tmp_path.rglob("*.arrow"))) == 1
    assert (
        LabelIndex.open(run.paths.root_uri).recall() == told
    )  # by the copy, now that there is one


def test_an_index_of_one_list_answers_exactly(run):
    compact(run.paths, TAG, lists=True)
    index = LabelIndex.open(run.paths.root_uri)
    rows = index.rows("embeddings").to_table()
    assert index.recall() == 1
    for clip in rows["clip_id"].to_pylist()[::11]:
        assert index.similar(clip, approximate=True) == index.similar(clip)
    vector = rows["embedding"][5].as_py()
    assert index.similar_to(vector, approximate=True) == index.similar_to(vector)


def test_wrong_lists_are_found(many_lists):
    vectors_ND = clustered(64)
    right = listed_part_bytes(partial(tables_of, vectors_ND), 64)
    assert part_fault(named(right), right, tables_of(vectors_ND)) is None
    far = changed_part(right, with_column("list", lambda n: pa.array(n.to_numpy() + np.int16(8))))
    assert "in none of its 8 lists" in part_fault(named(far), far, tables_of(vectors_ND))
    bare = changed_part(right, lambda rows: rows.replace_schema_metadata(None))
    assert "its inverted lists" in part_fault(named(bare), bare, tables_of(vectors_ND))
    with pytest.raises(StorageError, match="its inverted lists"):
        part_of(bare)


def test_numbers_of_lists_fit_their_type():
    assert np.iinfo(np.int16).max >= lists_module._MOST_LISTS
    assert Lists(np.eye(3, dtype=np.float32)).of(np.eye(3)).dtype == np.int16
