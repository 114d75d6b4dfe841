import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from indexer.errors import ClusterError
from indexer.video.sandbox import Sandbox
from indexer.video.sandbox import parent as sandbox_module
from indexer.video.sandbox import template as template_module
from tests.video.sandbox.abuse import (
    HOSTILE,
    PATIENT,
    REPOSITORY,
    SHARED_MEMORY,
    UNITS,
    assert_same,
    children,
    codes,
    in_process,
    is_gone,
    items_of,
    open_files,
    plan_of,
    template_and_worker,
    wait_until,
)


class TestLife:
    def test_nothing_starts_before_it_is_needed(self):
        with Sandbox(plan_of(), module="indexer.video.no_such_module"):
            pass

    def test_a_worker_is_recycled(self, sandbox, video, monkeypatch):
        monkeypatch.setattr(sandbox_module, "RECYCLE_VIDEOS", 2)
        seen = []
        for _ in range(5):
            items = sandbox.decode(video, video_id="v")
            next(items)
            seen.append(template_and_worker(sandbox))
            assert codes([item for item, _ in items]) == [""] * (UNITS - 1)
        templates, workers = zip(*seen, strict=True)
        assert len(set(templates)) == 1
        assert len(set(workers)) >= 3

    @pytest.mark.parametrize(("resize", "loads"), [("fast", False), ("exact", True)])
    def test_torch_is_loaded_by_those_that_resize_with_it(self, video, resize, loads):
        with Sandbox(plan_of(decode=PATIENT.model_copy(update={"resize": resize}))) as sandbox:
            items = sandbox.decode(video, video_id="v")
            assert codes([next(items)[0]]) == [""]
            maps = [Path(f"/proc/{pid}/maps").read_text() for pid in template_and_worker(sandbox)]
            assert ["libtorch" in text for text in maps] == [loads] * 2

    def test_a_video_that_nobody_wants_to_the_end(self, sandbox, data, video):
        items = sandbox.decode(video, video_id="v")
        next(items)
        items.close()
        assert_same(items_of(sandbox, video), in_process(data, plan_of()))

    def test_two_videos_at_once_are_refused(self, sandbox, video):
        items = sandbox.decode(video, video_id="v")
        next(items)
        with pytest.raises(RuntimeError, match="busy"):
            next(sandbox.decode(video, video_id="v"))
        assert len(list(items)) == UNITS - 1

    def test_it_ends_its_processes_and_starts_again(self, video):
        sandbox = Sandbox(plan_of())
        with sandbox:
            items_of(sandbox, video)
            pids = template_and_worker(sandbox)
        wait_until(lambda: all(map(is_gone, pids)))
        with sandbox:
            assert codes(items_of(sandbox, video)) == [""] * UNITS

    def test_no_descriptor_is_left_open(self, video):
        before = open_files()
        with Sandbox(plan_of(), module=HOSTILE) as sandbox:
            for video_id in ("v", "segv", "v", "segv", "v"):
                items_of(sandbox, video, video_id)
            assert open_files() == before + 3
        assert open_files() == before

    def test_a_machine_without_a_working_child_is_an_error(self, video, capfd):
        with (
            Sandbox(plan_of(), module="indexer.video.no_such_module") as sandbox,
            pytest.raises(ClusterError, match="exit code 1, 3 times"),
        ):
            items_of(sandbox, video)
        assert "no_such_module" in capfd.readouterr().err

    def test_a_child_that_does_not_get_ready_is_an_error(self, video, monkeypatch):
        monkeypatch.setattr(template_module, "START_SECONDS", 0.05)
        with Sandbox(plan_of()) as sandbox, pytest.raises(ClusterError):
            items_of(sandbox, video)

    def test_a_template_that_cannot_fork_is_an_error(self, video):
        with (
            Sandbox(plan_of(), module="tests.video.dying_template") as sandbox,
            pytest.raises(ClusterError, match="cannot be forked"),
        ):
            items_of(sandbox, video)

    def test_closing_within_a_video_fails_what_is_left(self, video):
        with Sandbox(plan_of()) as sandbox:
            items = sandbox.decode(video, video_id="v")
            next(items)
        assert codes([item for item, _ in items]) == ["decoder_crash"] * (UNITS - 1)

    def test_death_of_the_actor_ends_everything(self, data, tmp_path):
        before = set(SHARED_MEMORY.iterdir())
        with at_work(data, tmp_path) as (actor, template, worker):
            actor.kill()
            wait_until(lambda: is_gone(template) and is_gone(worker), 2.0)
        assert set(SHARED_MEMORY.iterdir()) == before

    def test_a_worker_that_hangs_ends_when_nobody_is_left_to_kill_it(self, data, tmp_path):
        with at_work(data, tmp_path, "hang:1") as (actor, template, worker):
            os.kill(actor.pid, signal.SIGSTOP)  # it would kill the worker
            os.kill(template, signal.SIGKILL)
            try:
                wait_until(lambda: is_gone(worker), 2.0)
            finally:
                actor.kill()
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)


@contextmanager
def at_work(data, folder, *words):
    """A process that decodes, as an actor does, and the pids of the two that it has started."""
    path = folder / "video.mp4"
    path.write_bytes(data)
    command = [sys.executable, "-c", ACTOR, str(path), *words]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as actor:
        assert actor.stdout is not None
        assert actor.stdout.readline() == "at work\n"
        (template,) = children(actor.pid)
        (worker,) = children(template)
        yield actor, template, worker


ACTOR = """
import sys, time
from indexer.video.sandbox import Sandbox
from tests.video.sandbox.abuse import HOSTILE, Bytes, plan_of
video_id = (*sys.argv[2:], "v")[0]
sandbox = Sandbox(plan_of(), **({"module": HOSTILE} if video_id != "v" else {}))
items = sandbox.decode(Bytes(open(sys.argv[1], "rb").read()), video_id=video_id)
next(items)
print("at work", flush=True)
next(items) if video_id != "v" else time.sleep(60)
"""
