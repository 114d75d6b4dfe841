import time
import warnings
from contextlib import closing

import pytest

from indexer.config import Decode
from indexer.errors import (
    VideoMissing,
)
from indexer.video import transfer
from indexer.video.fetch import FetchedVideo, prefetched
from tests.video.fetch.stores import DATA, content, open_files, remote_ref, s3_ref
from tests.video.objectserver import Fault


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestPrefetched:
    def some(self, count, **changes):
        return [remote_ref(video_id=f"v{index}", **changes) for index in range(count)]

    def test_gives_every_video_in_order(self, store):
        store.faults = [None, FileNotFoundError(), None]
        listed = self.some(3)
        found = list(prefetched(iter(listed), Decode()))
        assert [opened.ref for opened in found] == listed
        assert isinstance(found[1].video, VideoMissing)
        assert all(0 < opened.traffic.seconds < 5 for opened in found)
        for opened in (found[0], found[2]):
            assert content(opened.video) == DATA
            opened.video.close()

    def test_of_nothing_is_nothing(self):
        assert list(prefetched([], Decode())) == []

    def test_opens_the_next_one_meanwhile_and_no_more(self, store):
        with closing(prefetched(self.some(4), Decode())) as stream:
            assert store.opens == 0
            with next(stream).video:
                wait_until(lambda: store.opens == 2)
                time.sleep(0.1)
                assert store.opens == 2
            with next(stream).video:
                wait_until(lambda: store.opens == 3)

    @pytest.mark.usefixtures("store")
    def test_frees_what_was_never_handed_out(self):
        before = open_files()
        stream = prefetched(self.some(3), Decode())
        first = next(stream)
        wait_until(lambda: len(open_files()) == len(before) + 2)
        with warnings.catch_warnings(record=True) as left_to_the_collector:
            warnings.simplefilter("always", ResourceWarning)
            stream.close()
        assert not [each for each in left_to_the_collector if "FileIO" in str(each.message)]
        assert len(open_files()) == len(before) + 1
        assert content(first.video) == DATA
        first.video.close()
        assert open_files() == before

    @pytest.mark.usefixtures("store")
    def test_a_failing_list_frees_too(self):
        def listed():
            yield from self.some(1)
            time.sleep(0.1)
            raise KeyboardInterrupt

        before = open_files()
        with pytest.raises(KeyboardInterrupt):
            list(prefetched(listed(), Decode()))
        assert open_files() == before

    def test_an_unforeseen_error_is_not_hidden(self, store):
        store.faults = [ZeroDivisionError()]
        with pytest.raises(ZeroDivisionError):
            next(prefetched(self.some(2), Decode()))

    @pytest.mark.parametrize("fault", [Fault(0, "stall"), Fault(status=503, code="SlowDown")])
    def test_stopping_does_not_wait_for_the_next_one(self, server, monkeypatch, fault):
        monkeypatch.setattr(transfer, "FIRST_PAUSE_SECONDS", 5)
        server.faults = [None]
        server.always = fault
        before = open_files()
        stream = prefetched([s3_ref(server)] * 3, Decode())
        with next(stream).video as video:
            assert isinstance(video, FetchedVideo)
            wait_until(lambda: len(server.asked) == 2)
            started = time.perf_counter()
            stream.close()
            assert time.perf_counter() - started < 2
            assert content(video) == DATA
        assert open_files() == before
        assert len(server.asked) == 2

    def test_stopping_ends_the_pauses_of_other_stores(self, store, monkeypatch):
        monkeypatch.setattr(transfer, "FIRST_PAUSE_SECONDS", 60)
        store.faults = [None, TimeoutError()]
        stream = prefetched(self.some(2), Decode())
        next(stream).video.close()
        wait_until(lambda: store.opens == 2)
        started = time.perf_counter()
        stream.close()
        assert time.perf_counter() - started < 2
