import os
import re
from pathlib import Path

import pytest

from indexer.config import Decode
from indexer.video.sandbox import Sandbox
from tests.video.sandbox.abuse import HOSTILE, SECRET, items_of, plan_of, template_and_worker


class TestConfinement:
    @pytest.mark.parametrize(
        ("probe", "result"),
        [
            ("file", "Too many open files"),
            ("socket", "Too many open files"),
            ("pipe", "Too many open files"),
            ("memfd", "Too many open files"),
            ("files", "[0, 1, 2, 3, 4, 5]"),
            ("more files", "ValueError"),
            ("more memory", "ValueError"),
            ("capabilities", "[0, 0, 0, 0, 0, 0]"),
            ("core", "(0, 0)"),
            ("dumpable", "0"),
            ("no_new_privs", "1"),
            ("shrink frames", "Operation not permitted"),
            ("grow frames", "Operation not permitted"),
        ],
    )
    def test_what_a_worker_cannot_do(self, sandbox, video, probe, result):
        with_probe = sandbox.decode(video, video_id=f"probe:{probe}")
        assert next(with_probe)[0].message == result
        with_probe.close()

    def test_no_secret_reaches_the_children(self, monkeypatch, video):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("INDEXER_INDEX", SECRET)
        with Sandbox(plan_of(), module=HOSTILE) as sandbox:
            items = sandbox.decode(video, video_id="probe:environment")
            names = next(items)[0].message
            template, *_ = template_and_worker(sandbox)
            environment = Path(f"/proc/{template}/environ").read_bytes()
        assert "PYTHONPATH" in names
        assert not re.search("AWS|INDEXER", names)
        assert SECRET.encode() not in environment

    def test_the_kernel_short_of_memory_takes_the_worker_first(self, sandbox, video):
        items_of(sandbox, video)
        _, worker = template_and_worker(sandbox)
        assert Path(f"/proc/{worker}/oom_score_adj").read_text() == "1000\n"

    def test_an_interrupt_from_the_terminal_does_not_reach_the_children(self, sandbox, video):
        items_of(sandbox, video)
        groups = {os.getpgid(pid) for pid in template_and_worker(sandbox)}
        assert os.getpgid(0) not in groups

    def test_cuda_devices_are_passed_on_to_a_cuda_decoder_only(self, monkeypatch, video):
        seen = []
        for device, devices in [("cpu", "0"), ("cuda", "0"), ("cuda", "")]:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
            plan = plan_of(decode=Decode(device=device))
            with Sandbox(plan, module=HOSTILE) as sandbox:
                item, _ = next(sandbox.decode(video, video_id="probe:environment"))
            seen.append("CUDA_VISIBLE_DEVICES" in item.message)
        assert seen == [False, True, False]

    def test_a_cuda_decoder_may_open_its_devices(self, video):
        with Sandbox(plan_of(decode=Decode(device="cuda")), module=HOSTILE) as sandbox:
            item, _ = next(sandbox.decode(video, video_id="probe:memfd"))
        assert item.message.isdigit()
