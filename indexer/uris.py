"""The spelling of URIs: schemes, canonical names, and what of a URI may be shown.

An S3 key is opaque: `?`, `#`, `%`, `//` and `[1]` in it are ordinary characters.
"""

import json
import os
import re
from collections.abc import Collection
from typing import Final

from indexer.errors import ConfigError
from indexer.redaction import is_signed, names_user, redact_credentials

KEYS_CHECK: Final = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
_ALIASES: Final = {"local": "file", "s3a": "s3"}
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_QUERY: Final = re.compile(r"[?#].*", re.DOTALL)
_CHAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*::")


def scheme_of(uri: str) -> str:
    """The scheme of a URI in lower case; `file` for a plain path.

    Raises:
        ConfigError: the URI chains file systems (`simplecache::s3://...`), which would reach past
            the list of allowed schemes.
    """
    match = _SCHEME.match(uri)
    scheme = "file" if match is None else match[1].lower()
    scheme = _ALIASES.get(scheme, scheme)
    opaque = match is not None and scheme in {"file", "s3"}
    if _CHAIN.match(uri) or ("::" in uri and match is not None and not opaque):
        message = (
            f"{redact(uri)}: chained file systems (::) are not supported; name the object itself"
            " (a local file with :: in its name: write ./ before it)"
        )
        raise ConfigError(message)
    return scheme


def check_scheme(uri: str, allowed: Collection[str]) -> None:
    """Refuses a URI whose scheme the job does not allow.

    Raises:
        ConfigError: with what is allowed, and how to allow more.
    """
    scheme = scheme_of(uri)
    if scheme not in allowed:
        wanted = [*allowed, scheme]
        message = (
            f"{redact(uri)}: the scheme {scheme!r} is not allowed (allowed: {', '.join(allowed)});"
            f" to allow it, set schemes = {json.dumps(wanted)} or --set schemes={','.join(wanted)}"
        )
        raise ConfigError(message)


def absolute_uri(uri: str) -> str:
    """The canonical spelling of a URI, from which `video_id` is made.

    A local file becomes an absolute path without `file://`, links kept; `s3a://` becomes `s3://`;
    everything after the bucket is left as it is. `%41` is not decoded, as in all of fsspec.

    Raises:
        ConfigError: the URI chains file systems, names no bucket, or carries credentials.
    """
    scheme = scheme_of(uri)
    match = _SCHEME.match(uri)
    rest = uri if match is None else uri[match.end() :]
    if scheme == "file":
        return os.path.abspath(rest)  # noqa: PTH100 - Path would not drop "a/.."
    if names_user(uri):
        message = f"{redact(uri)}: credentials do not belong into a URI: {KEYS_CHECK}"
        raise ConfigError(message)
    if scheme != "s3":
        return uri
    bucket, slash, key = rest.partition("/")
    if not bucket:
        message = f"{uri!r} names no bucket; write s3://BUCKET/PREFIX"
        raise ConfigError(message)
    return f"s3://{bucket}{slash}{key}"


def check_public(uri: str) -> None:
    """Refuses what a user gives as a URI with a user, a password or a signature in it.

    Tables and reports keep URIs. A listed object may be called whatever it is called.

    Raises:
        ConfigError: without the credentials.
    """
    canonical = absolute_uri(uri)
    if scheme_of(uri) != "file" and is_signed(canonical):
        message = (
            f"{redact(uri)}: a signed address does not belong into an index, which would keep it"
            f" although it expires: name the object itself, and {KEYS_CHECK}"
        )
        raise ConfigError(message)


def join(root_uri: str, *parts: str) -> str:
    """A URI below another."""
    return "/".join([root_uri.rstrip("/"), *parts])


def redact(uri: str) -> str:
    """The URI without user, password, query and fragment; a name of a file or S3 key is kept.

    What looks like a signature is masked in an S3 key, too.
    """
    match = _SCHEME.match(uri)
    scheme = "file" if match is None else match[1].lower()
    if match is None or _ALIASES.get(scheme, scheme) == "file":
        return uri
    if _ALIASES.get(scheme, scheme) == "s3":
        return redact_credentials(uri)
    address = _QUERY.sub("", uri[match.end() :])  # by hand: no name makes this raise
    host, slash, path = address.partition("/")
    return f"{match[0].lower()}{host.rpartition('@')[2]}{slash}{path}"


def s3_endpoint() -> str:
    """Where S3 is, if not at AWS; empty where the environment does not say."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def s3_region() -> str:
    """The region that the environment names, or an empty string."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
