import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.config import Cluster, Model
from indexer.errors import ClusterError
from indexer.runtime.cluster import WRITER_CPUS, connected, size_pools


def pools(cpus, gpus=0, *, todo_rows=1000, device="auto", batch_size=None, **cluster):
    model = Model(device=device, batch_size=batch_size)
    return size_pools(cpus, gpus, Cluster(**cluster), model, todo_rows=todo_rows)


@given(st.integers(1, 500), st.integers(0, 16), st.integers(0, 10_000))
def test_all_actors_fit_into_the_cluster_at_once(cpus, gpus, todo_rows):
    found = pools(float(cpus), float(gpus), todo_rows=todo_rows)
    actors = found.decode_actors + found.model_actors
    assert actors * found.actor_cpus + WRITER_CPUS * found.write_actors <= cpus
    assert found.actor_cpus > 0.1
    assert found.write_actors >= 1
    assert min(found.decode_actors, found.model_actors) >= 1
    assert found.device == ("cuda" if gpus else "cpu")


@pytest.mark.parametrize(
    ("cpus", "gpus", "decode", "model"),
    [(1, 0, 1, 1), (2, 0, 1, 1), (4, 0, 1, 3), (16, 0, 4, 12), (16, 1, 14, 1), (64, 8, 52, 8)],
)
def test_pools_by_hand(cpus, gpus, decode, model):
    found = pools(cpus, gpus)
    assert (found.decode_actors, found.model_actors) == (decode, model)


def test_no_more_decoders_than_videos():
    assert pools(64, todo_rows=3).decode_actors == 3


def test_defaults_follow_the_device():
    assert (pools(8).batch_size, pools(8).block_clips) == (None, 8)
    assert (pools(8, 1).batch_size, pools(8, 1).block_clips) == (None, 64)
    assert pools(8, 1, device="cpu").device == "cpu"
    assert pools(8, batch_size=5, block_clips=6).batch_size == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cpus": 0.5}, "has 0.5 CPUs"),
        ({"cpus": 8, "device": "cuda"}, "has no GPU"),
        ({"cpus": 2, "decode_actors": 4}, r"4 decode and 1 model actors need 5 CPUs.* has 2"),
        ({"cpus": 8, "gpus": 1, "model_actors": 2}, r"need 2 GPUs.* has 1"),
    ],
)
def test_too_small_a_cluster_is_refused_with_the_numbers(arguments, words):
    with pytest.raises(ClusterError, match=words):
        pools(**arguments)


def test_an_unreachable_cluster_is_refused_at_once():
    with (
        pytest.raises(ClusterError, match=r"cannot reach the Ray cluster at 127\.0\.0\.1:9"),
        connected(Cluster(address="127.0.0.1:9")),
    ):
        pass
