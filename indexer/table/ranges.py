"""A data file of known size, of which only the ranges that are read are fetched."""

import io
import os
from typing import TYPE_CHECKING

import pyarrow as pa

from indexer import storage

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


def open_ranged(uri: str, size_bytes: int) -> pa.NativeFile:
    """Opens a file for reading anywhere in it; remote storage gets one request for each read.

    Args:
        uri: of the file.
        size_bytes: of the file, which is not asked for.

    Raises:
        OSError: there is no such file; remote storage says so at the first read.
    """
    if storage.is_local(uri):
        return pa.OSFile(storage.absolute_uri(uri))
    fs, path = storage.filesystem(uri)
    return pa.PythonFile(_RangedFile(fs, path, size_bytes))


class _RangedFile(io.RawIOBase):
    """As much of a Python file as Arrow needs. fsspec's own asks for the size and reads ahead."""

    def __init__(self, fs: "AbstractFileSystem", path: str, size_bytes: int) -> None:
        super().__init__()
        self._fs = fs
        self._path = path
        self._size_bytes = size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}
        self._position = starts[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        end = self._size_bytes if size < 0 else min(self._position + size, self._size_bytes)
        if end <= self._position:
            return b""
        content: bytes = self._fs.cat_file(self._path, start=self._position, end=end)
        self._position += len(content)
        return content
