import os
import tracemalloc

import pytest

from indexer.config import Decode
from indexer.errors import (
    VideoAccessDenied,
    VideoChanged,
    VideoEmpty,
    VideoMissing,
    VideoOverBudget,
    VideoTransientIO,
)
from indexer.manifest import discover, refs
from indexer.video import fetch, transfer
from indexer.video.fetch import open_video
from tests.video.fetch.stores import DATA, KIB, MIB, content, matroska, mp4, random_bytes, s3_ref


class TestS3:
    """Against a real server."""

    def listed(self, s3, s3_folder, data):
        bucket, _, prefix = s3_folder.removeprefix("s3://").partition("/")
        uri = s3.put(bucket, f"{prefix}/video.mp4", data)
        (ref,) = refs(discover([uri], schemes=("s3",)))
        return ref

    def overwrite(self, s3, ref, data):
        bucket, _, key = ref.uri.removeprefix("s3://").partition("/")
        s3.put(bucket, key, data)

    @pytest.mark.parametrize("size", [1, 256 * KIB, 5 * MIB])
    def test_a_small_object_costs_one_request(self, s3, s3_folder, size):
        data = random_bytes(size)
        with open_video(self.listed(s3, s3_folder, data), Decode()) as video:
            assert content(video) == data
            assert video.complete
            assert (video.requests, video.fetched_bytes) == (1, size)

    def test_a_large_object_comes_in_parts(self, s3, s3_folder):
        data = matroska(21 * MIB + 12345)
        with open_video(self.listed(s3, s3_folder, data), Decode()) as video:
            assert content(video) == data
            assert video.complete
            assert (video.requests, video.fetched_bytes) == (4, len(data))

    def test_a_large_mp4_comes_as_it_is_asked_for(self, s3, s3_folder):
        data = mp4(17 * MIB)
        with open_video(self.listed(s3, s3_folder, data), Decode()) as video:
            assert video.present == ((0, 256 * KIB),)
            assert not video.complete
            assert video.requests == 1
            video.fetch([(10 * MIB, 10 * MIB + 1000), (17 * MIB - 500, 18 * MIB)])
            assert os.pread(video.fileno(), 1000, 10 * MIB) == data[10 * MIB :][:1000]
            assert os.pread(video.fileno(), 1000, 17 * MIB - 500) == data[-500:]
            assert (video.requests, video.fetched_bytes) == (3, 256 * KIB + 1500)
            video.fetch([(0, 17 * MIB)])
            assert content(video) == data
            assert video.complete
            assert video.fetched_bytes == len(data) + 1000  # in a gap that is no request worth

    def test_an_overwritten_object(self, s3, s3_folder):
        ref = self.listed(s3, s3_folder, mp4(17 * MIB))
        with open_video(ref, Decode()) as video:
            self.overwrite(s3, ref, mp4(17 * MIB, seed=1))
            with pytest.raises(VideoChanged):
                video.fetch([(MIB, 2 * MIB)])
            assert video.requests == 2
        for data in (mp4(17 * MIB, seed=1), b"shorter", mp4(18 * MIB)):
            self.overwrite(s3, ref, data)
            with pytest.raises(VideoChanged):
                open_video(ref, Decode())

    def test_a_removed_object(self, s3, s3_folder):
        ref = self.listed(s3, s3_folder, DATA)
        bucket, _, key = ref.uri.removeprefix("s3://").partition("/")
        s3.client.delete_object(Bucket=bucket, Key=key)
        with pytest.raises(VideoMissing):
            open_video(ref, Decode())

    def test_refused_credentials(self, s3, s3_folder, monkeypatch):
        ref = self.listed(s3, s3_folder, DATA)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        monkeypatch.setattr(transfer._OneTryStore, "_cache", {})
        with pytest.raises(VideoAccessDenied):
            open_video(ref, Decode())


class TestS3Requests:
    def test_every_request_is_pinned_to_the_listed_version(self, server):
        server.data = mp4(17 * MIB)
        with open_video(s3_ref(server), Decode()) as video:
            video.fetch([(MIB, MIB + 1)])
        assert server.conditions_asked == ['"e1"', '"e1"']

    def test_without_a_listed_etag_the_first_answer_decides(self, server):
        server.data = mp4(17 * MIB)
        with open_video(s3_ref(server, content_key="made by hand"), Decode()) as video:
            server.etag = "e2"
            with pytest.raises(VideoChanged):
                video.fetch([(MIB, MIB + 1)])
        assert server.conditions_asked == [None, '"e1"']

    def test_a_server_without_etags(self, server):
        server.etag = None
        with open_video(s3_ref(server, content_key="made by hand"), Decode()) as video:
            assert content(video) == DATA

    def test_a_version_that_the_server_does_not_mind(self, server):
        server.conditions, server.etag = False, "e2"
        with pytest.raises(VideoChanged):
            open_video(s3_ref(server, content_key=f"{len(DATA)}-e1"), Decode())
        assert len(server.asked) == 1

    @pytest.mark.parametrize("listed", [len(DATA) - 1, len(DATA) + 1])
    def test_another_size_than_the_listed_one(self, server, listed):
        with pytest.raises(VideoChanged):
            open_video(s3_ref(server, size_bytes=listed), Decode())
        assert len(server.asked) == 1

    def test_parts_come_at_the_same_time(self, server, monkeypatch):
        monkeypatch.setattr(transfer, "PART_BYTES", 1000)
        monkeypatch.setattr(transfer, "PARALLEL", 3)
        server.latency_seconds = 0.05
        with open_video(s3_ref(server), Decode()) as video:
            assert content(video) == DATA
            assert video.requests == -(-len(DATA) // 1000)
        assert 2 <= server.busiest <= 3
        assert server.connections <= 3

    def test_near_ranges_are_joined_and_far_ones_are_not(self, server):
        server.data = mp4(17 * MIB)
        gap = fetch.GAP_BYTES
        with open_video(s3_ref(server), Decode()) as video:
            server.asked.clear()
            near = [(2 * MIB + 100 + gap - 1, 3 * MIB), (2 * MIB, 2 * MIB + 100)]
            video.fetch([*near, (3 * MIB + gap, 4 * MIB), (2 * MIB + 50, 2 * MIB + 70), (7, 7)])
            assert sorted(server.asked) == [(2 * MIB, 3 * MIB), (3 * MIB + gap, 4 * MIB)]
            assert content(video)[2 * MIB : 3 * MIB] == server.data[2 * MIB : 3 * MIB]
            server.asked.clear()
            video.fetch([(2 * MIB, 4 * MIB)])
            assert server.asked == [(3 * MIB, 3 * MIB + gap)]
            video.fetch([(0, 100), (2 * MIB, 4 * MIB)])
            assert len(server.asked) == 1

    def test_reading_it_as_a_file_brings_what_is_read(self, server):
        server.data = mp4(17 * MIB)
        with open_video(s3_ref(server), Decode()) as video:
            file = video.as_file()
            file.seek(9 * MIB)
            assert file.read(10) == server.data[9 * MIB :][:10]
            assert video.present == ((0, 256 * KIB), (9 * MIB, 9 * MIB + 256 * KIB))

    def test_sizes_are_checked_before_anything_is_asked(self, server):
        with pytest.raises(VideoEmpty):
            open_video(s3_ref(server, size_bytes=0), Decode())
        with pytest.raises(VideoOverBudget):
            open_video(s3_ref(server), Decode(max_bytes=100))
        assert server.asked == []

    def test_a_server_that_knows_no_ranges(self, server):
        server.ranges = False
        with open_video(s3_ref(server), Decode()) as video:
            assert content(video) == DATA
        server.data = mp4(17 * MIB)
        with (
            open_video(s3_ref(server), Decode()) as video,
            pytest.raises(VideoTransientIO, match="other bytes"),
        ):
            video.fetch([(MIB, MIB + 1)])

    def test_no_part_is_held_in_memory(self, server):
        server.data = matroska(40 * MIB)
        ref = s3_ref(server)
        tracemalloc.start()
        try:
            with open_video(ref, Decode()) as video:
                assert video.complete
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 16 * MIB
