"""Takes the protections out one at a time, and sees that the test of each then fails.

python -m tests.sabotage [NAME ...]

Works on a copy of the repository. The list is checked by `test_sabotage.py`: a protection that
moved, or a test that was renamed, must be followed here.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[1]
_COPIED: Final = ("indexer", "jobs", "tests", "benchmarks", "deploy", "docs")
_TESTS_FAILED: Final = 1
"""What pytest exits with where tests ran and some failed: other codes mean that none ran."""

_LIMIT_SECONDS: Final = 900


@dataclass(frozen=True, slots=True)
class Sabotage:
    """A protection, how to take it out, and what must then fail.

    Attributes:
        file: in which it is, below `indexer/`.
        code: of the protection; once in the file.
        instead: what to put in its place.
        test: which fails without it; passes with it.
    """

    file: str
    code: str
    instead: str
    test: str


SABOTAGES: Final[dict[str, Sabotage]] = {
    "a transaction in the log is not made again": Sabotage(
        "table/commit.py",
        "return (table.transaction_version(record.application) or 0) >= record.sequence",
        "return False",
        "table/test_commit.py::test_the_same_sequence_twice_is_one_commit",
    ),
    "a transaction of another job is not taken for ours": Sabotage(
        "table/commit.py",
        "if files and not self._has_added(",
        "if False and not self._has_added(",
        "table/test_commit.py::test_one_run_id_used_by_two_jobs_is_noticed_before_rows_are_lost",
    ),
    "a lost reply is recognised": Sabotage(
        "table/commit.py",
        "except (DeltaError, OSError) as error:\n                if applied():",
        "except (DeltaError, OSError) as error:\n                if False:",
        "table/test_commit.py::test_a_removal_whose_reply_was_lost_is_recognised",
    ),
    "units are committed whole": Sabotage(
        "table/commit.py",
        "            _check_whole(fresh)\n",
        "",
        "table/test_commit.py::test_files_that_are_no_whole_units_are_refused",
    ),
    "who was taken over cannot commit": Sabotage(
        "table/commit.py",
        "if epoch > self._lease.epoch:",
        "if epoch < 0:",
        "table/test_lease.py::test_an_owner_that_wakes_up_after_a_take_over_commits_nothing_of_its_own",
    ),
    "the tables refuse earlier owners": Sabotage(
        "table/recovery.py",
        "    TableLogs(paths, tag).fence(epochs)\n",
        "",
        "table/test_lease.py::test_an_owner_that_was_taken_over_is_fenced_before_the_new_one_commits",
    ),
    "a half-done commit is rolled forward": Sabotage(
        "table/recovery.py",
        "            logs.finish(record)",
        "            pass",
        "table/test_recovery.py::test_a_half_done_commit_is_rolled_forward_once",
    ),
    "a half-done commit stops who would count on": Sabotage(
        "table/commit.py",
        "if begun != done:",
        "if begun < done:",
        "table/test_recovery.py::test_a_half_done_commit_stops_who_would_count_on",
    ),
    "orphans are removed": Sabotage(
        "table/recovery.py",
        "list(pool.map(storage.delete, orphans))",
        "pass",
        "table/test_recovery.py::test_what_no_commit_names_is_removed_with_its_bytes",
    ),
    "a file says what its receipt says": Sabotage(
        "runtime/tally.py",
        "        _check_rows(receipt)\n",
        "",
        "runtime/test_tally.py::test_files_that_hold_something_else_than_their_receipt_says_are_refused",
    ),
    "what a stage gives twice is taken once": Sabotage(
        "runtime/tally.py",
        "if any(self._has_arrived(unit) for unit in receipt.units):",
        "if not receipt.units:",
        "runtime/test_tally.py::test_what_has_arrived_before_is_not_taken_again",
    ),
    "a plan of another job is not held against this one": Sabotage(
        "runtime/planned.py",
        "if made.model != tag:",
        "if not tag:",
        "runtime/test_planned.py::test_what_is_no_plan_of_this_job_is_refused",
    ),
    "of a growing cluster the actors count that are there": Sabotage(
        "runtime/verdict.py",
        "    if pools.growing:\n        pools = _present(counts, pools, elapsed_seconds)\n",
        "",
        "runtime/test_verdict.py::test_of_a_growing_cluster_the_actors_count_that_are_there",
    ),
    "requests are pinned to a version": Sabotage(
        "video/transfer.py",
        """pin = {"IfMatch": f'"{self._etag}"'} if self._etag else {}""",
        "pin: dict[str, str] = {}",
        "video/fetch/test_s3.py::TestS3Requests::test_every_request_is_pinned_to_the_listed_version",
    ),
    "a server that does not mind the pin is not believed": Sabotage(
        "video/transfer.py",
        'if etag not in ("", self._etag) or total != self._ref.size_bytes:',
        "if total != self._ref.size_bytes:",
        "video/fetch/test_s3.py::TestS3Requests::test_a_version_that_the_server_does_not_mind",
    ),
    "a body that stays short is no video": Sabotage(
        "video/transfer.py",
        "            raise VideoTruncated(message)\n        self._landing.write",
        "            raise VideoTransientIO(message)\n        self._landing.write",
        "video/fetch/test_s3_faults.py::TestS3Faults::test_bodies_that_stay_short_are_truncated",
    ),
    "FFmpeg gets no name": Sabotage(
        "video/probe.py",
        "    nameless = _Nameless(file)\n",
        "    nameless = file\n",
        "video/test_probe.py::TestReach::test_ffmpeg_does_not_learn_what_the_file_is_called",
    ),
    "a file that is cut short is told": Sabotage(
        "video/packets.py",
        "if not complete and (cut := cut_short(file)):",
        'if cut := "":',
        "video/test_probe.py::TestRefusals",
    ),
    "encrypted packets are refused": Sabotage(
        "video/packets.py",
        "            _refuse_encrypted(packets[0])\n",
        "            pass\n",
        "video/test_probe.py",
    ),
    "frames are counted while packets are read": Sabotage(
        "video/packets.py",
        "if len(self.pts) + len(packets) > self._max_frames:",
        "if not packets:",
        "video/test_probe.py::TestRefusals",
    ),
    "containers without clocks are decoded in full": Sabotage(
        "video/packets.py",
        'frozenset({"avi", "h264", "hevc"})',
        "frozenset[str]()",
        "video/test_frames.py::test_generated_videos",
    ),
    "a timeline that is refuted is dropped": Sabotage(
        "video/frames.py",
        "            raise TimelineRefutedError",
        "            return",
        "video/test_decode.py",
    ),
    "the neighbourhood of damage is decoded in full": Sabotage(
        "video/frames.py",
        "        if missing:\n            for sampled in _repaired(",
        "        if missing and not run:\n            for sampled in _repaired(",
        "video/test_decode.py::TestDamage",
    ),
    "a packet that does not decode is passed over": Sabotage(
        "video/decoder.py",
        "except av.error.FFmpegError:",
        "except ZeroDivisionError:",
        "video/test_decode.py::TestDamage",
    ),
    "what FFmpeg gives up on is the video's fault": Sabotage(
        "video/decode.py",
        "except av.error.FFmpegError as error:",
        "except ZeroDivisionError as error:",
        "video/test_decode.py::TestDamage::test_what_ffmpeg_cannot_convert_is_corrupt",
    ),
    "memory that runs out is not called bad data": Sabotage(
        "video/probe.py",
        "    except av.error.MemoryError:\n        raise\n",
        "",
        "video/test_hostile.py::test_a_bomb_takes_no_more_than_its_budget",
    ),
    "frames of a thinned stretch are held back": Sabotage(
        "video/decoder.py",
        "while self._held and self._held[0][0] < next(iter(self._awaited), self._held[0][0] + 1):",
        "while self._held:",
        "video/test_feeding.py::test_a_reference_that_is_lost_spoils_nothing",
    ),
    "parameter sets are watched where most frames are wanted": Sabotage(
        "video/feeding.py",
        "            self._read(packet, self._headers.pass_over)\n",
        "",
        "video/test_feeding.py::test_what_changes_where_most_are_wanted_is_seen_where_few_are",
    ),
    "what is shown again fills the slots that a key frame fills": Sabotage(
        "video/references.py",
        "if frame.is_shown_again and any(slots[slot].is_key for slot in frame.named):",
        "if not packet.frames:",
        "video/test_av1.py::test_a_key_frame_that_is_shown_again_fills_all_slots",
    ),
    "a worker's memory is limited": Sabotage(
        "video/sandbox/child.py",
        "        confine.limit_memory(plan.decode.max_memory_bytes)\n",
        "",
        "video/sandbox/test_confinement.py::TestConfinement::test_what_a_worker_cannot_do",
    ),
    "a worker may open no files": Sabotage(
        "video/sandbox/child.py",
        "        confine.limit_files(1)  # the video\n",
        "",
        "video/sandbox/test_confinement.py::TestConfinement::test_what_a_worker_cannot_do",
    ),
    "a worker has no privileges": Sabotage(
        "video/sandbox/child.py",
        "    confine.give_up_privileges()\n",
        "",
        "video/sandbox/test_confinement.py::TestConfinement::test_what_a_worker_cannot_do",
    ),
    "a worker's CPU time is limited": Sabotage(
        "video/sandbox/child.py",
        "confine.limit_cpu(self._plan.decode.max_cpu_seconds)",
        "pass",
        "video/sandbox/test_crashes.py::TestCrashes::test_a_worker_that_takes_too_much_cpu_time_is_killed",
    ),
    "a worker dies with what forked it": Sabotage(
        "video/sandbox/confine.py",
        "    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)\n",
        "",
        "video/sandbox/test_life.py::TestLife::test_a_worker_that_hangs_ends_when_nobody_is_left_to_kill_it",
    ),
    "units have a deadline": Sabotage(
        "video/sandbox/parent.py",
        "return decode_answer(self._channel.receive(deadline=self._deadline))",
        "return decode_answer(self._channel.receive(deadline=self._deadline + 60))",
        "video/sandbox/test_crashes.py::TestCrashes::test_a_hang_is_killed_at_the_deadline",
    ),
    "a worker cannot promise units without end": Sabotage(
        "video/sandbox/wire.py",
        "units: Annotated[int, Field(ge=1, le=MAX_CLIPS)]",
        "units: Annotated[int, Field(ge=1)]",
        "video/sandbox/test_answers.py::TestAnswersOfATakenOverWorker::test_nonsense_is_a_crash",
    ),
    "workers are recycled": Sabotage(
        "video/sandbox/parent.py",
        "self.videos >= RECYCLE_VIDEOS",
        "self.videos < 0",
        "video/sandbox/test_life.py::TestLife::test_a_worker_is_recycled",
    ),
}


def main() -> int:
    """Runs the list; the number of protections that no test missed is the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.sabotage", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of names; default: all")
    names: list[str] = parser.parse_args().names
    chosen = [name for name in SABOTAGES if not names or any(part in name for part in names)]
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        _copy_repository(copy)
        for name in chosen:
            is_noticed = _is_noticed(copy, SABOTAGES[name])
            unnoticed += not is_noticed
            print("noticed  " if is_noticed else "UNNOTICED", name, flush=True)
    print(f"{len(chosen) - unnoticed} of {len(chosen)} noticed")
    return min(unnoticed, 1)


def _copy_repository(copy: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for name in _COPIED:
        shutil.copytree(REPOSITORY / name, copy / name, ignore=ignored)
    for file in REPOSITORY.glob("*.*"):
        if file.is_file():
            shutil.copy(file, copy)


def _is_noticed(copy: Path, sabotage: Sabotage) -> bool:
    file = copy / "indexer" / sabotage.file
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace(sabotage.code, sabotage.instead), encoding="utf-8")
    try:
        return _run([sabotage.test], copy) == _TESTS_FAILED
    finally:
        file.write_text(whole, encoding="utf-8")


def _run(tests: Iterable[str], copy: Path) -> int:
    nodes = [f"tests/{test}" for test in tests]
    command = [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "-p", "no:cacheprovider", *nodes]
    return subprocess.run(
        command,
        check=False,
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_LIMIT_SECONDS,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
