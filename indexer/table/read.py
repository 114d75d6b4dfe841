"""Reads rows through the Delta log, and asks DuckDB about them."""

from collections.abc import Sequence
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from indexer.errors import StorageError
from indexer.table.delta import delta_errors, reason
from indexer.table.schema import PARTITION

_CLOSED: Final[dict[str, str | bool | int | float | list[str]]] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",
}


def model_rows(table: DeltaTable, tag: str, *filters: tuple[str, str, str]) -> ds.Dataset:
    """One model's rows, in the files of a snapshot that filters do not rule out.

    Args:
        table: a snapshot.
        tag: of the model.
        filters: (column, operator, value); they choose files, not rows.

    Raises:
        StorageError: the log cannot be read.
    """
    with delta_errors(table.table_uri):
        return table.to_pyarrow_dataset(file_pruning_predicate=[(PARTITION, "=", tag), *filters])


def read(rows: ds.Dataset, columns: Sequence[str], wanted: pc.Expression) -> pa.Table:
    """The columns of the wanted rows.

    Raises:
        StorageError: a file cannot be read.
    """
    try:
        return rows.to_table(columns=list(columns), filter=wanted)
    except (pa.ArrowException, OSError) as error:
        message = f"the rows of the index cannot be read: {reason(error)}"
        raise StorageError(message) from error


def ask(
    sql: str, schema: pa.Schema, *parameters: object, **tables: pa.Table | ds.Dataset
) -> pa.Table:
    """Runs one query over Arrow tables or datasets, in a DuckDB that can reach nothing else.

    Args:
        sql: a constant; whatever the user says goes into `parameters`.
        schema: of the answer.
        parameters: for the `$1`, `$2` ... of the query.
        tables: what the query may read, by name.

    Raises:
        StorageError: the rows cannot be read.
    """
    try:
        with duckdb.connect(config=_CLOSED) as connection:
            for name, rows in tables.items():
                connection.register(name, rows)
            answer = connection.sql(sql, params=list(parameters)).to_arrow_table()
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        message = f"the rows of the index cannot be read: {reason(error)}"
        raise StorageError(message) from error
    return answer.cast(schema)
