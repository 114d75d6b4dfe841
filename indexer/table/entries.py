"""Entries of a table's log, read one by one where a snapshot does not say enough."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from indexer import storage
from indexer.table.strays import LOG


def added_by(table_uri: str, application: str, version: int, newest: int) -> frozenset[str] | None:
    """Paths of the files that a transaction added, whether or not they are still in the table.

    Reads backwards from the newest entry to the transaction's own: few, for it is looked for
    shortly after it was made.

    Args:
        table_uri: of the table.
        application: id of the transaction.
        version: number of the transaction.
        newest: number of the entry to begin with.

    Returns:
        Their paths within the table; None where no entry that is left names the transaction.

    Raises:
        StorageError: the log cannot be read.
    """
    log = storage.join(table_uri, LOG)
    for number in range(newest, -1, -1):
        try:
            content = storage.read_bytes(storage.join(log, f"{number:020}.json"))
        except FileNotFoundError:
            return None  # older entries are cleaned up
        actions: list[Mapping[str, Any]] = [json.loads(line) for line in content.splitlines()]
        numbers = {a["txn"]["appId"]: a["txn"]["version"] for a in actions if "txn" in a}
        if application in numbers:
            if numbers[application] != version:
                return None
            return frozenset(unquote(a["add"]["path"]) for a in actions if "add" in a)
    return None
