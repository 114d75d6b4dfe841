import json

import pytest

from indexer.records import Preprocessing
from indexer.video.plan import MAX_CLIPS
from indexer.video.sandbox import Sandbox
from tests.video.sandbox.abuse import HOSTILE, SHAPE, UNITS, Bytes, codes, items_of, plan_of
from tests.video.synth import Synth

SPAN = {
    "clip_index": 0,
    "start_seconds": 0.0,
    "end_seconds": 1.0,
    "frame_pts_seconds": [0.0, 0.1, 0.2, 0.3],
    "frames_exact": True,
}
INFO = {
    "width": 64,
    "height": 48,
    "codec": "h264",
    "fps": 30.0,
    "rotation": 0,
    "duration_seconds": 1.0,
    "warnings": [],
}
UNIT = {
    "kind": "unit",
    "unit_index": 0,
    "units": 2,
    "info": INFO,
    "spans": [SPAN, SPAN | {"clip_index": 1}],
    "shape": SHAPE,
    "cpu_seconds": 0.1,
    "codec_seconds": 0.05,
}
SECOND = UNIT | {
    "unit_index": 1,
    "spans": [SPAN | {"clip_index": 2}, SPAN | {"clip_index": 3}],
}
FAILURE = {"code": "corrupt", "message": "", "unit_index": 0, "units": 2, "info": None}
FAILED = {"kind": "failed", "failure": FAILURE, "cpu_seconds": 0.1}
SURVEY = {
    "kind": "surveyed",
    "survey": {"duration_seconds": 1.0, "clips": 1, "units": 1, "trusted": True},
    "cpu_seconds": 0.1,
}
END = {"kind": "end"}


def said(*messages):
    lines = [line if isinstance(line, str) else json.dumps(line) for line in messages]
    return "say:" + "\n".join(lines)


class TestAnswersOfATakenOverWorker:
    def test_what_is_well_formed_passes(self, sandbox, video):
        items = items_of(sandbox, video, said(UNIT, SECOND, END))
        assert codes(items) == ["", ""], items
        assert [item.frames_NTHWC.shape for item in items] == [SHAPE] * 2

    @pytest.mark.parametrize(
        "words",
        [
            "no json",
            "[]",
            "{}",
            {"kind": "unheard of"},
            UNIT | {"more": 1},
            UNIT | {"unit_index": 2},
            UNIT | {"unit_index": -1},
            UNIT | {"units": MAX_CLIPS + 1},
            UNIT | {"unit_index": "0"},
            UNIT | {"shape": (2, 4, 32, 32)},
            UNIT | {"shape": (2, 4, 32, 33, 3)},
            UNIT | {"shape": (1, 4, 32, 32, 3)},
            UNIT | {"shape": (2, 5, 32, 32, 3)},
            UNIT | {"shape": (2, 4, 32, 32, 0)},
            UNIT | {"shape": (2, 4, 2**40, 2**40, 3)},
            UNIT | {"spans": [SPAN, SPAN]},
            UNIT | {"spans": [SPAN, SPAN | {"clip_index": 1, "frame_pts_seconds": [0.0]}]},
            UNIT | {"spans": [SPAN, SPAN | {"clip_index": 1, "end_seconds": 0.0}]},
            UNIT | {"info": INFO | {"width": 2**80}},
            UNIT | {"info": INFO | {"rotation": 45}},
            UNIT | {"info": INFO | {"fps": float("nan")}},
            UNIT | {"info": INFO | {"codec": "h" * 2000}},
            UNIT | {"info": INFO | {"warnings": ["w"] * 200}},
            UNIT | {"cpu_seconds": -1.0},
            UNIT | {"cpu_seconds": float("inf")},
            UNIT | {"codec_seconds": -1.0},
            FAILED | {"failure": FAILURE | {"code": "no such code"}},
            FAILED | {"failure": FAILURE | {"message": "m" * 2000}},
            FAILED | {"failure": FAILURE | {"unit_index": 2}},
            FAILED | {"failure": FAILURE | {"units": 10**9}},
            FAILED | {"failure": FAILURE | {"info": INFO | {"rotation": 45}}},
            SURVEY,
            END,
        ],
        ids=str,
    )
    def test_nonsense_is_a_crash(self, sandbox, video, words):
        items = items_of(sandbox, video, said(words))
        assert codes(items) == ["decoder_crash"]
        assert codes(items_of(sandbox, video)) == [""] * UNITS

    @pytest.mark.parametrize(
        "second",
        [
            UNIT,
            UNIT | {"unit_index": 1},
            SECOND | {"units": 3},
            SECOND | {"unit_index": 0},
            FAILED,
            FAILED | {"failure": FAILURE | {"units": 1}},
            END,
        ],
        ids=["again", "same clips", "other units", "same unit", "fails too", "whole video", "end"],
    )
    def test_nonsense_after_the_first_unit_costs_the_others(self, sandbox, video, second):
        items = items_of(sandbox, video, said(UNIT, second))
        assert codes(items) == ["", "decoder_crash"]
        assert [item.unit_index for item in items] == [0, 1]

    def test_a_message_larger_than_any_is_not_waited_for(self, hasty, video):
        assert codes(items_of(hasty, video, "boast")) == ["decoder_crash"]

    def test_a_unit_that_was_not_wanted(self, sandbox, video):
        items = items_of(sandbox, video, said(UNIT), skip_units=frozenset({0}))
        assert codes(items) == ["decoder_crash"]

    def test_more_clips_than_a_unit_may_have(self, sandbox, video):
        spans = [SPAN | {"clip_index": index} for index in range(3)]
        words = said(UNIT | {"spans": spans, "shape": (3, 4, 32, 32, 3)})
        assert codes(items_of(sandbox, video, words)) == ["decoder_crash"]

    @pytest.mark.parametrize(
        "words",
        [
            said(UNIT),
            said(END),
            said(SURVEY, SURVEY),
            said(SURVEY | {"survey": SURVEY["survey"] | {"clips": -1}}),
            said(SURVEY | {"survey": SURVEY["survey"] | {"units": 10}}),
            said(SURVEY | {"survey": SURVEY["survey"] | {"clips": MAX_CLIPS + 1}}),
        ],
    )
    def test_nonsense_for_a_survey(self, sandbox, video, words):
        assert sandbox.survey(video, video_id=words).code == "decoder_crash"

    def test_frames_larger_than_their_room(self, data):
        recipe = Preprocessing(8, None, "bilinear", 1, (0.5,) * 3, (0.5,) * 3)
        with Sandbox(plan_of(recipe), module=HOSTILE) as sandbox:
            words = said(UNIT | {"shape": (2, 4, 8, 1000, 3)})
            assert codes(items_of(sandbox, Bytes(data), words)) == ["decoder_crash"]
            long = Bytes(Synth(frames=12, width=640, height=16).encode())
            assert codes(items_of(sandbox, long)) == ["over_budget"]
