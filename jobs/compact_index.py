r"""Compacts an index from inside a Ray cluster; the arguments are those of `indexer compact`.

    ray job submit --working-dir . --entrypoint-num-cpus 1 --entrypoint-memory 2000000000 -- \
        python jobs/compact_index.py s3://archive/index

One process does the work, on a node that Ray finds for it, near the data. It is not spread: the
tables of a model change one after the other under one lease, a million clips take a minute of one
core, and sorting in one place is what puts a label's postings into one place. It needs memory for
twice a file of the target size and about 1 GB more, and a temporary folder (TMPDIR) as large as the
largest table is in memory. Models are independent: give each its own job with --model TAG.
"""

import sys

from indexer.cli import main

if __name__ == "__main__":
    main(["compact", *sys.argv[1:]])
