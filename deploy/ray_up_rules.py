"""Rules for a `cluster.yaml` of `ray up` on AWS: what keeps it safe, whole and cheap."""

import re
from collections.abc import Iterator
from typing import Any, Final

from deploy.findings import Check, Document, filled_in, texts
from indexer.redaction import redact_credentials

TESTED_IMAGE: Final = re.compile(r"rayproject/ray:2\.60\.0-py311(?:-gpu|-cpu)?(?:@.*)?")
DIGEST: Final = re.compile(r".+@sha256:(?:[0-9a-f]{64}|PUT-[A-Z-]+)")
LONGEST_IDLE_MINUTES: Final = 15
FEWEST_OPEN_FILES: Final = 65536
SHORTEST_STOP_SECONDS: Final = 30
ROLES: Final = {"decode", "gpu"}

_NOFILE: Final = re.compile(r"nofile=(\d+)|ulimit -n (\d+)")
_STORE: Final = re.compile(r"--object-store-memory=(\d+)")
_SHM: Final = re.compile(r"--shm-size=(\d+)g")
_STOP: Final = re.compile(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)")


def _nodes(cluster: Document) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, node type and its AWS settings, of every node type."""
    for name, node in cluster["available_node_types"].items():
        yield name, node, node["node_config"]


def _workers(cluster: Document) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    return (entry for entry in _nodes(cluster) if entry[0] != cluster["head_node_type"])


def _starts(cluster: Document) -> Iterator[tuple[str, str]]:
    """The commands that start Ray, one list after the other."""
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = [command for command in cluster[key] if "ray start" in command]
        yield key, " && ".join(commands)


def _images(cluster: Document) -> Iterator[tuple[str, str]]:
    yield "docker.image", cluster["docker"]["image"]
    for name, node, _ in _nodes(cluster):
        if "docker" in node:
            yield f"{name}.docker.worker_image", node["docker"]["worker_image"]


def token_on_every_node(cluster: Document) -> Iterator[str]:
    """Ray's API asks for the token on every node, in every process of the container."""
    for key, command in _starts(cluster):
        if "RAY_AUTH_MODE=token" not in command:
            yield key
    if "--env RAY_AUTH_MODE=token" not in cluster["docker"]["run_options"]:
        yield "docker.run_options"
    if not any(path.endswith("/.ray/auth_token") for path in cluster["file_mounts"]):
        yield "file_mounts: the token itself"


def dashboard_on_loopback(cluster: Document) -> Iterator[str]:
    """The dashboard and the job API listen on the head itself only."""
    if "--dashboard-host=127.0.0.1" not in cluster["head_start_ray_commands"][-1]:
        yield "head_start_ray_commands"


def imdsv2_only(cluster: Document) -> Iterator[str]:
    """The metadata service gives credentials only to who has asked for a session first."""
    for name, _, aws in _nodes(cluster):
        if aws["MetadataOptions"]["HttpTokens"] != "required":
            yield f"{name}.MetadataOptions.HttpTokens"


def imds_hop_limit(cluster: Document) -> Iterator[str]:
    """The metadata service's answers go no further than the host."""
    for name, _, aws in _nodes(cluster):
        if aws["MetadataOptions"]["HttpPutResponseHopLimit"] != 1:
            yield f"{name}.MetadataOptions.HttpPutResponseHopLimit"


def encrypted_disks(cluster: Document) -> Iterator[str]:
    """What spills onto a disk is encrypted, and the disk goes with its instance."""
    for name, _, aws in _nodes(cluster):
        for disk in aws["BlockDeviceMappings"]:
            if not (disk["Ebs"]["Encrypted"] and disk["Ebs"]["DeleteOnTermination"]):
                yield f"{name}.BlockDeviceMappings"


def own_roles(cluster: Document) -> Iterator[str]:
    """Every node has a role of its own: without one, Ray makes one with full access to S3."""
    head = cluster["available_node_types"][cluster["head_node_type"]]["node_config"]
    for name, _, aws in _nodes(cluster):
        if not aws["IamInstanceProfile"]:
            yield f"{name}.IamInstanceProfile"
    for name, _, aws in _workers(cluster):
        if aws["IamInstanceProfile"] == head["IamInstanceProfile"]:
            yield f"{name}.IamInstanceProfile is the head's, which may start instances"


def own_security_group(cluster: Document) -> Iterator[str]:
    """Every node names its group: without one, Ray makes one that admits SSH from anywhere."""
    for name, _, aws in _nodes(cluster):
        if not aws["SecurityGroupIds"]:
            yield f"{name}.SecurityGroupIds"
    if "security_group" in cluster["provider"]:
        yield "provider.security_group"


def private_subnets(cluster: Document) -> Iterator[str]:
    """No node has an address on the internet."""
    if cluster["provider"]["use_internal_ips"] is not True:
        yield "provider.use_internal_ips"
    for name, _, aws in _nodes(cluster):
        if not aws["SubnetIds"] or "NetworkInterfaces" in aws:
            yield f"{name}.SubnetIds"


def ssh_through_session_manager(cluster: Document) -> Iterator[str]:
    """SSH comes through Systems Manager, or a bastion: from no address of the internet."""
    if not cluster["auth"]["ssh_proxy_command"]:
        yield "auth.ssh_proxy_command"
    for place, text in texts(cluster):
        if text in {"0.0.0.0/0", "::/0"}:
            yield place


def image_by_digest(cluster: Document) -> Iterator[str]:
    """What runs is what was looked at: a tag may be moved."""
    yield from (
        f"{place}: {image}" for place, image in _images(cluster) if not DIGEST.fullmatch(image)
    )


def tested_image(cluster: Document) -> Iterator[str]:
    """Ray and Python are those that the constraints pin."""
    for place, image in _images(cluster):
        if not TESTED_IMAGE.fullmatch(image):
            yield f"{place}: {image}"


def pinned_setup(cluster: Document) -> Iterator[str]:
    """Packages are installed in the versions that were tested."""
    installs = [command for command in cluster["setup_commands"] if "pip install" in command]
    if not installs:
        yield "setup_commands"
    for command in installs:
        if "--constraint" not in command or "--upgrade" in command or " -U" in command:
            yield f"setup_commands: {command}"


def head_without_work(cluster: Document) -> Iterator[str]:
    """No decoder takes memory or time from the driver and the committer."""
    if cluster["available_node_types"][cluster["head_node_type"]]["resources"] != {"CPU": 0}:
        yield f"{cluster['head_node_type']}.resources"


def roles_labelled(cluster: Document) -> Iterator[str]:
    """The label says what a node is for, and its resources agree."""
    for name, node, _ in _workers(cluster):
        role = node["labels"]["role"]
        if role not in ROLES or (role == "gpu") != ("GPU" in node["resources"]):
            yield f"{name}.labels.role"


def spot_with_fallback(cluster: Document) -> Iterator[str]:
    """Each role has spot instances, tried first, and the same on demand."""
    for role in sorted(ROLES):
        kinds = {
            aws.get("InstanceMarketOptions", {}).get("MarketType", "on-demand"): node
            for _, node, aws in _workers(cluster)
            if node["labels"]["role"] == role
        }
        if set(kinds) != {"spot", "on-demand"}:
            yield f"{role}: has only {', '.join(kinds)}"
        elif kinds["spot"]["resources"] != kinds["on-demand"]["resources"]:
            yield f"{role}: spot and on-demand nodes have other resources"
        elif kinds["spot"]["priority"] <= kinds["on-demand"]["priority"]:
            yield f"{role}: on-demand nodes are tried first"


def idle_nodes_leave(cluster: Document) -> Iterator[str]:
    """Nobody pays for a node that has nothing to do."""
    if cluster["idle_timeout_minutes"] > LONGEST_IDLE_MINUTES:
        yield "idle_timeout_minutes"
    if cluster["provider"]["cache_stopped_nodes"] is not False:
        yield "provider.cache_stopped_nodes"
    yield from (f"{name}.min_workers" for name, node, _ in _workers(cluster) if node["min_workers"])


def bounded(cluster: Document) -> Iterator[str]:
    """A mistake cannot start more instances than the file says."""
    if cluster["max_workers"] < 1:
        yield "max_workers"
    for name, node, _ in _workers(cluster):
        if not 1 <= node["max_workers"] <= cluster["max_workers"]:
            yield f"{name}.max_workers"


def open_files(cluster: Document) -> Iterator[str]:
    """Ray needs many descriptors, inside the container as well."""
    places = [("docker.run_options", " ".join(cluster["docker"]["run_options"]))]
    for place, text in [*places, *_starts(cluster)]:
        limits = [int(a or b) for a, b in _NOFILE.findall(text)]
        if not limits or min(limits) < FEWEST_OPEN_FILES:
            yield place


def object_store(cluster: Document) -> Iterator[str]:
    """The object store has a stated size, and shared memory has room for it."""
    shm = _SHM.search(" ".join(cluster["docker"]["run_options"]))
    for key, command in _starts(cluster):
        store = _STORE.search(command)
        if not (store and shm) or int(store[1]) > int(shm[1]) * 2**30:
            yield key


def time_to_stop(cluster: Document) -> Iterator[str]:
    """`ray job stop` leaves the driver the time to commit and to write its report."""
    found = _STOP.search(cluster["head_start_ray_commands"][-1])
    if not found or int(found[1]) < SHORTEST_STOP_SECONDS:
        yield "head_start_ray_commands: RAY_JOB_STOP_WAIT_TIME_S"


def no_secrets(cluster: Document) -> Iterator[str]:
    """The file itself holds no credential: it is committed, and copied to every node."""
    for place, text in texts(cluster):
        if redact_credentials(text) != text or re.search(r"(?<!sha256:)\b[0-9a-f]{64}\b", text):
            yield place


RULES: Final[dict[str, Check]] = {
    check.__name__.replace("_", "-"): check
    for check in (
        filled_in, token_on_every_node, dashboard_on_loopback, imdsv2_only, imds_hop_limit,
        encrypted_disks, own_roles, own_security_group, private_subnets,
        ssh_through_session_manager, image_by_digest, tested_image, pinned_setup,
        head_without_work, roles_labelled, spot_with_fallback, idle_nodes_leave, bounded,
        open_files, object_store, time_to_stop, no_secrets,
    )
}  # fmt: skip
"""By the names that `python -m deploy.check` prints."""
