"""A user's own SQL over an index: it reads five views, and can reach nothing else.

DuckDB gets Arrow data sets and no way out: no files, no network, no extensions, no settings, no
variables of the Python program, and one statement that is a query.
"""

import threading
from collections.abc import Mapping
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from indexer.errors import QueryError
from indexer.table.delta import reason

_OPTIONS: Final = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
}


def run_query(
    statement: str,
    views: Mapping[str, pa.Table | ds.Dataset | str],
    *,
    timeout_seconds: float,
    memory_bytes: int,
) -> pa.Table:
    """Runs one query.

    Args:
        statement: a single SELECT, or what else DuckDB counts as one (VALUES, WITH, FROM).
        views: rows by name, or the SQL of a view over earlier ones.
        timeout_seconds: after which it is interrupted.
        memory_bytes: that it may take.

    Raises:
        QueryError: it is no query, is wrong, reaches out, or takes too long or too much.
    """
    options = _OPTIONS | {"memory_limit": f"{memory_bytes}B"}
    with duckdb.connect(config=dict(options)) as connection:
        for name, rows in views.items():
            if isinstance(rows, str):
                connection.execute(f"CREATE VIEW {name} AS {rows}")
            else:
                connection.register(name, rows)
        connection.execute("SET lock_configuration = true")
        _check(connection, statement)
        timer = threading.Timer(timeout_seconds, connection.interrupt)
        timer.daemon = True
        timer.start()
        try:
            return connection.sql(statement).to_arrow_table()
        except duckdb.InterruptException as error:
            message = f"the query was stopped after {timeout_seconds:g} s; ask for less"
            raise QueryError(message) from error
        except duckdb.CatalogException as error:
            names = ", ".join(name for name in views if name != "postings")
            message = f"{reason(error)}; the views are {names}"
            raise QueryError(message) from error
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise QueryError(reason(error)) from error
        finally:
            timer.cancel()


def _check(connection: duckdb.DuckDBPyConnection, statement: str) -> None:
    try:
        kinds = [one.type for one in connection.extract_statements(statement)]
    except duckdb.Error as error:
        raise QueryError(reason(error)) from error
    except (
        ValueError,
        TypeError,
    ) as error:  # no text, or a kind of statement that Python has no name for
        message = "one SELECT is wanted: an index is read, not changed"
        raise QueryError(message) from error
    if kinds != [duckdb.StatementType.SELECT]:
        found = " and ".join(kind.name for kind in kinds) or "nothing"
        message = f"one SELECT is wanted, not {found}: an index is read, not changed"
        raise QueryError(message)
