"""What leaves a worker is what Ray writes into its logs."""

import logging
import traceback

import pytest

from indexer.errors import ClusterError, StorageError
from indexer.runtime.workers import public_errors

SIGNED = "https://me:hunter2@host/k?X-Amz-Signature=hunter2"


def shown(error):
    """All that Python, and Ray, print of an exception."""
    return "".join(traceback.format_exception(error))


def fail_with_a_cause():
    try:
        raise OSError(SIGNED)
    except OSError as error:
        message = "the bucket is away"
        raise StorageError(message) from error


def test_an_error_of_the_package_leaves_without_its_causes():
    with pytest.raises(StorageError) as caught, public_errors():
        fail_with_a_cause()
    assert "the bucket is away" in shown(caught.value)
    assert "hunter2" not in shown(caught.value)


def test_any_other_error_becomes_one_and_its_traceback_is_logged_redacted(caplog):
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(ClusterError, match=r"the pipeline failed on \S+:\d+: KeyError") as caught,
        public_errors(),
    ):
        raise KeyError(SIGNED)
    assert "hunter2" not in shown(caught.value)
    assert "KeyError: 'https://host/k?X-Amz-Signature=***'" in caplog.text
    assert "test_workers.py" in caplog.text
    assert "hunter2" not in caplog.text


def test_without_it_the_causes_would_be_shown():
    with pytest.raises(StorageError) as caught:
        fail_with_a_cause()
    assert "hunter2" in shown(caught.value)
