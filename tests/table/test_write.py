import hashlib
import json
import pickle
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

from indexer import storage
from indexer.errors import StorageError
from indexer.table import write as write_module
from indexer.table.paths import IndexPaths
from indexer.table.rows import unit_tables
from indexer.table.schema import CLIPS, EMBEDDINGS, LABELS, TABLES
from indexer.table.write import DataFile, parquet_bytes, stats_json, write_sorted, write_tables
from tests.table.make import TAG, context, unit


@pytest.fixture
def paths(tmp_path):
    return IndexPaths(str(tmp_path / "index"))


def write(paths, *units):
    return write_tables(unit_tables(units, context()), paths, TAG, "run-1", "t7")


def test_each_table_with_rows_gives_one_file_named_by_its_content(paths):
    files = write(paths, unit())
    assert [file.table for file in files] == list(TABLES)
    for file in files:
        content = storage.read_bytes(paths.data_file(file.table, file.path))
        assert hashlib.sha256(content).hexdigest() == file.sha256
        assert len(content) == file.size_bytes
        assert file.path == f"model={TAG}/part-run-1-t7-{file.sha256[:16]}.parquet"
        assert pq.read_metadata(pa.BufferReader(content)).num_rows == file.rows


def test_a_table_without_rows_gives_no_file(paths):
    (file,) = write(paths, unit(failure="corrupt"))
    assert file.table == "videos"
    assert write(paths) == ()


def test_nothing_but_data_files_lies_in_the_tables(paths, tmp_path):
    files = write(paths, unit())
    found = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {str(path) for path in found} == {paths.data_file(f.table, f.path) for f in files}


def test_the_receipt_travels_as_json_and_pickle(paths):
    for file in write(paths, unit()):
        assert DataFile.from_json(json.loads(json.dumps(file.to_json()))) == file
        assert pickle.loads(pickle.dumps(file)) == file


def excluded(file, value):
    """Of each row group, whether its Bloom filter says that no row has this clip."""
    probe = "SELECT bloom_filter_excludes FROM parquet_bloom_probe(?, 'clip_id', ?)"
    return [row[0] for row in duckdb.execute(probe, [file, value]).fetchall()]


@pytest.mark.parametrize("can_bloom", [True, False])
@pytest.mark.parametrize("spec", [CLIPS, EMBEDDINGS])
def test_large_files_have_bloom_filters_where_pyarrow_writes_them(
    paths, monkeypatch, spec, can_bloom
):
    if can_bloom and not write_module._CAN_BLOOM:
        pytest.skip("this pyarrow writes none")
    monkeypatch.setattr(write_module, "_CAN_BLOOM", can_bloom)
    rows = unit_tables([unit(clips=range(40))], context())[spec.name]
    spec = replace(spec, row_group_rows=16)
    (file,) = write_sorted([rows], spec, paths, TAG, "w", 10**9)
    path, ids = paths.data_file(spec.name, file.path), rows["clip_id"].to_pylist()
    assert pq.read_metadata(path).num_row_groups == 3
    for group, start in enumerate(range(0, 40, 16)):
        assert not any(excluded(path, name)[group] for name in ids[start : start + 16])
    absent = [excluded(path, f"{number:032x}") for number in range(30)]
    share = np.mean(absent)
    assert share > 0.8 if can_bloom else share == 0
    assert pq.read_table(path, page_checksum_verification=True)["clip_id"].to_pylist() == ids


def test_small_files_have_no_bloom_filters(paths):
    file = next(file for file in write(paths, unit()) if file.table == "clips")
    assert excluded(paths.data_file("clips", file.path), "0" * 32) == [False]


def columns(name, count=4):
    table = unit_tables([unit(clips=range(count))], context(stored_mantissa_bits=10))[name]
    metadata = pq.read_metadata(pa.BufferReader(parquet_bytes(table, TABLES[name])))
    group = metadata.row_group(0)
    found = (group.column(i) for i in range(group.num_columns))
    return {column.path_in_schema: column for column in found}


def test_floats_are_byte_stream_split_and_strings_dictionary_encoded():
    embeddings, labels = columns("embeddings"), columns("labels")
    for column in (
        embeddings["embedding.list.element"],
        embeddings["logits.list.element"],
        labels["score"],
    ):
        assert "BYTE_STREAM_SPLIT" in column.encodings
        assert column.compression == "ZSTD"
    assert labels["label"].has_dictionary_page
    assert not labels["score"].has_dictionary_page
    assert labels["label"].statistics.min == min(
        unit_tables([unit(clips=range(4))], context())["labels"]["label"].to_pylist()
    )


def test_rounded_embeddings_take_half_the_space():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 768)).astype(np.float32)
    sizes = {}
    for bits in (10, 23):
        one = unit(clips=range(200), embeddings_ND=values)
        rows = unit_tables([one], context(stored_mantissa_bits=bits, keep_logits=False))
        sizes[bits] = len(parquet_bytes(rows["embeddings"], EMBEDDINGS))
    assert sizes[10] < 0.55 * sizes[23]


def test_a_flipped_byte_in_a_page_is_noticed():
    content = bytearray(parquet_bytes(unit_tables([unit()], context())["clips"], CLIPS))
    column = pq.read_metadata(pa.BufferReader(content)).row_group(0).column(4)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start + column.total_compressed_size - 2] ^= 0x40
    with pytest.raises(OSError, match=r"(?i)crc|checksum"):
        pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()


def test_large_tables_have_bounded_row_groups():
    rows = 150_000
    table = unit_tables([unit(clips=[0])], context(top_k=1))["labels"]
    table = table.take(np.zeros(rows, np.int64))
    metadata = pq.read_metadata(pa.BufferReader(parquet_bytes(table, LABELS)))
    assert metadata.num_row_groups == 10
    assert metadata.row_group(0).num_rows == 16 * 1024


def test_other_columns_are_refused():
    with pytest.raises(ValueError, match="labels: the columns are"):
        parquet_bytes(unit_tables([unit()], context())["clips"], LABELS)


def test_a_refused_write_is_a_storage_error(paths):
    storage.write_bytes(paths.root_uri, b"a file where the folder should be")
    with pytest.raises(StorageError):
        write(paths, unit())


text = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("a\U0010ffff\uffff\U00010000"),
    max_size=600,
) | st.builds(
    lambda a, n, b: a * n + b, st.sampled_from("a\U0010ffff"), st.integers(250, 260), st.text("z")
)


@given(st.lists(text, min_size=1, max_size=5))
def test_bounds_of_long_strings_enclose_every_value(uris):
    table = unit_tables([unit(clips=[0])], context())["clips"].take([0] * len(uris))
    table = table.set_column(2, CLIPS.schema.field("uri"), pa.array(uris))
    stats = json.loads(stats_json(table, CLIPS))
    encoded = [uri.encode() for uri in uris]
    assert stats["minValues"]["uri"].encode() <= min(encoded)
    assert stats["maxValues"]["uri"].encode() >= max(encoded)
    assert stats["numRecords"] == len(uris)


def test_the_table_reports_its_minimal_protocol(tmp_path):
    from tests.table.make import Run, new_index

    run = Run(new_index(str(tmp_path / "index")))
    for name in TABLES:
        protocol = DeltaTable(run.paths.table(name)).protocol()
        assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 2)
