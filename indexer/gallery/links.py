"""Addresses that open a video at a time.

What a video is called comes from whoever named it, so a link is made only where the address can be
nothing but that of a file: a path of this machine, or `http` and `https`. All else is text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import quote, urlsplit, urlunsplit

from indexer.errors import ConfigError

_WEB: Final = ("http", "https")
_SCHEMES: Final = (*_WEB, "file", "")
_OF_URLS: Final = "/%:@!$&'()*+,;=~?[]"
"""What an address that is one already keeps as it is."""


@dataclass(frozen=True, slots=True)
class LinkPrefix:
    """Videos whose uri begins with `old` are linked below `new`.

    Attributes:
        old: such as `s3://bucket/`.
        new: such as `https://cdn.example/`, or a path that starts at the page.
    """

    old: str
    new: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `OLD=NEW`.

        Raises:
            ConfigError: it is not that, or links would lead to something that is no file.
        """
        old, equals, new = text.partition("=")
        if not (old and equals):
            message = f"link prefix {text!r}: should be OLD=NEW"
            raise ConfigError(message)
        if _scheme(new) not in _SCHEMES:
            message = f"link prefix {text!r}: links may begin with http://, https:// or file://"
            raise ConfigError(message)
        return cls(old, new)


def link_to(
    uri: str, start_seconds: float, end_seconds: float, prefixes: Sequence[LinkPrefix]
) -> str | None:
    """The address at which a browser plays a stretch of a video; None where there is none.

    Args:
        uri: of the video.
        start_seconds: of the stretch, W3C Media Fragments' `t`.
        end_seconds: of the stretch.
        prefixes: of which the first that fits counts.
    """
    address = _address(uri, prefixes)
    if address is None or _scheme(address) not in _SCHEMES:
        return None
    return f"{address}#t={start_seconds:.3f},{end_seconds:.3f}"


def _address(uri: str, prefixes: Sequence[LinkPrefix]) -> str | None:
    for prefix in prefixes:
        if uri.startswith(prefix.old):
            rest = quote(uri.removeprefix(prefix.old))
            return prefix.new + (rest if prefix.new else f"./{rest.lstrip('/')}")
    if uri.startswith("/"):
        return "file:///" + quote(uri.lstrip("/"))  # two slashes would name another machine
    return _web_address(uri)


def _web_address(uri: str) -> str | None:
    """An http address without user, password and fragment."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    if parts.scheme not in _WEB or not parts.netloc:
        return None
    host = quote(parts.netloc.rpartition("@")[2], safe=":[]")
    path, query = (quote(part, safe=_OF_URLS) for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, host, path, query, ""))


def _scheme(address: str) -> str:
    try:
        return urlsplit(address).scheme
    except ValueError:
        return "?"
