"""Takes credentials out of a text before it becomes a message, a row, a report or a line of a log.

What is recognised: user and password of any URI, the secret parameters of signed addresses, keys
and tokens by their well-known shapes, and whatever the environment holds under a name such as
`AWS_SECRET_ACCESS_KEY` or `HF_TOKEN`. A text that is free of them comes back as it was.
"""

import os
import re
from typing import Final

MASK: Final = "***"

_PARAMETER: Final = (
    r"(?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|sig|awsaccesskeyid"
    r"|(?:[a-z0-9]+[_-])*(?:token|password|passwd|secret|(?:api|access|secret)[_-]?key))"
)
_SECRET_PARAMETER: Final = re.compile(rf"([?&;]{_PARAMETER}=)[^&;\s'\"<>\\]+", re.IGNORECASE)
# The first form is for a password with a slash or an @ in it, as the secret keys of AWS have; the
# port of an address is no password.
_USER: Final = re.compile(
    r"([a-z][a-z0-9+.-]*://)"
    r"(?:[^\s/:@'\"<>]*:(?!\d+(?:[/?#\s]|$))[^\s'\"<>]*|[^\s/@?#'\"<>]*)@",
    re.IGNORECASE,
)
_SHAPES: Final = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # access keys of AWS
    r"|\bhf_[A-Za-z0-9]{20,}"  # tokens of Hugging Face
    r"|(?<=Bearer )[\w.~+/-]{8,}=*"
    r"|(?<=Signature=)[0-9a-f]{64}|(?<=Credential=)[\w%/-]+"  # of an Authorization header
)
_SECRET_VARIABLE: Final = re.compile(
    r"(?:^|_)(?:SECRET|TOKEN|PASSWORD|PASSWD|KEY)(?:_|$)(?!.*(?:PATH|FILE|DIR|URL|URI|MODE)$)"
)
_SHORTEST_SECRET: Final = 8
"""A shorter value of a variable is taken for a setting: masking it would maim innocent words."""


def redact_text(text: str) -> str:
    """The text with every recognised credential replaced by `***`."""
    text = redact_credentials(text)
    for secret in _environment_secrets():
        text = text.replace(secret, MASK)
    return text


def redact_credentials(text: str) -> str:
    """The same without a look at the environment: for texts in their millions."""
    text = _USER.sub(r"\1", text)
    text = _SECRET_PARAMETER.sub(rf"\1{MASK}", text)
    return _SHAPES.sub(MASK, text)


def names_user(uri: str) -> bool:
    """Whether a URI carries a user or a password."""
    return _USER.match(uri) is not None


def is_signed(uri: str) -> bool:
    """Whether a URI carries a signature, a token or another secret parameter."""
    return _SECRET_PARAMETER.search(uri) is not None


def _environment_secrets() -> list[str]:
    """Longest first, so that no secret is cut by a shorter one in it."""
    secrets = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLE.search(name.upper())
    }
    return sorted(secrets, key=len, reverse=True)
