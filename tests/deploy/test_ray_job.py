import re

import pytest

from deploy.check import broken, read
from deploy.ray_job_rules import RULES
from tests.deploy.templates import RAY_JOB_YAML, drop, filled, put

SPEC = "RayJob/0/spec"
CLUSTER = f"{SPEC}/rayClusterSpec"
HEAD = f"{CLUSTER}/headGroupSpec"
DECODE, GPU = (f"{CLUSTER}/workerGroupSpecs/{number}" for number in (0, 1))
POD = "template/spec"
CONTAINER = f"{POD}/containers/0"


@pytest.fixture
def documents():
    return filled(RAY_JOB_YAML)


def set_to(place, value):
    return lambda documents: put(documents, place, value)


def without(place):
    return lambda documents: drop(documents, place)


MUTATIONS = [
    ("filled-in", set_to(f"{SPEC}/entrypoint", "indexer run --config s3://PUT-BUCKET/job.toml")),
    ("one-job", set_to("RayJob/0/apiVersion", "ray.io/v1alpha1")),
    ("token-from-a-secret", set_to(f"{CLUSTER}/authOptions/mode", "disabled")),
    ("token-from-a-secret", without(f"{CLUSTER}/authOptions/secretName")),
    ("token-from-a-secret", set_to("Secret", [{"stringData": {"auth_token": "x"}}])),
    (
        "no-secret-in-the-environment",
        set_to(f"{HEAD}/{CONTAINER}/env/0", {"name": "HF_TOKEN", "value": "x"}),
    ),
    (
        "no-secret-in-the-environment",
        set_to(f"{SPEC}/entrypoint", "indexer run https://me:pw@host/list.csv"),
    ),
    ("retried", set_to(f"{SPEC}/backoffLimit", 0)),
    ("retried", set_to(f"{SPEC}/submissionMode", "HTTPMode")),
    ("retried", without(f"{SPEC}/submitterConfig")),
    ("cluster-goes-away", set_to(f"{SPEC}/shutdownAfterJobFinishes", False)),
    ("cluster-goes-away", without(f"{SPEC}/activeDeadlineSeconds")),
    ("idle-nodes-leave", set_to(f"{GPU}/minReplicas", 1)),
    ("idle-nodes-leave", set_to(f"{CLUSTER}/autoscalerOptions/idleTimeoutSeconds", 86_400)),
    ("tested-ray", set_to(f"{CLUSTER}/rayVersion", "2.59.0")),
    ("image-by-digest", set_to(f"{GPU}/{CONTAINER}/image", "registry/video-indexer:latest")),
    ("not-root", set_to(f"{DECODE}/{POD}/securityContext/runAsUser", 0)),
    ("not-root", set_to(f"{GPU}/{POD}/securityContext/seccompProfile/type", "Unconfined")),
    (
        "no-escalation",
        set_to(f"{GPU}/{CONTAINER}/securityContext/allowPrivilegeEscalation", True),
    ),
    ("no-escalation", without(f"{CLUSTER}/autoscalerOptions/securityContext")),
    ("read-only-root", without(f"{HEAD}/{CONTAINER}/securityContext/readOnlyRootFilesystem")),
    ("read-only-root", without(f"{HEAD}/{POD}/volumes/0/emptyDir/sizeLimit")),
    ("bounded-resources", without(f"{DECODE}/{CONTAINER}/resources/limits/memory")),
    ("bounded-resources", set_to(f"{DECODE}/{CONTAINER}/resources/requests/memory", "1Gi")),
    ("roles-labelled", set_to(f"{DECODE}/labels/role", "gpu")),
    ("head-without-work", set_to(f"{HEAD}/rayStartParams/num-cpus", "4")),
    ("own-roles", set_to(f"{GPU}/{POD}/serviceAccountName", "video-indexer-head")),
    ("own-roles", set_to(f"{GPU}/{POD}/automountServiceAccountToken", True)),
    ("own-roles", set_to(f"{GPU}/{POD}/serviceAccountName", "default")),
    ("time-to-stop", set_to(f"{HEAD}/{POD}/terminationGracePeriodSeconds", 30)),
    ("time-to-stop", set_to(f"{HEAD}/{CONTAINER}/env", [])),
    ("closed-network", without("NetworkPolicy")),
    ("closed-network", set_to("NetworkPolicy/0/spec/ingress", [{}])),
]


def test_as_shipped_only_what_the_user_knows_is_open():
    assert set(broken(read(RAY_JOB_YAML))) == {"filled-in"}


def test_filled_in_it_breaks_no_rule(documents):
    assert broken(documents) == {}


@pytest.mark.parametrize(
    ("rule", "mutate"),
    [pytest.param(*pair, id=f"{number}-{pair[0]}") for number, pair in enumerate(MUTATIONS)],
)
def test_a_mutated_copy_breaks_the_rule(documents, rule, mutate):
    mutate(documents)
    assert rule in broken(documents)


def test_every_rule_has_a_mutation():
    assert {rule for rule, _ in MUTATIONS} == set(RULES)
    assert len(RULES) >= 15


def test_both_ways_to_a_cluster_have_the_same_roles_and_sizes(documents):
    cluster = documents["RayJob"][0]["spec"]["rayClusterSpec"]
    assert re.fullmatch(
        r"indexer run --config s3://\S+", documents["RayJob"][0]["spec"]["entrypoint"]
    )
    assert [group["labels"]["role"] for group in cluster["workerGroupSpecs"]] == ["decode", "gpu"]
