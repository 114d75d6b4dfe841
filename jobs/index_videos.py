r"""Indexes videos from inside a Ray cluster; the arguments are those of `indexer run`.

    ray job submit --working-dir . -- \
        python jobs/index_videos.py s3://archive/videos --index s3://archive/index

The exit code is that of `indexer run`; anything but 0 marks the job as failed.
"""

import sys

from indexer.cli import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
