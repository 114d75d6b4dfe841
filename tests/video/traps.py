"""What tells that a decoder has reached for something that was not given to it.

A folder whose every opened file the kernel reports, a server that nobody may connect to, and a port
for datagrams that nobody may bind.
"""

import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.video.synth import Synth

_IN_OPEN = 0x20
_EVENT = struct.Struct("iIII")
_LOOK_SECONDS = 0.002

CANARY = "canary.mp4"
NUMBERED = "image001.png"


class Traps:
    """Neighbours on disk and on the network; `sprung` tells which were touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "here"
        self.elsewhere = folder / "elsewhere"
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._resources:
            for place in (self.folder, self.elsewhere):
                place.mkdir()
                (place / CANARY).write_bytes(Synth(frames=8).encode())
                (place / "canary.ts").write_bytes(Synth(frames=8, container="mpegts").encode())
            picture = Synth(frames=1, codec="png", container="image2pipe", pix_fmt="rgb24")
            (self.folder / NUMBERED).write_bytes(picture.encode())
            self._server = self._resources.enter_context(socket.create_server(("127.0.0.1", 0)))
            self._server.setblocking(False)
            self.http = f"http://127.0.0.1:{self._server.getsockname()[1]}"
            with socket.socket(type=socket.SOCK_DGRAM) as probe:
                probe.bind(("127.0.0.1", 0))
                self.datagram_port = probe.getsockname()[1] & ~1  # RTP takes an even one
            self._watch = _watch((self.folder, self.elsewhere))
            self._resources.callback(os.close, self._watch)
            self._resources = self._resources.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @contextlib.contextmanager
    def armed(self) -> Iterator[list[str]]:
        """What is touched within the block; complete at its end."""
        self._touched()
        sprung: list[str] = []
        done = threading.Event()
        bound = threading.Thread(target=self._look_for_socket, args=(done, sprung))
        bound.start()
        try:
            yield sprung
        finally:
            done.set()
            bound.join()
            sprung += self._touched()

    def _touched(self) -> list[str]:
        """What was, since the last call."""
        return self._opened() + self._connected()

    def _opened(self) -> list[str]:
        names = []
        with contextlib.suppress(BlockingIOError):
            while events := os.read(self._watch, 2**16):
                while events:
                    *_, length = _EVENT.unpack_from(events)
                    name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
                    names += [name.decode()] * bool(name)
                    events = events[_EVENT.size + length :]
        return names

    def _connected(self) -> list[str]:
        connections = []
        with contextlib.suppress(BlockingIOError):
            while True:
                self._server.accept()[0].close()
                connections.append("a connection")
        return connections

    def _look_for_socket(self, done: threading.Event, sprung: list[str]) -> None:
        port = f":{self.datagram_port:04X} "
        while not done.wait(_LOOK_SECONDS):
            if any(port in Path(f"/proc/net/{table}").read_text() for table in ("udp", "udp6")):
                sprung.append("a socket")
                return


def _watch(folders: tuple[Path, ...]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    for folder in folders:
        if libc.inotify_add_watch(descriptor, bytes(folder), _IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), f"cannot watch {folder}")
    return int(descriptor)
