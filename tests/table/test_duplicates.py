"""Stretches that come back, planted in made-up embeddings."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.errors import QueryError
from indexer.table import pairs as pairs_module
from indexer.table.duplicates import DUPLICATES, find_duplicates
from indexer.table.query import LabelIndex
from tests.table.make import Run, new_index, unit
from tests.test_cli import call

HOP, WINDOW, WIDTH = 0.5, 2.0, 48


def tables(videos, seed=0):
    """Places and embeddings of videos, given as their clips' vectors by name; rows in any order."""
    places, vectors = [], []
    for uri, video_ND in videos.items():
        for i, vector in enumerate(video_ND):
            place = (f"{uri}/{i:04}", f"id of {uri}", uri, i, i * HOP, i * HOP + WINDOW)
            places.append(place)
            vectors.append(np.asarray(vector, np.float32))
    names = ["clip_id", "video_id", "uri", "clip_index", "start_seconds", "end_seconds"]
    table = pa.table(dict(zip(names, map(list, zip(*places, strict=True)), strict=True)))
    embeddings = table.select(["clip_id"]).append_column(
        "embedding", pa.array(vectors, pa.list_(pa.float32()))
    )
    rng = np.random.default_rng(seed)
    shuffled = (part.take(rng.permutation(len(vectors))) for part in (table, embeddings))
    places, embeddings = shuffled
    return places, ds.dataset(embeddings)


def spans(videos, **options):
    """What is found, with clip numbers for times: (uri, first clip, last clip) of both sides."""
    found = find_duplicates(*tables(videos), **options)
    assert found.schema.equals(DUPLICATES)
    return [
        tuple(
            (row[f"{side}uri"], row[f"{side}start_seconds"] / HOP,
             (row[f"{side}end_seconds"] - WINDOW) / HOP)
            for side in ("", "other_")
        )
        for row in found.to_pylist()
    ]  # fmt: skip


def noise(rng, clips):
    return rng.normal(size=(clips, WIDTH))


def unrelated(seed=0, videos=6, clips=30):
    rng = np.random.default_rng(seed)
    return {f"v{number}": noise(rng, clips) for number in range(videos)}, rng


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(1, 12),
    at=st.tuples(st.integers(0, 18), st.integers(0, 18)),
    videos=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    block=st.sampled_from([7, 64, 4096]),
)
def test_a_planted_stretch_is_found_where_it_is_and_nothing_else(seed, length, at, videos, block):
    one, other = sorted(videos)
    archive, rng = unrelated(seed)
    if one == other and abs(at[0] - at[1]) < length + round(WINDOW / HOP):
        return  # what overlaps itself is no repeat
    copied = archive[f"v{one}"][at[0] : at[0] + length]
    archive[f"v{other}"][at[1] : at[1] + length] = copied + 0.1 * noise(rng, length)
    sides = [(f"v{one}", at[0], at[0] + length - 1), (f"v{other}", at[1], at[1] + length - 1)]
    planted = [tuple(sorted(sides))] if length >= 4 else []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_module, "_BLOCK_CLIPS", block)
        assert spans(archive) == planted
    shuffled = find_duplicates(*tables(archive, seed))
    assert shuffled.equals(find_duplicates(*tables(archive)))


def test_a_clip_is_found_in_all_places_and_each_pair_once_the_best_first():
    archive, rng = unrelated()
    stretch = noise(rng, 8)
    for video, at, error in (("v0", 2, 0.0), ("v3", 10, 0.3), ("v1", 20, 0.0)):
        archive[video][at : at + 8] = stretch + error * noise(rng, 8)
    found = find_duplicates(*tables(archive))
    pairs = [(row["uri"], row["other_uri"]) for row in found.to_pylist()]
    assert pairs == [("v0", "v1"), ("v0", "v3"), ("v1", "v3")]
    scores = found["score"].to_pylist()
    assert scores[0] == 1.0 > scores[1] == scores[2] > 0.8
    assert find_duplicates(*tables(archive), top=2).equals(found.slice(0, 2))


def test_a_whole_copy_is_one_pair():
    archive, _ = unrelated()
    archive["w"] = archive["v2"]
    assert spans(archive) == [(("v2", 0, 29), ("w", 0, 29))]


def test_a_stretch_goes_on_over_two_clips_that_differ_and_ends_at_three():
    archive, rng = unrelated()
    archive["v0"][2:20] = archive["v1"][5:23]
    archive["v0"][8:10] = noise(rng, 2)
    assert spans(archive) == [(("v0", 2, 19), ("v1", 5, 22))]
    archive["v0"][8:11] = noise(rng, 3)
    assert sorted(spans(archive)) == [
        (("v0", 2, 7), ("v1", 5, 10)),
        (("v0", 11, 19), ("v1", 14, 22)),
    ]


@pytest.mark.parametrize(("hops", "found"), [(1, 1), (2, 0)])
def test_a_stretch_may_waver_by_one_hop(hops, found):
    archive, _ = unrelated()
    archive["v0"][2:5] = archive["v1"][10:13]
    archive["v0"][5:8] = archive["v1"][13 + hops : 16 + hops]
    assert len(spans(archive)) == found


def test_hits_at_other_offsets_are_no_stretch():
    archive, _ = unrelated()
    archive["v0"][[0, 5, 10, 15, 20]] = archive["v1"][[20, 10, 1, 28, 5]]
    archive["v2"][:12] = archive["v3"][:12][::-1]
    assert spans(archive) == []


def smooth(rng, seconds):
    """A video whose embedding changes steadily: it is asked for at any time."""
    knots_KD = rng.normal(size=(int(seconds) + 4, WIDTH))

    def at(times_N):
        times_N = np.asarray(times_N, float)
        knots_N = times_N.astype(int)
        share_N1 = (times_N - knots_N)[:, None]
        return knots_KD[knots_N] * (1 - share_N1) + knots_KD[knots_N + 1] * share_N1

    return at


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.25, 0.4])
def test_windows_of_a_copy_need_not_lie_on_those_of_the_original(shift):
    rng = np.random.default_rng(3)
    shows = {f"v{number}": smooth(rng, 30) for number in range(12)}
    archive = {uri: show(np.arange(50) * HOP) for uri, show in shows.items()}
    archive["clip"] = shows["v4"](6 + shift + np.arange(14) * HOP)
    (found,) = find_duplicates(*tables(archive)).to_pylist()
    assert (found["uri"], found["other_uri"]) == ("clip", "v4")
    offset = found["other_start_seconds"] - found["start_seconds"]
    assert abs(offset - (6 + shift)) <= HOP
    assert found["end_seconds"] - found["start_seconds"] >= 13 * HOP + WINDOW - 2 * HOP


def test_a_repeat_within_one_video_is_found_and_slowness_is_not_one():
    archive, rng = unrelated()
    archive["v0"][20:26] = archive["v0"][3:9]
    assert spans(archive) == [(("v0", 3, 8), ("v0", 20, 25))]
    archive, _ = unrelated()
    archive["v0"][:] = archive["v0"][0] + 0.1 * noise(rng, 30)
    assert spans(archive) == []


def test_a_stretch_that_overlaps_its_repeat_is_a_wave_not_a_repeat():
    archive, rng = unrelated()
    wave = noise(rng, 3)
    archive["v0"][:] = np.tile(wave, (10, 1))
    for one, other in spans(archive):
        assert one[2] + WINDOW / HOP <= other[1]


def test_a_stretch_without_change_needs_twice_the_hits():
    archive, rng = unrelated()
    still = noise(rng, 1)
    for length, found in ((7, 0), (8, 1)):
        archive["v0"][3 : 3 + length] = still + 0.1 * noise(rng, length)
        archive["v4"][9 : 9 + length] = still + 0.1 * noise(rng, length)
        assert len(spans(archive)) == found
    archive["v0"][3:11], archive["v4"][9:17] = noise(rng, 8), noise(rng, 8)
    archive["v0"][3:7] = archive["v4"][9:13]
    assert len(spans(archive)) == 1


def blurred(rng, vectors_ND, similarity):
    """Vectors whose cosine with the given ones is about this."""
    error = (1 / similarity**2 - 1) ** 0.5
    return vectors_ND + error * noise(rng, len(vectors_ND))


def test_a_run_of_chance_hits_is_no_copy_and_a_blurred_copy_is():
    archive, rng = unrelated(videos=12, clips=60)
    archive["v0"][3:8] = blurred(rng, archive["v4"][9:14], 0.86)
    assert spans(archive) == []
    archive["v0"][3:19] = blurred(rng, archive["v4"][9:25], 0.86)
    assert len(spans(archive)) == 1
    assert len(spans(archive, min_similarity=0.5)) == 1


def test_what_lies_around_a_run_speaks_against_it():
    archive, rng = unrelated(videos=12, clips=60)
    for gap, found in ((1, 1), (2, 0)):
        archive["v0"][:], archive["v4"][:] = noise(rng, 60), noise(rng, 60)
        for start in (10, 13 + gap):
            archive["v0"][start : start + 3] = archive["v4"][start + 7 : start + 10]
        assert len(spans(archive)) == found


def test_what_looks_like_too_many_others_is_left_out_and_told():
    archive, rng = unrelated()
    black = noise(rng, 1)
    for video in archive.values():
        video[4:12] = black
    told = []
    assert spans(archive, max_neighbours=30, observe=told.append) == []
    assert told[-1].hubs == 6 * 8
    assert len(spans(archive, max_neighbours=1000)) > 0


def test_only_pairs_with_a_chosen_video():
    archive, _ = unrelated()
    archive["v1"][3:9] = archive["v0"][10:16]
    archive["v5"][3:9] = archive["v4"][10:16]
    pair = (("v4", 10, 15), ("v5", 3, 8))
    for chosen in ("v4", "v5"):
        assert spans(archive, chosen_videos=pa.array([f"id of {chosen}"])) == [pair]
    assert spans(archive, chosen_videos=pa.array(["id of v2"])) == []
    assert spans(archive, chosen_videos=pa.array([], pa.string())) == []


def test_an_archive_of_single_clips_has_no_stretches():
    assert spans({f"v{i}": np.eye(WIDTH)[:1] for i in range(9)}) == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("min_similarity", 0.0), ("min_similarity", 1.1), ("min_hits", 0), ("max_neighbours", 0)],
)
def test_impossible_thresholds_are_refused(option, value):
    archive, _ = unrelated()
    with pytest.raises(QueryError, match=option):
        spans(archive, **{option: value})


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Of `make.span`: windows of 8.5 s, one after the other."""
    archive, _ = unrelated()
    archive["v5"][3:9] = archive["v2"][10:16]
    archive["v4"][20:25] = archive["v2"][:5]
    run = Run(new_index(str(tmp_path_factory.mktemp("duplicates") / "index")))
    for name, vectors_ND in archive.items():
        uri = f"s3://films/{name}.mp4"
        run.add(unit(uri, range(30), embeddings_ND=vectors_ND.astype(np.float32)))
    return run.paths.root_uri


def videos(table):
    return sorted((r["uri"][-6:], r["other_uri"][-6:]) for r in table.to_pylist())


def test_an_index_is_asked_about_all_or_some_videos(index):
    asked = LabelIndex.open(index)
    both = [("v2.mp4", "v4.mp4"), ("v2.mp4", "v5.mp4")]
    assert videos(asked.duplicates()) == both
    assert videos(asked.duplicates(video="*v5*")) == both[1:]
    assert videos(asked.duplicates(source="s3://films/v4")) == both[:1]
    assert videos(asked.duplicates(video="*v5*", source="s3://other/")) == []
    assert videos(asked.duplicates(min_hits=6)) == both[1:]
    with pytest.raises(QueryError, match="top"):
        asked.duplicates(top=0)


def test_the_command_prints_both_spans(index, capsys):
    code, out, err = call(capsys, "duplicates", index, "--top", "1", "--format", "json")
    (row,) = json.loads(out)
    assert (code, err) == (0, "")
    assert list(row) == DUPLICATES.names
    code, out, _ = call(capsys, "duplicates", index, "--video", "*v5.mp4")
    assert "1:25.00" in out
    assert "s3://films/v5.mp4" in out
    code, out, err = call(capsys, "duplicates", index, "--min-hits", "20")
    assert (code, out) == (0, "")
    assert "no 20 clips in a row come back" in err
    code, out, err = call(capsys, "duplicates", index, "--min-similarity", "0")
    assert code == 2
    assert "min_similarity" in err
