import pickle
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer import errors
from indexer.errors import ConfigError, StorageError
from indexer.redaction import MASK, redact_credentials, redact_text

AWS_KEY = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLE"
SIGNATURE = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"

SECRET_TEXTS = [
    ("s3://AKIAIOSFODNN7EXAMPLE:" + AWS_KEY + "@bucket/key", "s3://bucket/key"),
    ("cannot reach http://me:hunter2@10.0.0.1:9000/x?y", "cannot reach http://10.0.0.1:9000/x?y"),
    ("postgresql://me:p@ss/w0rd@db/x", "postgresql://db/x"),
    ("redis://:hunter2@host", "redis://host"),
    (
        f"https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIA%2F1&X-Amz-Signature={SIGNATURE}&n=1",
        f"https://b.s3.amazonaws.com/k?X-Amz-Credential={MASK}&X-Amz-Signature={MASK}&n=1",
    ),
    ("https://x.blob.core.windows.net/a?sv=1&sig=abc%3D", f"https://x.blob.core.windows.net/a?sv=1&sig={MASK}"),
    ("https://h/a?X-Goog-Signature=0aff", f"https://h/a?X-Goog-Signature={MASK}"),
    ("https://h/a?access_token=abc", f"https://h/a?access_token={MASK}"),
    ("https://h/a?auth-token=abc;api_key=def", f"https://h/a?auth-token={MASK};api_key={MASK}"),
    ('{"url": "https://h/a?token=abc", "n": 1}', f'{{"url": "https://h/a?token={MASK}", "n": 1}}'),
    ("the key AKIAIOSFODNN7EXAMPLE is wrong", f"the key {MASK} is wrong"),
    ("hf_" + "aB3" * 11, MASK),
    ("{'Authorization': 'Bearer abcdef012345'}", f"{{'Authorization': 'Bearer {MASK}'}}"),
    (
        f"AWS4-HMAC-SHA256 Credential=AK/2026/s3, SignedHeaders=host, Signature={SIGNATURE}",
        f"AWS4-HMAC-SHA256 Credential={MASK}, SignedHeaders=host, Signature={MASK}",
    ),
]  # fmt: skip

PLAIN_TEXTS = [
    "s3://bucket/a?b#c@d",
    "s3://bucket/2024/me@home:1.mp4",
    "http://127.0.0.1:8265/a@b",
    "http://host:8265?a@b",
    "/videos/token=1/who@where.mp4",
    "model.token: no such key; section model has id, revision",
    "sampling.mode = 'every': should be 'windows', 'uniform'",
    "error: 3 tokens, 2 keys, 1 secret?",
    "https://host/a?page=2&key_frames=3",
]


@pytest.mark.parametrize(("text", "shown"), SECRET_TEXTS)
def test_credentials_are_taken_out_and_the_rest_stays(text, shown):
    assert redact_credentials(text) == shown
    assert redact_text(text) == shown


@pytest.mark.parametrize("text", PLAIN_TEXTS)
def test_a_text_without_credentials_stays_as_it_is(text):
    assert redact_text(text) == text


@given(st.text())
def test_redacting_twice_is_redacting_once(text):
    assert redact_text(redact_text(text)) == redact_text(text)


@given(st.text(string.ascii_letters + string.digits + "/+=._-~%:", min_size=8))
def test_no_password_of_a_uri_survives(password):
    assert password not in redact_text(f"at ftp://me:x{password}@host/file, sorry")


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "DB_PASSWORD", "MY_API_KEY"]
)
def test_what_the_environment_calls_a_secret_is_one(monkeypatch, name):
    monkeypatch.setenv(name, "correct-horse")
    assert redact_text("KeyError: 'correct-horse'") == f"KeyError: '{MASK}'"


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN_PATH", "AWS_SHARED_CREDENTIALS_FILE", "KEYBOARD"])
def test_settings_with_similar_names_are_none(monkeypatch, name):
    monkeypatch.setenv(name, "/home/me/something")
    assert redact_text("in /home/me/something") == "in /home/me/something"


def test_a_secret_within_a_secret_leaves_nothing(monkeypatch):
    monkeypatch.setenv("A_SECRET", "12345678")
    monkeypatch.setenv("B_SECRET", "0012345678900")
    assert redact_text("<0012345678900>") == f"<{MASK}>"


def every_error(cls=errors.IndexerError):
    yield cls
    for child in cls.__subclasses__():
        yield from every_error(child)


@pytest.mark.parametrize("cls", sorted(set(every_error()), key=lambda cls: cls.__name__))
def test_no_error_of_the_package_repeats_a_credential(cls):
    error = cls("s3://me:hunter2@bucket: cannot be read")
    assert str(error) == "s3://bucket: cannot be read"
    assert "hunter2" not in repr(error)
    assert b"hunter2" not in pickle.dumps(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_error_s_other_arguments_stay():
    assert ConfigError("a", 1).args == ("a", 1)
    assert StorageError().args == ()
