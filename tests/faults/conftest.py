"""A proxy before the S3 server, and the process that forks the jobs."""

import pytest

from tests.faults import proxy as proxies
from tests.faults.forks import Forks


@pytest.fixture(scope="module")
def proxy(s3):
    with proxies.running(s3.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def forks():
    with Forks() as forks:
        yield forks
