import copy
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER_YAML = Path(__file__).resolve().parents[1] / "cluster.yaml"


@pytest.fixture
def cluster():
    return yaml.safe_load(CLUSTER_YAML.read_text(encoding="utf-8"))


def prepared(cluster):
    """What `ray up` makes of the file before it talks to the cloud."""
    return prepare_config(copy.deepcopy(cluster))


def test_ray_accepts_the_file(cluster):
    validate_config(prepared(cluster))


def test_the_schema_would_refuse_a_typing_error(cluster):
    cluster["available_node_types"]["gpu"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepared(cluster))


def test_the_head_does_no_work(cluster):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}


def test_decode_nodes_have_no_gpu_and_gpu_nodes_have_one(cluster):
    roles = {t["labels"]["role"]: t["resources"] for t in cluster["available_node_types"].values()}
    assert "GPU" not in roles["decode"]
    assert roles["gpu"]["GPU"] >= 1


@pytest.mark.parametrize("node_type", ["decode", "gpu"])
def test_workers_are_spot_and_go_away_when_idle(cluster, node_type):
    node = cluster["available_node_types"][node_type]
    assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert node["min_workers"] == 0


def test_images_are_pinned_to_the_tested_ray(cluster):
    images = [cluster["docker"]["image"]]
    images += [
        t["docker"]["worker_image"]
        for t in cluster["available_node_types"].values()
        if "docker" in t
    ]
    for image in images:
        assert image.startswith(f"rayproject/ray:{ray.__version__}-py311")


def test_every_node_has_tokens_encrypted_disks_and_imdsv2(cluster):
    starts = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    for command in starts:
        assert "ray start" not in command or "RAY_AUTH_MODE=token" in command
    for node_type in cluster["available_node_types"].values():
        node = node_type["node_config"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
