import copy
import re

import jsonschema
import pytest
import ray
from ray.autoscaler._private.util import prepare_config, validate_config

from deploy.check import broken, main, read
from deploy.ray_up_rules import RULES
from tests.deploy.templates import CLUSTER_YAML, REPOSITORY, filled, put

NODES = "available_node_types"
HEAD, SPOT, DEMAND, GPU = (
    f"{NODES}/head",
    *(f"{NODES}/{name}" for name in ("decode-spot", "decode-on-demand", "gpu-spot")),
)
HEAD_START, WORKER_START = "head_start_ray_commands", "worker_start_ray_commands"


@pytest.fixture
def cluster():
    return filled(CLUSTER_YAML)


def replaced(place, old, new):
    """A mutation of one text."""

    def mutate(document):
        node = document
        parts = [int(part) if part.isdigit() else part for part in place.split("/")]
        for part in parts[:-1]:
            node = node[part]
        assert old in node[parts[-1]], "the mutation would change nothing"
        node[parts[-1]] = node[parts[-1]].replace(old, new)

    return mutate


def set_to(place, value):
    return lambda document: put(document, place, value)


MUTATIONS = [
    ("filled-in", set_to(f"{HEAD}/node_config/SubnetIds", ["subnet-PUT-A-PRIVATE-ONE"])),
    ("token-on-every-node", replaced(f"{HEAD_START}/1", "RAY_AUTH_MODE=token ", "")),
    ("token-on-every-node", replaced(f"{WORKER_START}/1", "RAY_AUTH_MODE=token ", "")),
    ("token-on-every-node", replaced("docker/run_options/2", "=token", "=disabled")),
    ("token-on-every-node", set_to("file_mounts", {"/home/ray/video-indexer": "."})),
    ("dashboard-on-loopback", replaced(f"{HEAD_START}/1", "127.0.0.1", "10.0.0.1")),
    ("imdsv2-only", set_to(f"{SPOT}/node_config/MetadataOptions/HttpTokens", "optional")),
    ("imds-hop-limit", set_to(f"{GPU}/node_config/MetadataOptions/HttpPutResponseHopLimit", 2)),
    ("encrypted-disks", set_to(f"{SPOT}/node_config/BlockDeviceMappings/0/Ebs/Encrypted", False)),
    ("own-roles", set_to(f"{SPOT}/node_config/IamInstanceProfile", {"Name": "video-indexer-head"})),
    ("own-roles", set_to(f"{HEAD}/node_config/IamInstanceProfile", {})),
    ("own-security-group", set_to(f"{GPU}/node_config/SecurityGroupIds", [])),
    ("own-security-group", set_to("provider/security_group", {"GroupName": "ours"})),
    ("private-subnets", set_to("provider/use_internal_ips", False)),
    ("private-subnets", set_to(f"{GPU}/node_config/SubnetIds", [])),
    ("ssh-through-session-manager", set_to("auth/ssh_proxy_command", "")),
    ("ssh-through-session-manager", set_to("provider/cidr", ["0.0.0.0/0"])),
    ("image-by-digest", set_to("docker/image", "rayproject/ray:2.60.0-py311")),
    ("image-by-digest", replaced(f"{GPU}/docker/worker_image", "@sha256:", "@sha256:0")),
    ("tested-image", replaced("docker/image", "2.60.0", "2.61.0")),
    ("pinned-setup", set_to("setup_commands/1", "pip install video-indexer")),
    ("head-without-work", set_to(f"{HEAD}/resources", {"CPU": 4})),
    ("roles-labelled", set_to(f"{GPU}/resources", {"CPU": 16})),
    ("spot-with-fallback", set_to(f"{DEMAND}/labels/role", "gpu")),
    ("spot-with-fallback", set_to(f"{DEMAND}/resources", {"CPU": 8})),
    ("spot-with-fallback", set_to(f"{DEMAND}/priority", 20)),
    ("idle-nodes-leave", set_to("idle_timeout_minutes", 60)),
    ("idle-nodes-leave", set_to(f"{GPU}/min_workers", 1)),
    ("idle-nodes-leave", set_to("provider/cache_stopped_nodes", True)),
    ("bounded", set_to(f"{SPOT}/max_workers", 400)),
    ("open-files", replaced("docker/run_options/0", "65536:65536", "1024:1024")),
    ("open-files", replaced(f"{WORKER_START}/1", "ulimit -n 65536; ", "")),
    ("object-store", replaced("docker/run_options/1", "10g", "2g")),
    ("object-store", replaced(f"{HEAD_START}/1", "--object-store-memory=2147483648", "")),
    ("time-to-stop", replaced(f"{HEAD_START}/1", "WAIT_TIME_S=60", "WAIT_TIME_S=3")),
    ("no-secrets", set_to("initialization_commands", ["export HF_TOKEN=hf_" + "a1B2" * 8])),
    ("no-secrets", set_to("initialization_commands", ["echo " + "0a" * 32])),
]


def test_ray_accepts_the_file(cluster):
    validate_config(prepared(cluster))


def test_the_schema_would_refuse_a_typing_error(cluster):
    cluster[NODES]["gpu-spot"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepared(cluster))


def prepared(cluster):
    """What `ray up` makes of the file before it talks to the cloud."""
    return prepare_config(copy.deepcopy(cluster))


def test_no_setting_of_a_node_is_null(cluster):
    """AWS would refuse it: a fallback is a node type without the key."""
    for node in cluster[NODES].values():
        assert None not in node["node_config"].values()


def test_as_shipped_only_what_the_user_knows_is_open():
    assert set(broken(read(CLUSTER_YAML))) == {"filled-in"}


def test_filled_in_it_breaks_no_rule(cluster):
    assert broken(cluster) == {}


@pytest.mark.parametrize(
    ("rule", "mutate"),
    [pytest.param(*pair, id=f"{number}-{pair[0]}") for number, pair in enumerate(MUTATIONS)],
)
def test_a_mutated_copy_breaks_the_rule(cluster, rule, mutate):
    mutate(cluster)
    assert rule in broken(cluster)


def test_every_rule_has_a_mutation():
    assert {rule for rule, _ in MUTATIONS} == set(RULES)
    assert len(RULES) >= 15


def test_a_missing_part_breaks_the_rules_that_need_it(cluster):
    del cluster["docker"]
    assert {"image-by-digest", "open-files"} <= set(broken(cluster))


def test_the_command_names_file_rule_and_place(capsys):
    assert main([str(CLUSTER_YAML)]) == 1
    assert f"{CLUSTER_YAML}: filled-in: docker.image: rayproject/ray" in capsys.readouterr().out


def test_images_and_constraints_hold_the_tested_ray(cluster):
    pinned = (REPOSITORY / "deploy" / "constraints.txt").read_text()
    assert f"\nray=={ray.__version__}\n" in pinned
    assert re.match(
        rf"rayproject/ray:{re.escape(ray.__version__)}-py311@", cluster["docker"]["image"]
    )
