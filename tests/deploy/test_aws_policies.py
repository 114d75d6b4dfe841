"""The policies give what the cluster does, and no more."""

import json
import re

import pytest
from packaging.requirements import Requirement

from tests.deploy.templates import CLUSTER_YAML, REPOSITORY, filled

POLICIES = sorted((REPOSITORY / "deploy" / "aws").glob("*.json"))
NAMED = {path.stem: json.loads(path.read_text()) for path in POLICIES}
UNSCOPED = {
    # AWS knows no resource to name for these; the region, or the session, bounds them.
    ("head-autoscaler", "SeeInstances"),
    ("session-manager", "ReachableThroughSystemsManager"),
}


def listed(value):
    return value if isinstance(value, list) else [value]


def statements():
    for name, policy in NAMED.items():
        for statement in policy["Statement"]:
            yield pytest.param(name, statement, id=f"{name}/{statement['Sid']}")


def statement(policy, sid):
    return next(each for each in NAMED[policy]["Statement"] if each["Sid"] == sid)


@pytest.mark.parametrize(("name", "statement"), [*statements()])
def test_a_statement_names_its_actions_and_resources(name, statement):
    assert statement["Effect"] == "Allow"
    assert not any("*" in action for action in listed(statement["Action"]))
    if name != "trust" and (name, statement["Sid"]) not in UNSCOPED:
        assert all(r.startswith("arn:aws:") and r != "*" for r in listed(statement["Resource"]))
        assert not any(r.startswith("arn:aws:s3:::*") for r in listed(statement["Resource"]))


def test_nothing_writes_to_the_archive_and_workers_read_no_index():
    actions = {
        name: {action for each in policy["Statement"] for action in listed(each["Action"])}
        for name, policy in NAMED.items()
    }
    assert actions["archive-read"] == {"s3:ListBucket", "s3:GetObject"}
    assert actions["index-append"] == {"s3:PutObject", "s3:AbortMultipartUpload"}
    assert "s3:DeleteObject" in actions["index-write"]


def test_workers_add_to_the_partitions_of_the_tables_only():
    """The logs, the leases and the reports are the head's: a worker cannot commit."""
    places = listed(statement("index-append", "AddDataFiles")["Resource"])
    tables = [re.search(r"PREFIX/(\w+)/model=\*$", place) for place in places]
    assert {found[1] for found in tables} == {"clips", "embeddings", "labels", "videos"}


def test_the_head_starts_only_the_instances_of_the_cluster():
    cluster = filled(CLUSTER_YAML)
    start = statement("head-autoscaler", "StartWorkersOfThisClusterOnly")["Condition"]
    workers = {k: v for k, v in cluster["available_node_types"].items() if k != "head"}
    assert set(start["StringEquals"]["ec2:InstanceType"]) == {
        node["node_config"]["InstanceType"] for node in workers.values()
    }
    assert start["StringEquals"]["aws:RequestTag/ray-cluster-name"] == cluster["cluster_name"]
    assert start["StringEquals"]["ec2:MetadataHttpTokens"] == "required"
    (profile,) = {node["node_config"]["IamInstanceProfile"]["Name"] for node in workers.values()}
    assert start["StringEquals"]["ec2:InstanceProfile"].endswith(f"instance-profile/{profile}")
    passed = statement("head-autoscaler", "GiveWorkersTheirRoleOnly")["Resource"]
    assert passed.endswith(f":role/{profile}")


@pytest.mark.parametrize("sid", ["TagWhatIsBeingStarted", "TagAndEndThisClusterOnly"])
def test_tags_and_ends_are_conditional(sid):
    assert statement("head-autoscaler", sid)["Condition"]["StringEquals"]


def test_every_dependency_is_pinned_within_its_range():
    project = (REPOSITORY / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)[1]
    wanted = [Requirement(text) for text in re.findall(r'^\s*"([^"]+)"', listed, re.MULTILINE)]
    lines = (REPOSITORY / "deploy" / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert len(pins) > len(wanted) > 10
    for requirement in wanted:
        assert requirement.specifier.contains(pins[requirement.name.replace("_", "-")]), requirement
