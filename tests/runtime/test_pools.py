import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.config import Cluster, Model
from indexer.errors import ClusterError
from indexer.runtime.placement import decode_options, model_options, write_options
from indexer.runtime.pools import Node, size_pools

HEAD = Node(0)
BASE_FLOPS = 0.39e12


def pools(*nodes, todo_rows=1000, device="auto", batch_size=None, clip_flops=BASE_FLOPS, **cluster):
    model = Model(device=device, batch_size=batch_size)
    return size_pools(nodes, Cluster(**cluster), model, todo_rows=todo_rows, clip_flops=clip_flops)


roles = st.sampled_from(["", "decode", "gpu"])
machines = st.builds(
    Node,
    cpus=st.sampled_from([0, 1, 1.5, 2, 3, 4, 8, 16, 64]).map(float),
    gpus=st.sampled_from([0, 0, 1, 4]).map(float),
    role=roles,
)


def place(options, free, rng):
    """Puts the actors of a stage, in an order of their own, on nodes that Ray may choose."""
    role = options.get("label_selector", {}).get("role", "")
    for _ in range(options["compute"].max_size):
        fits = [
            node
            for node, (cpus, gpus) in free.items()
            if cpus >= options["num_cpus"] - 1e-9 and gpus >= options.get("num_gpus", 0) - 1e-9
            and (not role or (node[1].role != role[1:] if role[0] == "!" else node[1].role == role))
        ]  # fmt: skip
        assert fits, f"no node has room for {options}"
        node = rng.choice(fits)
        cpus, gpus = free[node]
        free[node] = cpus - options["num_cpus"], gpus - options.get("num_gpus", 0)


@given(st.lists(machines, min_size=1, max_size=6), st.randoms(), st.sampled_from([1.0, 0.5]))
def test_every_actor_finds_a_node_wherever_the_others_are(nodes, rng, gpus_per_model_actor):
    try:
        found = pools(*nodes, gpus_per_model_actor=gpus_per_model_actor)
    except ClusterError as error:
        assert "needs at least 1" in str(error)  # noqa: PT017 - the only reason to refuse
        return
    free = {(number, node): (node.cpus, node.gpus) for number, node in enumerate(nodes)}
    stages = [decode_options(found), model_options(found), write_options(found)]
    rng.shuffle(stages)
    for options in stages:
        place(options, free, rng)
    assert all(free[number, node][0] == 0 for number, node in free if node.cpus == 0)


@given(st.lists(machines, min_size=1, max_size=6), st.integers(0, 100))
def test_a_lost_node_leaves_room_for_the_writers(nodes, seed):
    """Those of the lost node come back beside decoders that have taken all that was free."""
    rng = random.Random(seed)
    sizeable = [node for node in nodes if node.cpus >= 1]
    if not sizeable:
        return
    found = pools(*nodes)
    left = [node for node in sizeable if found.decode_role in {None, node.role}]
    node = rng.choice(left)
    decoders = int(node.cpus / found.actor_cpus)
    room = node.cpus - decoders * found.actor_cpus
    assert room >= found.write_actors * write_options(found)["num_cpus"]


@pytest.mark.parametrize(
    ("nodes", "decode", "model"),
    [
        ([Node(1)], 1, 1),
        ([Node(2)], 1, 1),
        ([Node(4)], 1, 3),
        ([Node(16)], 4, 12),
        ([Node(16, 1)], 14, 1),
        ([Node(64, 8)], 52, 8),
        ([HEAD, Node(4), Node(4)], 2, 6),
        ([HEAD, Node(16, role="decode"), Node(16, role="decode"), Node(16, 1, "gpu")], 31, 1),
        ([HEAD, Node(16, role="decode"), Node(8, role="other")], 16, 8),
        ([HEAD, Node(16, role="decode")], 4, 12),
        ([Node(0, 8), Node(4, 1)], 2, 1),
        ([Node(2, 8), Node(16)], 15, 2),
    ],
)
def test_pools_by_hand(nodes, decode, model):
    found = pools(*nodes)
    assert (found.decode_actors, found.model_actors) == (decode, model)


def test_where_the_stages_go():
    labelled = pools(HEAD, Node(8, role="decode"), Node(8, 1, "gpu"))
    assert decode_options(labelled)["label_selector"] == {"role": "decode"}
    assert write_options(labelled)["label_selector"] == {"role": "decode"}
    assert "label_selector" not in model_options(labelled)
    assert model_options(labelled)["num_gpus"] == 1
    apart = pools(HEAD, Node(8, role="decode"), Node(8))
    assert model_options(apart)["label_selector"] == {"role": "!decode"}
    assert model_options(apart)["num_gpus"] == 0
    without = pools(Node(8), Node(8, 1))
    assert "label_selector" not in decode_options(without) | write_options(without)


def test_only_on_a_gpu_are_blocks_taken_in_while_another_is_scored():
    calls = [
        model_options(pools(Node(8, gpus)))["compute"].max_concurrent_calls_per_actor
        for gpus in (0, 1)
    ]
    assert calls == [1, 2]


def test_model_actors_may_share_a_gpu():
    found = pools(Node(16, 2), gpus_per_model_actor=0.5)
    assert found.model_actors == 4
    assert model_options(found)["num_gpus"] == 0.5


def test_no_more_decoders_than_videos():
    assert pools(Node(64), todo_rows=3).decode_actors == 3


def test_defaults_follow_the_device():
    assert (pools(Node(8)).batch_size, pools(Node(8)).block_clips) == (None, 8)
    assert (pools(Node(8, 1)).batch_size, pools(Node(8, 1)).block_clips) == (None, 64)
    assert [pools(Node(8), clip_flops=flops).block_clips for flops in (1e8, 1e11, 4e12)] == [
        64, 30, 8,
    ]  # fmt: skip
    assert pools(Node(8, 1), device="cpu").device == "cpu"
    assert pools(Node(8), batch_size=5, block_clips=6).batch_size == 5


@pytest.mark.parametrize(
    ("nodes", "arguments", "words"),
    [
        ([Node(0.5)], {}, "has 0.5 CPUs"),
        ([HEAD], {}, "has 0 CPUs"),
        ([Node(0, 1)], {}, "has 0 CPUs"),
        ([Node(8)], {"device": "cuda"}, "has no GPU"),
        ([Node(8), Node(0, 1)], {"device": "cuda"}, "has no GPU"),
        ([Node(2)], {"decode_actors": 4}, r"4 decode and 1 model actors need 5 CPUs.* has 2"),
        ([Node(8, 1)], {"model_actors": 2}, r"need 2 GPUs.* has 1"),
        (
            [Node(4, role="decode"), Node(64, 1)],
            {"decode_actors": 8},
            r"need 8 CPUs on nodes of the role decode, but the Ray cluster has 4",
        ),
    ],
)
def test_too_small_a_cluster_is_refused_with_the_numbers(nodes, arguments, words):
    with pytest.raises(ClusterError, match=words):
        pools(*nodes, **arguments)


@pytest.mark.parametrize("nodes", [[], [HEAD], [HEAD, Node(8, role="decode")]])
def test_a_cluster_that_grows_may_have_nothing_yet(nodes):
    bounds = {"decode_actors": 40, "model_actors": 8}
    found = pools(*nodes, device="cuda", autoscaling=True, **bounds)
    assert (found.decode_actors, found.model_actors) == (40, 8)
    for options in (decode_options(found), model_options(found), write_options(found)):
        assert options["compute"].min_size == 1
    assert model_options(found)["compute"].max_size == 8
    assert model_options(found)["num_gpus"] == 1
