"""SQL that reaches for files, the network, settings or the process: nothing of it is reached."""

import itertools

import pyarrow as pa
import pytest

from indexer.errors import QueryError
from indexer.table.sql import run_query

CONTENT = "what the file holds"
ROWS = pa.table({"a": [1, 2, 3]})

READERS = [
    "SELECT * FROM '{f}'", "FROM '{f}'", "TABLE '{f}'", 'SELECT * FROM "{f}"',
    *(f"FROM {reader}('{{f}}')" for reader in (
        "read_csv", "read_csv_auto", "read_text", "read_blob", "read_json", "read_json_auto",
        "read_json_objects", "read_ndjson", "read_ndjson_auto", "read_ndjson_objects",
        "read_parquet", "parquet_scan", "parquet_metadata", "parquet_schema",
        "parquet_file_metadata", "parquet_kv_metadata", "parquet_full_metadata", "sniff_csv",
        "glob", "read_duckdb", "read_single_csv_file", "read_single_json_file",
        "read_single_parquet_file",
    )),
    "SELECT * FROM read_csv(['{f}'])", "SELECT * FROM read_text('{d}/*')",
    "SELECT * FROM parquet_bloom_probe('{f}', 'a', 1)",
    "SELECT (SELECT content FROM read_text('{f}'))",
    "WITH x AS (SELECT * FROM read_text('{f}')) SELECT * FROM x",
    "SELECT * FROM clips WHERE a IN (SELECT length(content) FROM read_text('{f}'))",
    "SELECT * FROM query('SELECT * FROM read_text(''{f}'')')",
    "SELECT * FROM query_table('{f}')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''{f}'')'))",
    "SELECT * FROM clips UNION ALL BY NAME SELECT * FROM read_text('{f}')",
    "SELECT * FROM clips, LATERAL (SELECT * FROM read_text('{f}'))",
    "DESCRIBE SELECT * FROM read_text('{f}')", "SUMMARIZE SELECT * FROM read_text('{f}')",
    "SELECT * FROM 'file://{f}'", "SELECT * FROM '{f}?x=1'",
]  # fmt: skip
WRITERS = [
    "COPY clips TO '{o}'", "COPY (SELECT 1) TO '{o}' (FORMAT csv)", "COPY clips FROM '{f}'",
    "EXPORT DATABASE '{o}'", "IMPORT DATABASE '{d}'", "ATTACH '{o}' AS x", "ATTACH '{o}'",
    "DETACH memory", "CREATE TABLE x AS SELECT 1", "CREATE TABLE x (a INT)",
    "CREATE OR REPLACE VIEW clips AS SELECT 1", "CREATE MACRO m() AS 1", "CREATE SCHEMA s",
    "CREATE SEQUENCE q", "CREATE TYPE t AS ENUM ('a')", "CREATE SECRET (TYPE s3)",
    "CREATE TEMP TABLE x AS SELECT 1", "INSERT INTO clips VALUES (1)", "DELETE FROM clips",
    "UPDATE clips SET a = 1", "TRUNCATE clips", "DROP VIEW clips", "ALTER TABLE clips ADD b INT",
    "WITH x AS (INSERT INTO clips VALUES (1)) SELECT 1", "CHECKPOINT", "FORCE CHECKPOINT",
    "VACUUM", "ANALYZE", "BEGIN", "COMMIT", "PREPARE p AS SELECT 1", "EXECUTE p", "DEALLOCATE p",
    "USE memory", "SELECT * FROM force_checkpoint()",
]  # fmt: skip
SETTERS = [
    "SET enable_external_access = true", "SET lock_configuration = false", "RESET ALL",
    "SET GLOBAL threads = 64", "SET SESSION temp_directory = '{d}'", "SET home_directory = '{d}'",
    "SET memory_limit = '1TB'", "SET VARIABLE x = 1", "RESET enable_external_access",
    "PRAGMA enable_external_access", "PRAGMA memory_limit = '1TB'", "PRAGMA version",
    "PRAGMA database_list", "PRAGMA enable_profiling", "PRAGMA enable_logging",
    "SELECT * FROM enable_logging(storage = 'file', storage_path = '{d}')",
    "SELECT * FROM enable_logging('QueryLog', storage := 'file', storage_path := '{o}')",
    "SELECT * FROM enable_logging(storage = 'stdout')", "SELECT * FROM disable_logging()",
    "SELECT * FROM enable_profiling(save_location = '{o}')",
    "SELECT * FROM enable_profiling('json', save_location := '{o}')",
    "CALL enable_logging()", "CALL pragma_version()",
    "SELECT set_config('enable_external_access', 'true', false)",
]  # fmt: skip
REACHERS = [
    "INSTALL httpfs", "LOAD httpfs", "FORCE INSTALL httpfs", "UPDATE EXTENSIONS",
    "INSTALL spatial FROM community", "LOAD '{f}'", "INSTALL '{f}'",
    "SELECT * FROM 'https://127.0.0.1:9/x.parquet'", "SELECT * FROM 's3://bucket/x.parquet'",
    "SELECT * FROM read_parquet('http://127.0.0.1:9/x')",
    "SELECT * FROM read_csv('https://127.0.0.1:9/x')",
    "SELECT * FROM read_json('https://127.0.0.1:9/x')",
    "SELECT * FROM 'hf://datasets/x/y.parquet'", "SELECT * FROM read_text('gs://b/x')",
    "ATTACH 'https://127.0.0.1:9/x.db'", "ATTACH 'postgres:dbname=x' AS p (TYPE postgres)",
    "SELECT * FROM sqlite_scan('{f}', 'x')", "SELECT * FROM postgres_scan('', '', '')",
    "SELECT * FROM delta_scan('{d}')", "SELECT * FROM iceberg_scan('{d}')",
    "SELECT http_get('https://127.0.0.1:9')", "SELECT getenv('HOME')",
    "SELECT getvariable('x') + y",
    "SELECT * FROM duckdb_secrets()", "SELECT * FROM which_secret('s3://x', 's3')",
    "SELECT * FROM duckdb_extension_repositories()", "SELECT * FROM SECRET_OF_THE_TEST",
    "SELECT * FROM ROWS_OF_THE_TEST", "SELECT * FROM pa", "SELECT * FROM sys",
    "SELECT * FROM arrow_scan(1, 2, 3)", "SELECT * FROM arrow_scan(NULL, NULL, NULL)",
    "SELECT * FROM arrow_scan(1::POINTER, 2::POINTER, 3::POINTER)",
    "SELECT * FROM arrow_scan_dumb(1, 2, 3)", "SELECT * FROM pandas_scan(1)",
    "SELECT * FROM pandas_scan(NULL)", "SELECT * FROM python_arrow_scan(1)",
    "SELECT * FROM python_map_function((SELECT 1))", "SELECT * FROM seq_scan('clips')",
    "SELECT * FROM create_external_resource('a', 'b')",
    "SELECT * FROM register_external_resource('a', 'b')",
    "SELECT * FROM destroy_external_resource('a')",
]  # fmt: skip
STATEMENTS = ["", ";", "--", "/* */", "not sql", "SELECT", "SELECT 1; SELECT 2", "EXPLAIN SELECT 1",
    "EXPLAIN ANALYZE SELECT 1", "\x00", "SELECT '\ud800'", "(" * 5000]  # fmt: skip
DISGUISES = ["SELECT 1; ", "/* SELECT */ ", "-- x\n"]
DISGUISED = [
    disguise + statement
    for disguise, statement in itertools.product(DISGUISES, READERS[:9] + WRITERS[:9] + SETTERS[:6])
]
HOSTILE = [*STATEMENTS, *READERS, *WRITERS, *SETTERS, *REACHERS, *DISGUISED]


def ask(statement):
    return run_query(statement, {"clips": ROWS}, timeout_seconds=5, memory_bytes=200_000_000)


def answered(statement):
    try:
        return str(ask(statement).to_pylist()), ""
    except QueryError as error:
        return "", str(error) or "refused"


def test_there_are_enough():
    assert len(set(HOSTILE)) >= 200


@pytest.mark.parametrize("statement", HOSTILE)
def test_nothing_is_reached(statement, tmp_path, monkeypatch):
    SECRET_OF_THE_TEST = ROWS_OF_THE_TEST = ROWS  # noqa: F841 - to be found by their names
    monkeypatch.setenv("HOME", str(tmp_path))
    file, out = tmp_path / "secret.csv", tmp_path / "written"
    file.write_text(f"a\n{CONTENT}\n")
    text = statement.replace("{f}", str(file)).replace("{d}", str(tmp_path))
    answer, refusal = answered(text.replace("{o}", str(out)))
    assert CONTENT not in answer + refusal
    assert refusal or statement not in (*WRITERS, *SETTERS, *STATEMENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]
    assert ask("SELECT sum(a) AS n FROM clips").to_pylist() == [{"n": 6}]
