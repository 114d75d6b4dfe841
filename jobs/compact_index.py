r"""Compacts an index from inside a Ray cluster; the arguments are those of `indexer compact`.

    ray job submit --working-dir . -- python jobs/compact_index.py s3://archive/index

The work is done by one process near the data; it needs memory for twice a file of the target size
and about 1 GB more, and a temporary folder (TMPDIR) as large as the largest table is in memory.
"""

import sys

from indexer.cli import main

if __name__ == "__main__":
    main(["compact", *sys.argv[1:]])
