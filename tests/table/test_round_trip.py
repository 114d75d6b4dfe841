"""What is written is what every engine reads."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable

from indexer.table.query import LabelIndex
from indexer.table.rows import unit_tables
from indexer.table.schema import TABLES
from tests.table.make import TAG, Run, context, new_index, ref, unit
from tests.table.readers import ENGINES, _value, read_all

HOSTILE = (
    "s3://videos/plain.mp4",
    's3://videos/it\'s "quoted"; DROP TABLE clips; --.mp4',
    "s3://videos/line\nbreak\ttab.mp4",
    "s3://videos/日本語 é 🎸.mp4",
    "s3://videos/𠮷野家.mp4",
    "\U0010ffff",
    "s3://videos/[1]*?%20%2F#?x=1&y.mp4",
    "s3://videos/" + "long/" * 120 + ".mp4",
    "",
)


def written(units, tag=TAG):
    tables = unit_tables(units, context())
    return {
        name: sorted(
            (
                {column: _value(row[column]) for column in sorted(row)}
                for row in (row | {"model": tag} for row in table.to_pylist())
            ),
            key=repr,
        )
        for name, table in tables.items()
    }


UNITS = [*(unit(uri, range(3)) for uri in HOSTILE), unit("bad", failure="corrupt", info=None)]


def check_round_trip(uri: str, tag: str = TAG) -> None:
    run = Run(new_index(uri, tag), tag)
    run.add(*UNITS[:4])
    run.add(*UNITS[4:])
    expected = written(UNITS, tag)
    for table in TABLES:
        found = read_all(run.paths.root_uri, table)
        assert set(found) == set(ENGINES)
        for engine, rows in found.items():
            assert rows == expected[table], (engine, table)


def test_every_engine_reads_what_was_written(tmp_path):
    check_round_trip(str(tmp_path / "index"))


def test_every_engine_reads_a_partition_whose_name_is_encoded(tmp_path):
    check_round_trip(str(tmp_path / "index"), "tsf@v1")


@pytest.mark.parametrize("folder", ["with space", "o'brien", "é日本", "a#b?c", "100%"])
def test_a_local_folder_may_have_any_name(tmp_path, folder):
    run = Run(new_index(str(tmp_path / folder)))
    run.add(unit("a"), unit("b"))
    run.committer.remove_videos([ref("a").video_id], ["a"])
    index = LabelIndex.open(str(tmp_path / folder))
    assert index.videos()["uri"].to_pylist() == ["b"]
    assert set(index.search("growing", top=None)["uri"].to_pylist()) <= {"b"}


def test_every_engine_reads_from_s3(s3):
    check_round_trip(f"s3://{s3.bucket()}/some/index")


def test_a_filter_on_any_column_finds_its_rows(tmp_path):
    """A column without bounds in the log would lose whole files to deltalake's own reader."""
    run = Run(new_index(str(tmp_path / "index")))
    run.add(*UNITS)
    for name, spec in TABLES.items():
        rows = DeltaTable(run.paths.table(name)).to_pyarrow_dataset()
        for row in rows.to_table().to_pylist():
            for column in spec.schema.names:
                if not isinstance(row[column], list | None):
                    wanted = pc.field(column) == pa.scalar(
                        row[column], spec.schema.field(column).type
                    )
                    assert rows.count_rows(filter=wanted) > 0, (name, column)
