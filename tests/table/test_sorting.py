import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.table import sorting
from indexer.table.schema import LABELS
from indexer.table.sorting import sorted_rows

ORDER = (("label", "ascending"), ("score", "descending"), ("row", "ascending"))

rows = st.lists(
    st.tuples(
        st.sampled_from(["", "a", "b", "é日本", "\U0001f3b8", "ab"]),
        st.sampled_from([0.0, 0.25, 1.0]),
    ),
    max_size=60,
)


def table(pairs, first=0):
    return pa.table(
        {
            "label": pa.array([label for label, _ in pairs], pa.string()),
            "score": pa.array([score for _, score in pairs], pa.float32()),
            "row": pa.array(range(first, first + len(pairs)), pa.int32()),
            "payload": pa.array(
                [[float(i)] * 3 for i in range(len(pairs))], pa.list_(pa.float32())
            ),
        }
    )


@given(rows, st.integers(1, 7), st.integers(1, 2000), st.integers(1, 400))
def test_the_merge_of_any_runs_is_the_sorted_whole(pairs, step, run_bytes, page_bytes):
    whole = table(pairs)
    pieces = [whole.slice(i, step) for i in range(0, len(pairs), step)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "PAGE_BYTES", page_bytes)
        found = list(sorted_rows(pieces, ORDER, run_bytes=run_bytes))
    expected = whole.take(pc.sort_indices(whole, sort_keys=list(ORDER)))
    merged = pa.concat_tables(found) if found else whole.slice(0, 0)
    assert merged.combine_chunks().equals(expected.combine_chunks())


def test_nothing_sorts_to_nothing():
    assert list(sorted_rows([], LABELS.order)) == []


def test_pieces_are_small_whatever_the_size_of_the_whole(monkeypatch):
    monkeypatch.setattr(sorting, "PAGE_BYTES", 2_000)
    whole = table([(str(i % 97), float(i % 7)) for i in range(5_000)])
    pieces = [whole.slice(i, 500) for i in range(0, 5_000, 500)]
    sizes = [piece.nbytes for piece in sorted_rows(pieces, ORDER, run_bytes=20_000)]
    assert max(sizes) <= 2_100 * 10  # a page of each run
    assert len(sizes) > 50


def test_its_files_have_no_names_that_a_killed_process_could_leave(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    whole = table([(str(i), 0.0) for i in range(1000)])
    merged = sorted_rows([whole.slice(500), whole.slice(0, 500)], ORDER, run_bytes=1)
    assert next(merged).num_rows
    assert list(tmp_path.iterdir()) == []
    merged.close()
