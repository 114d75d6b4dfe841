import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from indexer.table.lookup import VideoLookup

NIBBLES = st.text("0123456789abcdef", min_size=1, max_size=1)
# few different halves, so that some ids share one
HALVES = NIBBLES.map(lambda digit: digit * 16)
IDS = st.tuples(HALVES, HALVES).map("".join)


@given(st.lists(IDS, unique=True, max_size=60), st.lists(IDS, max_size=60), st.integers(0, 5))
def test_every_id_is_found_where_it_is(known, wanted, cut):
    column = pa.chunked_array([known[:cut], known[cut:]], pa.string())
    found = VideoLookup(column).rows(pa.array(["x" * 32, *wanted], pa.string()).slice(1))
    assert found.tolist() == [known.index(video) if video in known else -1 for video in wanted]
