"""Decodes hostile bytes where they can do no harm: in a child process that may crash or be killed.

The process of the decoder (`parent`) starts a `template` once, which forks a worker (`child`) in
milliseconds whenever one is needed; the worker gives up its rights (`confine`) before it sees a
byte. Messages between them are checked (`wire`), as is what they amount to (`ledger`); frames
travel in memory that both hold (`shared`).
"""

from indexer.video.sandbox.parent import Sandbox, Video

__all__ = ["Sandbox", "Video"]
