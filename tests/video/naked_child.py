"""Decode children from which one line of defence is taken, to see that the other holds alone.

`python -m tests.video.naked_child` keeps the confinement, and opens a video whose id begins with
"naked:" with none of the options that keep FFmpeg from reaching out; the rest of the id is the
name that FFmpeg is told, by which it recognises formats and finds neighbours. Behind "reckless:"
FFmpeg's own rules are off too; behind "place:" the name, or else the content, is what it opens.
`python -m tests.video.unconfined_child` gives up the confinement too.
"""

import av

from indexer.video import probe
from indexer.video.decode import decode_clips
from indexer.video.sandbox import child

NAKED = "naked:"
RECKLESS = "reckless:"
PLACE = "place:"
_NO_RULES = {
    "safe": "0",
    "enable_drefs": "1",
    "use_absolute_path": "1",
    "protocol_whitelist": "file,http,tcp,crypto,data",
}
_OPEN = probe._open


class _Named:
    def __init__(self, file, name):
        self.name = name
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def decode(file, plan, *, video_id, skip_units, allocate):
    probe._open = _OPEN
    kind, colon, name = video_id.partition(":")
    if colon:
        options = _NO_RULES if kind + colon == RECKLESS else {}
        source = _Named(file, name)
        if kind + colon == PLACE:
            source = name or file.read().decode()
        probe._open = lambda _, decode: av.open(
            source, mode="r", metadata_errors="replace", container_options=options
        )
    yield from decode_clips(file, plan, video_id=video_id, skip_units=skip_units, allocate=allocate)


if __name__ == "__main__":
    child.main(decode)
