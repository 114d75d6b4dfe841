"""A template process that makes itself ready, and ends when it is asked to fork."""

import socket
import sys

from indexer.video.sandbox.template import READY
from indexer.video.sandbox.wire import Channel

if __name__ == "__main__":
    with Channel(socket.socket(fileno=int(sys.argv[1]))) as control:
        control.receive()
        control.send(READY)
        control.receive_with_files(0)
