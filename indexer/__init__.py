"""The open video label index.

A job flows one way: `manifest` lists the videos, `video` decodes their clips, `model` scores them,
`table` writes and queries the rows. `runtime` spreads them over a Ray cluster and commits the rows
while the job runs; `cli` is the command line around it all.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexer.config import IndexConfig
    from indexer.table.query import LabelIndex

__version__ = "0.1.0"
__all__ = ["IndexConfig", "LabelIndex"]


def __getattr__(name: str) -> object:
    """Loads each side only when it is asked for: a model process needs neither."""
    if name == "IndexConfig":
        from indexer.config import IndexConfig

        return IndexConfig
    if name == "LabelIndex":
        from indexer.table.query import LabelIndex

        return LabelIndex
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
