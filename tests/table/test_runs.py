"""What the reports of runs say of those that were killed."""

from dataclasses import replace

import pytest

from indexer import storage
from indexer.table import catalog, lease
from indexer.table.query import LabelIndex
from indexer.table.runs import run_reports
from tests.table.make import TAG, Run, new_index, unit


@pytest.fixture
def paths(tmp_path):
    return new_index(str(tmp_path / "index"))


def begin(paths, run_id, status="running"):
    report = {"status": status, "model": TAG, "started_at": run_id}
    catalog.write_run_report(paths, run_id, report)


def states(paths):
    return {report["run_id"]: report["status"] for report in run_reports(paths)}


def test_a_run_that_holds_its_lease_runs_and_one_without_has_died(paths):
    begin(paths, "earlier", "finished")
    begin(paths, "killed")
    begin(paths, "stopped", "interrupted")
    with lease.held(paths, TAG, "1-of-2", "at-work"):
        begin(paths, "at-work")
        expected = {"earlier": "finished", "killed": "died", "stopped": "interrupted"}
        assert states(paths) == expected | {"at-work": "running"}


def test_a_silent_run_elsewhere_runs_until_it_is_taken_over(paths):
    begin(paths, "elsewhere")
    record = replace(lease._new_record("1-of-1", 1, "elsewhere"), machine="another")
    storage.write_bytes(paths.lease_json(TAG, "1-of-1", 1), record.dump())
    assert states(paths) == {"elsewhere": "running"}
    with lease.held(paths, TAG, "1-of-1", "next", beat_seconds=0.05, takeover_seconds=0.1):
        assert states(paths) == {"elsewhere": "died"}


def test_a_run_that_ends_or_begins_meanwhile_has_not_died(paths, monkeypatch):
    begin(paths, "ending")
    begin(paths, "killed")
    read = lease.live_leases

    def late(*arguments):
        found = read(*arguments)
        begin(paths, "ending", "finished")
        begin(paths, "new")
        return found

    monkeypatch.setattr("indexer.table.runs.live_leases", late)
    assert states(paths) == {"ending": "finished", "killed": "died", "new": "running"}


def test_status_says_that_a_run_died(paths):
    run = Run(paths)
    run.add(unit())
    begin(paths, "killed")
    (report,) = LabelIndex.open(paths.root_uri).status()["runs"]
    assert report["status"] == "died"
