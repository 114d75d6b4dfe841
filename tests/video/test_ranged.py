import itertools
import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.video.ranged import AHEAD_BYTES, RangedFile, Ranges

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


class TestRanges:
    @given(spans=SPANS, window=st.tuples(st.integers(0, 60), st.integers(0, 60)))
    def test_behaves_like_a_set_of_offsets(self, spans, window):
        ranges, offsets = Ranges(spans), {o for start, stop in spans for o in range(start, stop)}
        assert {o for start, stop in ranges for o in range(start, stop)} == offsets
        assert ranges.total_bytes == len(offsets)
        missing = list(ranges.missing(*window))
        assert {o for start, stop in missing for o in range(start, stop)} == (
            set(range(*window)) - offsets
        )
        listed = list(ranges)
        assert all(before[1] < after[0] for before, after in itertools.pairwise(listed))
        for offset in range(61):
            stop = next((o for o in range(offset, 62) if o not in offsets), None)
            assert ranges.stop_of(offset) == stop
            later = [start for start, _ in listed if start > offset]
            assert ranges.start_after(offset) == (later[0] if later else None)


class Store:
    """Bytes elsewhere, of which some are in a sparse file here."""

    def __init__(self, content, present=()):
        self.content, self.asked = content, []
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._file.truncate(len(content))
        for start, stop in present:
            self._put(start, stop)
        self.file = RangedFile(self._file.fileno(), len(content), present, self.fetch)

    def fetch(self, ranges):
        self.asked.append(list(ranges))
        for start, stop in ranges:
            self._put(start, stop)

    def _put(self, start, stop):
        os.pwrite(self._file.fileno(), self.content[start:stop], start)


CONTENT = os.urandom(3 * AHEAD_BYTES + 1234)


class TestRangedFile:
    def test_what_is_here_asks_for_nothing(self):
        store = Store(CONTENT, [(0, len(CONTENT))])
        assert store.file.complete
        assert store.file.read() == CONTENT
        assert store.file.read(10) == b""
        assert store.asked == []

    def test_what_is_not_is_brought_a_stretch_at_a_time(self):
        store = Store(CONTENT, [(0, 100)])
        assert not store.file.complete
        store.file.seek(50)
        assert store.file.read(200) == CONTENT[50:100]  # what is here, before anything is asked
        assert store.file.read(200) == CONTENT[100:300]
        assert store.asked == [[(100, 100 + AHEAD_BYTES)]]
        assert store.file.read(10**9) == CONTENT[300 : 100 + AHEAD_BYTES]

    def test_the_end_is_respected(self):
        store = Store(CONTENT)
        store.file.seek(-10, os.SEEK_END)
        assert store.file.read(100) == CONTENT[-10:]
        assert store.asked == [[(len(CONTENT) - 10, len(CONTENT))]]
        assert store.file.tell() == store.file.size_bytes

    def test_only_gaps_are_required(self):
        store = Store(CONTENT, [(10, 20), (40, 50)])
        store.file.require([(0, 30), (35, 60)])
        assert store.asked == [[(0, 10), (20, 30), (35, 40), (50, 60)]]
        store.file.require([(0, 30), (35, 60)])
        assert len(store.asked) == 1

    def test_hollow_reading_gives_zeros_for_what_is_not_here(self):
        store = Store(CONTENT, [(100, 200)])
        with store.file.hollow():
            pieces = []
            while piece := store.file.read(150):
                pieces.append(piece)
        found = b"".join(pieces)
        assert found == bytes(100) + CONTENT[100:200] + bytes(len(CONTENT) - 200)
        assert store.asked == []
        store.file.seek(0)
        assert store.file.read(3) == CONTENT[:3]

    def test_there_is_nothing_before_the_start(self):
        with pytest.raises(OSError, match="seek"):
            Store(CONTENT).file.seek(-1)

    def test_missing_bytes_that_nothing_brings_are_an_error(self):
        file = RangedFile(0, 10, [(0, 5)])
        with pytest.raises(OSError, match="missing"):
            file.require([(0, 10)])
