"""S3 as a file system with our bounds, and what its failures mean.

Only code that meets an `s3://` or another remote URI imports this: botocore and aiohttp take a
quarter of a second to load.
"""

from typing import Final

import aiohttp
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from s3fs import S3FileSystem  # type: ignore[import-untyped]

from indexer.uris import KEYS_CHECK, redact, s3_endpoint, s3_region

CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 60
FAILURES: Final[tuple[type[Exception], ...]] = (
    OSError,
    BotoCoreError,
    ClientError,
    aiohttp.ClientError,
)
"""Whatever an operation on a remote store may raise."""

_DENIED: Final = f"access was denied: the credentials lack the permission, or {KEYS_CHECK}"
_REGION_CHECK: Final = "set AWS_REGION to the bucket's region"
_REFUSALS: Final = {
    "InvalidAccessKeyId": f"the credentials were refused: {KEYS_CHECK}",
    "SignatureDoesNotMatch": f"the credentials were refused: {KEYS_CHECK}",
    "InvalidToken": f"the credentials were refused: {KEYS_CHECK}",
    "ExpiredToken": "the credentials have expired: renew them",
    "TokenRefreshRequired": "the credentials have expired: renew them",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
    "AccessDenied": _DENIED,
    "403": _DENIED,
    "NoSuchBucket": "the bucket does not exist: check its name and AWS_ENDPOINT_URL",
    "InvalidBucketName": "no bucket can have this name",
    "PermanentRedirect": f"the bucket is in another region: {_REGION_CHECK}",
    "301": f"the bucket is in another region: {_REGION_CHECK}",
    "AuthorizationHeaderMalformed": f"the request was signed for another region: {_REGION_CHECK}",
}


class S3Store(S3FileSystem):  # type: ignore[misc]
    """S3 with our bounds, no cached listings, and keys taken literally."""

    connect_timeout = CONNECT_SECONDS
    read_timeout = READ_SECONDS
    retries = 3

    def split_path(self, path: str) -> tuple[str, str, str | None]:
        """Bucket and key; the base class would cut `?versionId=` off a key that holds it."""
        bucket, key = self._find_bucket_key(path.removeprefix("s3://").removeprefix("s3a://"))
        return bucket, key, None

    def names_after(self, path: str, name: str) -> list[str]:
        """Names of the objects directly in a folder that sort after a name."""
        bucket, key, _ = self.split_path(path)
        folder = f"{key}/" if key else ""
        request = {"Bucket": bucket, "Prefix": folder, "Delimiter": "/"}
        names: list[str] = []
        more: dict[str, str] | None = {"StartAfter": folder + name}
        while more:
            page = self.call_s3("list_objects_v2", **request, **more)
            names += [entry["Key"].removeprefix(folder) for entry in page.get("Contents", [])]
            token = page.get("NextContinuationToken")
            more = {"ContinuationToken": token} if token else None
        return names


def open_store() -> S3Store:
    """The store, with credentials and endpoint from the environment."""
    # botocore reads AWS_DEFAULT_REGION only; everything else of AWS reads AWS_REGION too
    region = s3_region()
    return S3Store(
        default_cache_type="none",
        use_listings_cache=False,
        config_kwargs={"retries": {"mode": "standard", "total_max_attempts": 4}},
        client_kwargs={"region_name": region} if region else {},
    )


def service_code(error: BaseException) -> str:
    """The code that the S3 service gave, such as "NoSuchBucket", or an empty string."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ClientError):
        cause = cause.__cause__
    return "" if cause is None else str(cause.response.get("Error", {}).get("Code", ""))


def explain(error: BaseException) -> str | None:
    """What a failure means and what to do, or None where only the error itself can say."""
    code = service_code(error)
    if code in _REFUSALS:
        return f"{_REFUSALS[code]} ({code})"
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return f"no credentials were found: {KEYS_CHECK}, or give the machine a role"
    if isinstance(error, TimeoutError | BotoConnectionError | HTTPClientError):
        endpoint = s3_endpoint()
        where = f"AWS_ENDPOINT_URL={redact(endpoint)}" if endpoint else "no AWS_ENDPOINT_URL is set"
        return f"cannot reach the storage service ({where}; {type(error).__name__})"
    return None


def lost_race(error: OSError) -> bool:
    """Whether a conditional write met another; not every server lets s3fs see it by type."""
    races = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
    return service_code(error) in races
