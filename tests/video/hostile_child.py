"""A decode child that does harm on demand, as one would that a video has taken over.

`python -m tests.video.hostile_child` takes the place of `indexer.video.sandbox.child` in tests of
the sandbox. The video's id says what is done, and, after a colon, before which unit or with what
words.
"""

import ctypes
import os
import resource
import select
import socket
import struct
import time
from pathlib import Path

from indexer.errors import VideoUnsupportedCodec
from indexer.records import VideoFailure
from indexer.video.decode import decode_clips
from indexer.video.sandbox import child
from indexer.video.survey import survey_video

CHANNEL = 3
CAPABILITY_VERSION_3 = 0x20080522
PR_GET_DUMPABLE, PR_GET_NO_NEW_PRIVS = 3, 39


def decode(file, plan, *, video_id, skip_units, allocate):
    deed, _, detail = video_id.partition(":")
    if deed in {"say", "probe", "ask"}:
        yield from {"say": say, "probe": probe, "ask": ask}[deed](detail)
    for number, item in enumerate(
        decode_clips(file, plan, video_id=video_id, skip_units=skip_units, allocate=allocate)
    ):
        if deed in DEEDS and number == int(detail or 0):
            last_words = DEEDS[deed]()
            if last_words is not None:
                yield last_words
                return
        yield item


def survey(file, plan, *, video_id):
    if video_id == "segv":
        crash()
    if video_id == "bomb":
        bomb()
    if video_id == "refuse":
        message = "no such codec"
        raise VideoUnsupportedCodec(message)
    if video_id.startswith("say:"):
        next(say(video_id.removeprefix("say:")))
    return survey_video(file, plan, video_id=video_id)


def crash():
    ctypes.string_at(0)


def spin():
    while True:
        pass


def hang():
    time.sleep(3600)


def leave():
    os._exit(3)


def killed():
    os.kill(os.getpid(), 9)


def bomb():
    bytearray(2**33)


def caught_bomb():
    """What `decode_clips` makes of a `MemoryError`."""
    try:
        bomb()
    except MemoryError:
        return VideoFailure("over_budget", "too much", 0, 1)


def multiline():
    return VideoFailure("corrupt", " two\nlines ", 0, 1)


def boast():
    """Announces a message larger than any may be."""
    os.write(CHANNEL, struct.pack("!I", 2**32 - 1))
    hang()


DEEDS = {
    "segv": crash,
    "spin": spin,
    "hang": hang,
    "exit": leave,
    "killed": killed,
    "bomb": caught_bomb,
    "multiline": multiline,
    "boast": boast,
}


def say(words):
    """Sends words of its own, each line a message, and nothing else."""
    for line in words.splitlines():
        if '"end"' in line:  # whoever is still to be told to go on must not find this process dead
            while select.select([CHANNEL], [], [], 0.3)[0] and os.read(CHANNEL, 1000):
                pass
        os.write(CHANNEL, struct.pack("!I", len(line)) + line.encode())
        if '"end"' in line:
            os._exit(0)
    time.sleep(3600)
    yield


def ask(count):
    """Asks for the same first byte again and again."""
    need = b'{"kind": "need", "ranges": [[0, 1]]}'
    for _ in range(int(count)):
        os.write(CHANNEL, struct.pack("!I", len(need)) + need)
        os.read(CHANNEL, 1000)
    yield from ()


def probe(name):
    """Tries something forbidden; the failure's message is what came of it."""
    try:
        result = PROBES[name]()
    except (OSError, ValueError) as error:
        result = type(error).__name__ if isinstance(error, ValueError) else os.strerror(error.errno)
    yield VideoFailure("internal", str(result), 0, 1)
    time.sleep(3600)


def open_files():
    return [descriptor for descriptor in range(1000) if is_open(descriptor)]


def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def capabilities():
    header, data = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capget(header, data)
    return list(data)


def prctl(option):
    return ctypes.CDLL(None).prctl(option, 0, 0, 0, 0)


PROBES = {
    "file": lambda: Path("/etc/passwd").read_bytes(),
    "socket": socket.socket,
    "pipe": os.pipe,
    "memfd": lambda: os.memfd_create("more"),
    "files": open_files,
    "more files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000)),
    "more memory": lambda: resource.setrlimit(resource.RLIMIT_AS, (2**50, 2**50)),
    "capabilities": capabilities,
    "core": lambda: resource.getrlimit(resource.RLIMIT_CORE),
    "dumpable": lambda: prctl(PR_GET_DUMPABLE),
    "no_new_privs": lambda: prctl(PR_GET_NO_NEW_PRIVS),
    "shrink frames": lambda: os.ftruncate(CHANNEL + 2, 0),
    "grow frames": lambda: os.ftruncate(CHANNEL + 2, 2**40),
    "environment": lambda: sorted(os.environ),
}

if __name__ == "__main__":
    child.main(decode, survey)
