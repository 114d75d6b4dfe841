"""An S3 server on loopback that holds one object and fails as it is told to.

It knows GET with `Range` and `If-Match`, and believes every signature.
"""

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from indexer.s3 import S3Store

URI = "s3://bucket/video.mp4"


@dataclass(frozen=True)
class Fault:
    """How one request fails.

    Attributes:
        after_bytes: of the body are sent before it does; None for a whole one.
        then: `reset` (RST), `hangup` (FIN before the announced end), `stall`, `silence` (not even
            a status), `trickle` (the rest, in five pieces 0.1 s apart), or `short`: a clean end,
            with a Content-Length to match.
        status: an error instead of the object.
        code: of the S3 error; none for one without a body.
        headers: sent instead of the right ones; None leaves one out.
    """

    after_bytes: int | None = None
    then: str = "short"
    status: int = 0
    code: str = ""
    headers: dict[str, str | None] = field(default_factory=dict)


@dataclass
class ObjectServer:
    """The object, what is to go wrong with it, and what was asked.

    Attributes:
        faults: of the first requests, in order; None for a good answer.
        always: of all later requests.
        ranges: whether `Range` is honoured.
        conditions: whether `If-Match` is.
        latency_seconds: before each answer.
        asked: first byte, and the one after the last, of each request.
        conditions_asked: `If-Match` of each request.
        connections: opened so far.
        busiest: most requests at one time.
    """

    data: bytes = b""
    etag: str | None = "e1"
    faults: list[Fault | None] = field(default_factory=list)
    always: Fault | None = None
    ranges: bool = True
    conditions: bool = True
    latency_seconds: float = 0.0
    endpoint: str = ""
    asked: list[tuple[int, int]] = field(default_factory=list)
    conditions_asked: list[str | None] = field(default_factory=list)
    connections: int = 0
    busiest: int = 0
    serving: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, asked: tuple[int, int], condition: str | None) -> Fault:
        with self.lock:
            self.asked.append(asked)
            self.conditions_asked.append(condition)
            self.serving += 1
            self.busiest = max(self.busiest, self.serving)
            return (self.faults.pop(0) if self.faults else self.always) or Fault()

    def end(self) -> None:
        with self.lock:
            self.serving -= 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ObjectServer

    def setup(self):
        super().setup()
        with self.state.lock:
            self.state.connections += 1

    def log_message(self, *_args):
        pass

    def do_GET(self):
        state = self.current = self.state
        size = len(state.data)
        start, stop = 0, size
        if state.ranges and (asked := self.headers["Range"]):
            first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", asked).groups()
            start, stop = int(first), int(last) + 1
        condition = self.headers["If-Match"]
        fault = state.begin((start, stop), condition)
        time.sleep(state.latency_seconds)
        try:
            if fault.then == "silence":
                self.break_off("stall")
            elif fault.status:
                self.refuse(fault.status, fault.code)
            elif state.conditions and condition not in (None, f'"{state.etag}"'):
                self.refuse(412, "PreconditionFailed")
            elif start >= size:
                self.refuse(416, "InvalidRange")
            else:
                self.answer(memoryview(state.data)[start:stop], start, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            state.end()

    def refuse(self, status, code):
        body = f"<Error><Code>{code}</Code><Message>token=SECRET</Message></Error>".encode()
        body = body if code else b""
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, body, start, fault):
        state, size = self.current, len(self.current.data)
        sent = body if fault.after_bytes is None else body[: fault.after_bytes]
        short = fault.then == "short"
        headers = {
            "Content-Length": str(len(sent) if short else len(body)),
            "Content-Range": f"bytes {start}-{start + len(body) - 1}/{size}",
            "ETag": state.etag and f'"{state.etag}"',
        }
        if not state.ranges:
            headers["Content-Range"] = None
        self.send_response(206 if state.ranges else 200)
        for name, value in (headers | fault.headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)
        if fault.then == "trickle":
            self.trickle(body[len(sent) :])
        elif not short:
            self.break_off(fault.then)

    def trickle(self, body):
        piece_bytes = -(-len(body) // 5)
        for start in range(0, len(body), piece_bytes):
            time.sleep(0.1)
            self.wfile.write(body[start : start + piece_bytes])

    def break_off(self, how):
        self.close_connection = True
        if how == "stall":
            self.current.closing.wait(60)
        elif how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_args):
        pass  # a client that hangs up is what some tests are about


@contextlib.contextmanager
def run_object_server() -> Iterator[Callable[[bytes], ObjectServer]]:
    """Runs until the context ends; a call puts a new object, with nothing wrong, into its place."""
    handler = type("BoundHandler", (Handler,), {"state": ObjectServer()})
    with Server(("127.0.0.1", 0), handler) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"

        def serve(data: bytes) -> ObjectServer:
            handler.state.closing.set()
            handler.state = ObjectServer(data, endpoint=endpoint)
            return handler.state

        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield serve
        finally:
            handler.state.closing.set()
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def used_for_s3(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While the context lasts, S3 is this server; the environment is put back with the test's."""
    for name, value in {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "SECRET",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    S3Store.clear_instance_cache()
    try:
        yield
    finally:
        server.closing.set()
        S3Store.clear_instance_cache()
