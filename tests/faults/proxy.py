"""An HTTP proxy before a real S3 server: counts, delays or fails requests, or kills who asks."""

import contextlib
import http.client
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

FAULTS: Final = ("503", "reset", "stall", "short", "applied 500", "applied reset")
STALL_SECONDS: Final = 0.3
_HOP_BY_HOP: Final = {"connection", "transfer-encoding", "keep-alive"}


@dataclass
class Proxy:
    """What the proxy does; changed between the requests of a test, by the test.

    Attributes:
        upstream: host and port of the server.
        endpoint: the proxy's own URL.
        requests: number of requests since the last `reset`.
        served: method, path and bytes of each reply since then.
        delay_seconds: by which every request is held up.
        kill_at: the request whose sender is killed; 0 for none.
        after: whether the server has done what was asked before the sender is killed.
        victim: process id of the sender.
        fault_rate: part of the requests that fail.
        faults: how many failed, and how.
    """

    upstream: str
    endpoint: str = ""
    requests: int = 0
    served: list[tuple[str, str, int]] = field(default_factory=list)
    delay_seconds: float = 0.0
    kill_at: int = 0
    after: bool = False
    victim: int = 0
    fault_rate: float = 0.0
    rng: random.Random = field(default_factory=random.Random)
    faults: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self, kill_at: int = 0, *, after: bool = False) -> None:
        with self.lock:
            self.requests, self.kill_at, self.after, self.victim = 0, kill_at, after, 0
            self.served = []

    def flaky(self, rate: float, seed: int) -> None:
        with self.lock:
            self.fault_rate, self.rng = rate, random.Random(seed)
            self.faults.clear()

    def next_request(self, method: str) -> tuple[bool, str]:
        """Whether this request is fatal, and how it fails."""
        with self.lock:
            self.requests += 1
            fault = ""
            if self.rng.random() < self.fault_rate:
                fault = self.rng.choice(FAULTS)
                fault = "reset" if fault == "short" and method != "GET" else fault
                self.faults[fault] += 1
            return self.requests == self.kill_at, fault

    def note(self, method: str, path: str, size_bytes: int) -> None:
        with self.lock:
            self.served.append((method, path, size_bytes))

    def kill(self) -> None:
        os.kill(self.victim, signal.SIGKILL)


class Handler(BaseHTTPRequestHandler):
    """Forwards one client's requests; a subclass says for which self.proxy."""

    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=30)

    def finish(self) -> None:
        self.upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fatal, fault = self.proxy.next_request(self.command)
        time.sleep(self.proxy.delay_seconds)
        if fatal and not self.proxy.after:
            self._die()
        elif fault == "503":
            self._reply(503, [], b"<Error><Code>SlowDown</Code></Error>")
        elif fault == "reset":
            self._reset()
        else:
            self._serve_applied(body, fault, fatal=fatal)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815

    def _serve_applied(self, body: bytes, fault: str, *, fatal: bool) -> None:
        if fault == "stall":
            time.sleep(STALL_SECONDS)
        status, headers, content = self._forward(body)
        if fatal:
            self._die()
        elif fault == "applied 500":
            self._reply(500, [], b"<Error><Code>InternalError</Code></Error>")
        elif fault == "applied reset":
            self._reset()
        else:
            cut = len(content) // 2 if fault == "short" and content else None
            self._reply(status, headers, content, cut)

    def _die(self) -> None:
        self.proxy.kill()
        self.close_connection = True

    def _reset(self) -> None:
        linger_0 = b"\1\0\0\0\0\0\0\0"
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_0)
        self.connection.close()
        self.close_connection = True

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        send = self.upstream
        send.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in {*_HOP_BY_HOP, "expect"}:
                send.putheader(name, value)  # with the Host that was signed
        send.endheaders(body or None)
        response = send.getresponse()
        content = response.read()
        self.proxy.note(self.command, self.path, len(content))
        return response.status, response.getheaders(), content

    def _reply(
        self,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        cut: int | None = None,
    ) -> None:
        self.send_response_only(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # of a HEAD, it is that of the object
            elif name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        if cut is not None:
            self._reset()

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # a reader of a log opens dozens of connections at once


@contextlib.contextmanager
def running(upstream_endpoint: str, handler: type[Handler] = Handler) -> Iterator[Proxy]:
    """Runs a proxy in threads of this process."""
    proxy = Proxy(urlsplit(upstream_endpoint).netloc)
    server = _Server(("127.0.0.1", 0), type("_Bound", (handler,), {"proxy": proxy}))
    server.daemon_threads = True
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def kill_by(proxy: Proxy) -> Callable[[int], None]:
    """Tells the proxy whom to kill, before that process may go on."""

    def started(pid: int) -> None:
        proxy.victim = pid

    return started
