"""A decode child that keeps its rights: see `tests.video.naked_child`."""

from indexer.video.sandbox import child, confine
from tests.video.naked_child import decode

if __name__ == "__main__":
    confine.limit_files = confine.limit_memory = lambda more: None
    child.main(decode)
