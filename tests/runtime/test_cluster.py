import pytest

from indexer.config import Cluster
from indexer.errors import ClusterError
from indexer.runtime.cluster import connected


def test_an_unreachable_cluster_is_refused_at_once():
    with (
        pytest.raises(ClusterError, match=r"cannot reach the Ray cluster at 127\.0\.0\.1:9"),
        connected(Cluster(address="127.0.0.1:9")),
    ):
        pass
