"""The decode child, except that it asks for few bytes at a time, so that small videos have holes.

`python -m tests.video.sparse_child` takes the place of the real one.
"""

from indexer.video import extent, ranged
from indexer.video.sandbox import child

AHEAD_BYTES = 512

if __name__ == "__main__":
    ranged.AHEAD_BYTES = extent.AHEAD_BYTES = AHEAD_BYTES
    child.main()
