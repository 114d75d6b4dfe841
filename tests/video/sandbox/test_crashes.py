import io
import os
import signal
import time

import av
import pytest

from indexer.config import Decode
from indexer.records import DecodedClips, VideoFailure
from indexer.video.sandbox import Sandbox
from indexer.video.sandbox import template as template_module
from tests.video.sandbox.abuse import (
    HOSTILE,
    THRIFTY,
    UNITS,
    Bytes,
    assert_same,
    codes,
    in_process,
    is_gone,
    items_of,
    plan_of,
    template_and_worker,
    wait_until,
)
from tests.video.synth import Synth


def large_video():
    """Two grey frames of 32 million pixels, in some 100 kB."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 8192, 4096, "yuv420p"
        for pts in range(2):
            frame = av.VideoFrame(8192, 4096, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([128]) * plane.buffer_size)
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


class TestCrashes:
    @pytest.mark.parametrize(
        ("deed", "code", "words"),
        [
            ("segv", "decoder_crash", "SIGSEGV"),
            ("exit", "decoder_crash", "exit code 3"),
            ("killed", "decoder_crash", "no memory left"),
            ("bomb", "over_budget", "too much"),
        ],
    )
    def test_one_failure_and_the_next_video_decodes(self, sandbox, video, deed, code, words):
        (failure,) = items_of(sandbox, video, deed)
        assert (failure.code, failure.unit_index, failure.units) == (code, 0, 1)
        assert words in failure.message
        started = time.monotonic()
        assert codes(items_of(sandbox, video)) == [""] * UNITS
        assert time.monotonic() - started < 1.0

    def test_a_worker_that_takes_too_much_cpu_time_is_killed(self, video):
        with Sandbox(plan_of(decode=THRIFTY), module=HOSTILE) as sandbox:
            outcomes = list(sandbox.decode(video, video_id="spin:2"))
        items, seconds = zip(*outcomes, strict=True)
        assert codes(items) == ["", "", "over_budget", "over_budget"]
        assert "decode.max_cpu_seconds = 1" in items[2].message
        assert 0.9 < seconds[2] < 4.0
        assert seconds[3] == 0.0

    def test_a_hang_is_killed_at_the_deadline(self, hasty, video):
        started = time.monotonic()
        (failure,) = items_of(hasty, video, "hang")
        assert failure.code == "timeout"
        assert "decode.deadline_seconds = 2" in failure.message
        assert 1.9 < time.monotonic() - started < 8.0
        assert codes(items_of(hasty, video)) == [""] * UNITS

    def test_the_deadline_is_for_a_unit_not_for_the_consumer(self, hasty, video):
        items = hasty.decode(video, video_id="v")
        assert isinstance(next(items)[0], DecodedClips)
        time.sleep(2.2)
        assert codes([item for item, _ in items]) == [""] * (UNITS - 1)

    def test_a_crash_midway_costs_the_units_that_are_left(self, sandbox, data, video):
        items = items_of(sandbox, video, "segv:1", skip_units=frozenset({2}))
        assert_same(items[:1], in_process(data, plan_of())[:1])
        assert [(item.unit_index, item.units) for item in items] == [(0, 4), (1, 4), (3, 4)]
        assert isinstance(items[1], VideoFailure)
        assert items[2].info == items[0].info

    def test_a_hang_midway_costs_the_units_that_are_left(self, hasty, video):
        assert codes(items_of(hasty, video, "hang:2")) == ["", "", "timeout", "timeout"]

    def test_the_worker_that_ran_out_of_memory_is_not_used_again(self, sandbox, video):
        items_of(sandbox, video)
        before = template_and_worker(sandbox)
        assert codes(items_of(sandbox, video, "bomb")) == ["over_budget"]
        items_of(sandbox, video)
        after = template_and_worker(sandbox)
        assert after[0] == before[0]
        assert after[1:] != before[1:]

    def test_a_real_decoder_gets_no_more_memory_than_its_budget(self):
        small, large = Synth(frames=12).encode(), large_video()
        plan = plan_of(decode=Decode(max_memory_bytes=64 * 2**20))
        with Sandbox(plan) as sandbox:
            (failure,) = items_of(sandbox, Bytes(large))
            # libavcodec's H.264 decoder calls it invalid data when it gets no memory for a frame
            assert failure.code in {"over_budget", "corrupt"}
            assert codes(items_of(sandbox, Bytes(small))) == [""]
        with Sandbox(plan_of()) as sandbox:
            assert codes(items_of(sandbox, Bytes(large))) == [""]

    def test_survey_of_hostile_videos(self, sandbox, video):
        assert sandbox.survey(video, video_id="segv").code == "decoder_crash"
        assert sandbox.survey(video, video_id="bomb").code == "over_budget"
        assert sandbox.survey(video, video_id="v").units == UNITS

    def test_a_worker_killed_between_two_videos_costs_nothing(self, sandbox, video):
        items_of(sandbox, video)
        _, worker = template_and_worker(sandbox)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: is_gone(worker))
        assert codes(items_of(sandbox, video)) == [""] * UNITS

    def test_a_worker_killed_within_a_video(self, sandbox, video):
        items = sandbox.decode(video, video_id="v")
        next(items)
        os.kill(template_and_worker(sandbox)[1], signal.SIGKILL)
        rest = [item for item, _ in items]
        assert codes(rest) == ["decoder_crash"] * (UNITS - 1)
        assert codes(items_of(sandbox, video)) == [""] * UNITS

    def test_a_template_killed_between_two_videos_costs_nothing(self, sandbox, video):
        items_of(sandbox, video)
        template, worker = template_and_worker(sandbox)
        os.kill(template, signal.SIGKILL)
        wait_until(lambda: is_gone(worker))
        assert codes(items_of(sandbox, video)) == [""] * UNITS

    def test_a_template_killed_within_a_video(self, sandbox, video):
        items = sandbox.decode(video, video_id="v")
        next(items)
        template, worker = template_and_worker(sandbox)
        os.kill(template, signal.SIGKILL)
        wait_until(lambda: is_gone(worker))
        assert codes([item for item, _ in items]) == ["decoder_crash"] * (UNITS - 1)
        assert codes(items_of(sandbox, video)) == [""] * UNITS

    def test_a_template_that_hangs_is_replaced(self, sandbox, video, monkeypatch):
        monkeypatch.setattr(template_module, "REPLY_SECONDS", 0.3)
        items = sandbox.decode(video, video_id="v")
        next(items)
        template, worker = template_and_worker(sandbox)
        os.kill(template, signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)
        assert codes([item for item, _ in items]) == ["decoder_crash"] * (UNITS - 1)
        assert is_gone(template)
        monkeypatch.undo()
        assert codes(items_of(sandbox, video)) == [""] * UNITS

    def test_a_message_is_one_line(self, sandbox, video):
        (failure,) = items_of(sandbox, video, "multiline")
        assert failure.message == "two lines"
