"""Reports of runs, with what a run that was killed could not say itself."""

from typing import Any, Final

from indexer.table import catalog
from indexer.table.lease import live_leases
from indexer.table.paths import IndexPaths

RUNNING: Final = "running"
DIED: Final = "died"


def run_reports(paths: IndexPaths) -> tuple[dict[str, Any], ...]:
    """The reports of all runs, by their start; a run without a lease has died if it did not end.

    A job writes its last report before it gives its lease up. So one whose lease is gone, and which
    still calls itself running when its report is read after that, was killed. Of a job on another
    machine this is known once the next job of its shard has taken its lease over.

    Raises:
        StorageError: they cannot be read.
    """
    reports = catalog.read_run_reports(paths)
    begun = [report for report in reports if report.get("status") == RUNNING]
    if not begun:
        return reports
    tags = {str(report["model"]) for report in begun}
    at_work = {lease.run_id for tag in tags for lease in live_leases(paths, tag)}
    doubtful = {report["run_id"] for report in begun} - at_work
    if not doubtful:
        return reports
    return tuple(
        report | {"status": DIED}
        if report.get("status") == RUNNING and report["run_id"] in doubtful
        else report
        for report in catalog.read_run_reports(paths)
    )
