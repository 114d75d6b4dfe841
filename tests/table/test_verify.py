"""Every promise that is broken is found and named; a sound index has none."""

import dataclasses
import hashlib
import json
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from indexer import storage
from indexer.errors import QueryError, StorageError
from indexer.table import lease
from indexer.table import verify as verify_module
from indexer.table.commit import CommitRecord, Committer, TableLogs
from indexer.table.compact import compact
from indexer.table.deleted import mark_deleted
from indexer.table.delta import live_files, open_table
from indexer.table.paths import IndexPaths
from indexer.table.row_checks import RowChecks
from indexer.table.rows import unit_tables
from indexer.table.schema import LABELS, TABLES
from indexer.table.verify import verify
from indexer.table.write import DataFile, stats_json, write_tables
from tests.table.make import TAG, VOCABULARY, Run, context, new_index, ref, unit


@pytest.fixture
def run(tmp_path):
    return Run(new_index(str(tmp_path / "index")))


def broken(paths, tag=None):
    return [finding for finding in verify(paths, tag).findings if finding.broken]


def promises(paths):
    return {(finding.table, finding.promise) for finding in broken(paths)}


def fill(run: Run) -> None:
    run.add(unit("a"), unit("b", range(5)), unit("c", failure="corrupt"))
    run.add(unit("long", [0, 1], units=2), unit("long", [2], unit_index=1, units=2))
    run.add(unit("c", attempt=2), unit("gone"), unit("é日本", [0], info=None))
    run.committer.remove_videos([ref("gone").video_id], ["gone"])


def test_a_sound_index_breaks_no_promise(run):
    fill(run)
    verification = verify(run.paths)
    assert not verification.broken
    assert verification.damaged_uris == {TAG: ()}
    assert verification.stray_files == ()
    counts = [DeltaTable(run.paths.table(name)).count() for name in TABLES]
    assert verification.rows == sum(counts)
    assert verification.files == sum(
        len(live_files(open_table(run.paths, spec))) for spec in TABLES.values()
    )


@pytest.mark.parametrize("tag", ["tsf@v1", "demo-0000"])
def test_a_tag_of_any_name_is_sound(tmp_path, tag):
    run = Run(new_index(str(tmp_path / "index"), tag), tag)
    fill(run)
    assert broken(run.paths) == []
    assert verify(run.paths).stray_files == ()


def test_an_empty_index_is_sound(run):
    assert broken(run.paths) == []


def test_one_model_may_be_looked_at_alone(run):
    fill(run)
    new_index(run.paths.root_uri, "other")
    other = Run(run.paths, "other", "run-2")
    other.add(unit("z"))
    assert broken(run.paths) == []
    damage(run.paths, "clips", "other")
    assert broken(run.paths, TAG) == []
    assert len(broken(run.paths, "other")) == len(broken(run.paths)) > 0
    with pytest.raises(QueryError, match="no model 'nope'"):
        verify(run.paths, "nope")


def test_no_index_is_refused(tmp_path):
    with pytest.raises(QueryError, match="there is no index"):
        verify(IndexPaths(str(tmp_path)))


def a_file(paths, table: str, tag: str = TAG) -> Path:
    file = live_files(open_table(paths, TABLES[table]), tag)[0]
    return Path(paths.data_file(table, file.path))


def damage(paths, table: str, tag: str = TAG) -> Path:
    path = a_file(paths, table, tag)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("table", TABLES)
def test_a_missing_file_is_named_with_the_videos_that_it_costs(run, table):
    fill(run)
    path = a_file(run.paths, table)
    lost = pq.ParquetFile(path).read()
    path.unlink()
    verification = verify(run.paths)
    first = next(finding for finding in verification.findings if finding.broken)
    assert (first.table, first.promise, first.detail) == (table, "file", "the file is missing")
    assert first.file == str(path.relative_to(run.paths.table(table)))
    assert verification.damaged_files == ((table, first.file),)
    found = [ref(uri).video_id for uri in verification.damaged_uris[TAG]]
    if table == "labels":  # can be made again from the clips
        assert found == []
    else:
        assert set(found) == set(lost["video_id"].to_pylist())


def test_a_shorter_file_is_named_with_both_sizes(run):
    fill(run)
    path = a_file(run.paths, "labels")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    found = next(finding for finding in broken(run.paths) if finding.promise == "bytes")
    assert found.detail == f"it has {size - 1} bytes, the log says {size}"


def test_a_page_is_checked_even_if_the_digest_is_right(run, tmp_path):
    """The bytes of a file that was damaged before it was named."""
    values = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    files = run.write(unit("a", range(50), embeddings_ND=values))
    path = Path(run.paths.data_file("embeddings", files[1].path))
    content = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(3)  # does not compress: any bytes decode
    content[column.data_page_offset + column.total_compressed_size // 3] ^= 0x40
    digest = hashlib.sha256(content).hexdigest()
    other = files[1].path.replace(files[1].sha256[:16], digest[:16])
    Path(run.paths.data_file("embeddings", other)).write_bytes(content)
    changed = dataclasses.replace(files[1], path=other, sha256=digest)
    run.committer.commit((files[0], changed, *files[2:]))
    assert ("embeddings", "page_checksum") in promises(run.paths)


# --- promises of rows: each case changes one table's rows before they are written


def add_changed(run: Run, table: str, change: Callable[[pa.Table], pa.Table]) -> str:
    """Commits two videos whose rows of one table were changed; gives the file."""
    units = [unit("a", range(4)), unit("b", range(3)), unit("c", failure="corrupt")]
    rows = unit_tables(units, context(run_id=run.run_id))
    rows[table] = change(rows[table])
    files = write_tables(rows, run.paths, run.tag, run.run_id, "t1")
    commit_unchecked(run, files)
    return next(file.path for file in files if file.table == table)


def commit_unchecked(run: Run, files: tuple[DataFile, ...]) -> None:
    """Without the committer's own look at whether the units are whole."""
    record = CommitRecord(run.tag, run.run_id, run.run_id, 1, files)
    TableLogs(run.paths, run.tag).finish(record)


def with_value(column: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(rows: pa.Table) -> pa.Table:
        values = rows[column].to_pylist()
        values[row] = value
        position = rows.schema.get_field_index(column)
        array = pa.array(values, rows.schema.field(column).type)
        return rows.set_column(position, rows.schema.field(column), array)

    return change


def without_row(row: int) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: rows.take([i for i in range(rows.num_rows) if i != row])


def row_twice(row: int) -> Callable[[pa.Table], pa.Table]:
    return lambda rows: rows.take(sorted([*range(rows.num_rows), row]))


NAN, INF = float("nan"), float("inf")
WRONG_ID = uuid.UUID(int=7).hex
ROW_CASES = [
    ("clips", with_value("clip_id", 2, WRONG_ID), "clip_id", 2),
    ("clips", with_value("clip_id", 2, "no uuid"), "clip_id", 2),
    ("clips", with_value("video_id", 3, WRONG_ID), "video_id", 3),
    ("clips", with_value("video_id", 3, "no uuid"), "clip_id", 3),
    ("clips", with_value("end_seconds", 1, 0.0), "span", 1),
    ("clips", with_value("frame_pts_seconds", 4, [0.0, INF]), "finite", 4),
    ("clips", with_value("top_scores", 4, [0.5]), "top_labels", 4),
    ("clips", with_value("top_scores", 4, [0.1, 0.2, 0.3]), "top_labels", 4),
    ("clips", with_value("top_scores", 4, [1.5, 0.2, 0.1]), "score", 4),
    ("clips", with_value("top_labels", 4, ["growing", "growing", "growing"]), "postings", 4),
    ("clips", lambda rows: rows.take([1, 0, *range(2, rows.num_rows)]), "sorted", 1),
    ("clips", row_twice(3), "once", 3),
    ("clips", with_value("unit_index", 0, 1), "outcome", 0),
    ("embeddings", with_value("clip_id", 5, WRONG_ID), "embeddings", 5),
    ("embeddings", with_value("clip_index", 6, 99), "embeddings", 6),
    ("embeddings", with_value("embedding", 1, [NAN] * 8), "finite", 1),
    ("embeddings", with_value("embedding", 1, [1.0] * 7), "width", 1),
    ("embeddings", with_value("logits", 1, [INF] * 5), "finite", 1),
    ("embeddings", with_value("logits", 1, [1.0] * 4), "width", 1),
    ("embeddings", row_twice(2), "once", 2),
    ("labels", with_value("score", 7, 0.125), "postings", 7),
    ("labels", with_value("score", 7, 2.0), "score", 7),
    ("labels", with_value("rank", 7, 9), "postings", 7),
    ("labels", with_value("uri", 7, "elsewhere"), "postings", 7),
    ("labels", with_value("end_seconds", 7, 1e9), "postings", 7),
    ("labels", with_value("label_id", 7, 99), "label_id", 7),
    ("labels", with_value("label_id", 7, -1), "label_id", 7),
    ("labels", lambda rows: rows.take([*range(1, rows.num_rows), 0]), "sorted", 20),
    ("labels", row_twice(4), "once", 4),
    ("videos", with_value("video_id", 0, WRONG_ID), "video_id", 0),
    ("videos", with_value("clips", 0, 3), "clip_count", 0),
    ("videos", with_value("clips", 2, 1), "outcome", 2),
    ("videos", with_value("status", 0, "done"), "outcome", 0),
    ("videos", with_value("error_code", 0, "corrupt"), "outcome", 0),
    ("videos", with_value("error_code", 2, "whatever"), "outcome", 2),
    ("videos", with_value("unit_index", 0, 5), "outcome", 0),
    ("videos", with_value("attempt", 0, 0), "outcome", 0),
    ("videos", row_twice(1), "once", 1),
]


@pytest.mark.parametrize(
    ("table", "change", "promise", "row"), ROW_CASES, ids=map(str, range(len(ROW_CASES)))
)
def test_a_broken_row_is_named_with_table_file_and_row(run, table, change, promise, row):
    file = add_changed(run, table, change)
    found = broken(run.paths)
    assert (table, file, row, promise) in {(f.table, f.file, f.row, f.promise) for f in found}


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("table", "column"),
    [("clips", "start_seconds"), ("labels", "score"), ("videos", "fps")],
)
def test_a_number_that_is_not_finite_is_named(table, column, value):
    """Such a row cannot be written: Delta's statistics have no form for it."""
    rows = unit_tables([unit("a"), unit("b")], context())[table]
    with pytest.raises(ValueError, match="not JSON compliant"):
        stats_json(with_value(column, 1, INF)(rows), TABLES[table])
    checks = RowChecks(TABLES[table], VOCABULARY)
    assert (1, "finite", f"{column} is {value}") in checks.faults(
        with_value(column, 1, value)(rows)
    )


MISSING_CASES = [
    ("clips", 2, ("embeddings", "embeddings")),
    ("clips", 2, ("videos", "clip_count")),
    ("embeddings", 2, ("clips", "embeddings")),
    ("labels", 2, ("clips", "postings")),
    ("videos", 0, ("clips", "outcome")),
]


@pytest.mark.parametrize(("table", "row", "expected"), MISSING_CASES)
def test_a_lost_row_is_missed_by_the_other_tables(run, table, row, expected):
    add_changed(run, table, without_row(row))
    assert expected in promises(run.paths)


def test_rows_of_two_contents_or_of_two_attempts_that_both_succeeded_are_found(run):
    run.add(unit("a"))
    run.add(unit("a", [7], attempt=2, unit_index=0))
    assert ("videos", "once") in promises(run.paths)


def test_two_contents_of_a_video_are_found(run):
    run.add(unit("a"))
    run.add(unit("a", [7], content_key="11-def"))
    details = {finding.detail for finding in broken(run.paths)}
    assert "the video has outcomes of more than one content" in details


def test_units_that_disagree_how_many_they_are_are_found(run):
    run.add(unit("a", [0], units=2), unit("a", [1], unit_index=1, units=3))
    details = {finding.detail for finding in broken(run.paths)}
    assert "the video's units do not agree how many they are" in details


def test_many_broken_rows_of_a_file_are_counted_not_listed(run):
    def change(rows: pa.Table) -> pa.Table:
        scores = pa.array([2.0] * rows.num_rows, pa.float32())
        return rows.set_column(2, rows.schema.field("score"), scores)

    file = add_changed(run, "labels", change)
    found = [f for f in broken(run.paths) if (f.promise, f.file) == ("score", file)]
    assert len(found) == 21
    assert found[-1].detail == "and 1 more rows of this file"


# --- promises of the log, the models and the folders


def test_wrong_statistics_in_the_log_are_named(run):
    files = run.write(unit("a"))
    stats = json.loads(files[0].stats_json)
    stats["maxValues"]["clip_index"] = 0
    stats["numRecords"] = 3
    changed = dataclasses.replace(files[0], stats_json=json.dumps(stats))
    run.committer.commit((changed, *files[1:]))
    details = {f.detail for f in broken(run.paths) if f.promise == "log_entry"}
    assert details == {
        "the log says 3 rows, the file has 2",
        "maxValues of clip_index: the log says 0, the rows 1",
    }


def test_rows_of_a_video_that_was_to_be_deleted_are_named(run):
    fill(run)
    mark_deleted(run.paths, None, [ref("b").video_id])
    found = promises(run.paths)
    assert found == {(name, "deleted") for name in ("clips", "embeddings", "videos")}
    assert verify(run.paths).damaged_uris == {TAG: ()}


def test_files_that_a_compaction_replaces_meanwhile_are_not_missing(run, monkeypatch):
    fill(run)
    original, looks = verify_module.read_logs, []

    def meanwhile(*arguments):
        facts = original(*arguments)
        if not looks:
            compact(run.paths, TAG)
        looks.append(1)
        return facts

    monkeypatch.setattr(verify_module, "read_logs", meanwhile)
    assert not verify(run.paths).broken
    assert len(looks) == 2


def test_an_index_that_never_rests_cannot_be_verified(run, monkeypatch):
    original = verify_module.read_logs

    def meanwhile(*arguments):
        facts = original(*arguments)
        run.add(unit(str(uuid.uuid4())))
        compact(run.paths, TAG)
        return facts

    fill(run)
    monkeypatch.setattr(verify_module, "read_logs", meanwhile)
    with pytest.raises(StorageError, match="replaced faster than they can be verified"):
        verify(run.paths)


def test_beside_a_running_job_it_waits_for_the_end_of_a_commit(run, monkeypatch):
    fill(run)
    with lease.held(run.paths, TAG, "1-of-1", "run-5") as own:
        files = Run(run.paths, run_id="run-5").write(unit("late"))
        committer, original = Committer(run.paths, TAG, "run-5", own), TableLogs._apply

        def cut_short(self, spec, *arguments, **options):
            if spec is LABELS:
                raise OSError
            original(self, spec, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(TableLogs, "_apply", cut_short)
            with pytest.raises(OSError):
                committer.commit(files)
        rest = threading.Timer(0.5, committer.commit, [files])
        rest.start()
        assert not verify(run.paths).broken
        rest.join()


def test_a_file_that_no_commit_names_is_a_stray_and_breaks_nothing(run):
    fill(run)
    lost = run.write(unit("lost"))
    verification = verify(run.paths)
    assert not verification.broken
    assert set(verification.stray_files) == {(file.table, file.path) for file in lost}


def test_models_must_be_readable_and_say_their_own_name(run):
    other = run.paths.model_json("other")
    content = json.loads(storage.read_bytes(run.paths.model_json(TAG)))
    storage.write_bytes(other, json.dumps(content).encode())
    storage.write_bytes(run.paths.model_json("torn"), b"{")
    found = {(f.file, f.promise): f.detail for f in broken(run.paths)}
    assert f"it says that its tag is {TAG!r}" == found["other.json", "catalog"]
    assert "is not JSON" in found["torn.json", "catalog"]


def test_a_table_that_is_gone_is_named(run):
    fill(run)
    shutil.rmtree(run.paths.table("embeddings"))
    assert ("embeddings", "log") in promises(run.paths)


# --- single flipped bytes


def meaning(paths) -> object:
    """All that the log tells a reader or a writer; None where it cannot be read."""
    facts = []
    try:
        for spec in TABLES.values():
            table = DeltaTable(paths.table(spec.name))
            actions = pa.table(table.get_add_actions(flatten=True)).drop_columns(
                ["modification_time"]
            )
            facts.append(
                (
                    sorted(map(repr, actions.to_pylist())),
                    table.transaction_version("run-1"),
                    table.schema().to_json(),
                    table.metadata().partition_columns,
                    (table.protocol().min_reader_version, table.protocol().min_writer_version),
                )
            )
    except (DeltaError, OSError, ValueError):
        return None
    return facts


def live_paths(paths) -> list[Path]:
    return [
        Path(paths.data_file(name, file.path))
        for name, spec in TABLES.items()
        for file in live_files(open_table(paths, spec))
    ]


def flips(files: list[Path], count: int, seed: int) -> Iterator[Path]:
    """Flips one random bit of one random byte at a time, over all files by their size."""
    sizes = np.array([path.stat().st_size for path in files])
    rng = np.random.default_rng(seed)
    for _ in range(count):
        file = files[rng.choice(len(files), p=sizes / sizes.sum())]
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(flipped)
        yield file
        file.write_bytes(content)


def check_flips(run: Run, files: list[Path], count: int, *, harmless: bool) -> int:
    original, found = meaning(run.paths), 0
    for file in flips(sorted(files), count, seed=5):
        try:
            seen = bool(broken(run.paths))
        except QueryError:
            seen = True  # index.json itself
        found += seen
        assert seen or (harmless and meaning(run.paths) == original), file
    assert broken(run.paths) == []
    return found


def test_a_flipped_byte_of_a_data_file_is_always_found(run):
    run.add(unit("a", range(5)), unit("b"), unit("c", failure="corrupt"))
    assert check_flips(run, live_paths(run.paths), 40, harmless=False) == 40


def test_a_flipped_byte_of_the_log_is_found_wherever_it_changes_what_the_log_says(run):
    fill(run)
    files = list(Path(run.paths.root_uri).glob("*/_delta_log/*.json"))
    assert check_flips(run, files, 25, harmless=True) > 8


def checkpointed(run: Run) -> list[Path]:
    """Checkpoints of an index whose logs go on after them."""
    fill(run)
    for name in TABLES:
        DeltaTable(run.paths.table(name)).create_checkpoint()
    run.add(unit("later"))
    return list(Path(run.paths.root_uri).glob("*/_delta_log/*checkpoint*"))


def test_a_checkpoint_says_what_the_entries_before_it_say(run):
    checkpointed(run)
    assert broken(run.paths) == []
    compact(run.paths, TAG)
    for name in TABLES:
        DeltaTable(run.paths.table(name)).create_checkpoint()
    assert broken(run.paths) == []
    for entry in Path(run.paths.root_uri).glob("*/_delta_log/0000000000000000000[0-2].json"):
        entry.unlink()  # as a log is cleaned up; the older checkpoint is what is left to begin with
    assert broken(run.paths) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row["add"] and row["add"].update(size=1), "file model="),
        (lambda row: row["txn"] and row["txn"].update(version=99), "transactions .*99"),
        (lambda row: row["metaData"] and row["metaData"].update(id="x"), "metaData"),
        (lambda row: row["add"] and row.update(add=None), "file "),
        (lambda row: row["remove"] and row["remove"].update(path="model=x/y"), "removed file"),
    ],
)
def test_a_checkpoint_that_says_something_else_is_named(run, change, words):
    checkpoint = next(p for p in checkpointed(run) if "clips" in p.parts and p.suffix == ".parquet")
    table = pq.read_table(checkpoint)
    rows = table.to_pylist()
    for row in rows:
        change(row)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), checkpoint)
    details = [f.detail for f in broken(run.paths) if f.file == f"_delta_log/{checkpoint.name}"]
    assert any(re.search(f"differs from the entries: {words}", detail) for detail in details)


@pytest.mark.parametrize("content", ["{", '{"version": 3}'])
def test_a_hint_at_no_checkpoint_is_named(run, content):
    hint = next(p for p in checkpointed(run) if p.name == "_last_checkpoint")
    hint.write_text(content)
    assert f"_delta_log/{hint.name}" in {finding.file for finding in broken(run.paths)}


def test_a_flipped_byte_of_a_checkpoint_is_found_wherever_it_changes_what_the_log_says(run):
    files = [path for path in checkpointed(run) if path.suffix == ".parquet"]
    assert check_flips(run, files, 20, harmless=True) > 5


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_five_thousand_flipped_bytes_are_found(run):
    fill(run)
    assert check_flips(run, live_paths(run.paths), 5000, harmless=False) == 5000
