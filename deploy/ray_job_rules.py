"""Rules for a KubeRay `RayJob`, the documents beside it included."""

from collections.abc import Iterator
from typing import Any, Final

from deploy.findings import Check, Document, filled_in, texts
from deploy.ray_up_rules import DIGEST, ROLES, SHORTEST_STOP_SECONDS
from indexer.redaction import redact_credentials

TESTED_RAY: Final = "2.60.0"
LONGEST_IDLE_SECONDS: Final = 900
SHORTEST_GRACE_SECONDS: Final = 60

Group = dict[str, Any]


def _job(documents: Document) -> Document:
    spec: Document = documents["RayJob"][0]["spec"]
    return spec


def _cluster(documents: Document) -> Document:
    cluster: Document = _job(documents)["rayClusterSpec"]
    return cluster


def _workers(documents: Document) -> Iterator[tuple[str, Group]]:
    yield from ((group["groupName"], group) for group in _cluster(documents)["workerGroupSpecs"])


def _pods(documents: Document) -> Iterator[tuple[str, Group]]:
    """Name and pod specification of the head and of each worker group."""
    yield "head", _cluster(documents)["headGroupSpec"]["template"]["spec"]
    yield from ((name, group["template"]["spec"]) for name, group in _workers(documents))


def _containers(documents: Document) -> Iterator[tuple[str, Group]]:
    for name, pod in _pods(documents):
        yield from ((f"{name}.{container['name']}", container) for container in pod["containers"])


def one_job(documents: Document) -> Iterator[str]:
    """There is one RayJob, of the served version."""
    if [job["apiVersion"] for job in documents["RayJob"]] != ["ray.io/v1"]:
        yield "RayJob"


def token_from_a_secret(documents: Document) -> Iterator[str]:
    """The operator gives every container RAY_AUTH_MODE and RAY_AUTH_TOKEN from a Secret."""
    auth = _cluster(documents)["authOptions"]
    if auth["mode"] != "token" or not auth["secretName"]:
        yield "rayClusterSpec.authOptions"
    if "Secret" in documents:
        yield "a Secret lies in the file itself"


def no_secret_in_the_environment(documents: Document) -> Iterator[str]:
    """Credentials come from roles and Secrets; whoever may see a pod sees its environment."""
    for name, container in _containers(documents):
        for variable in container.get("env", []):
            words = {"TOKEN", "SECRET", "PASSWORD", "KEY"} & set(variable["name"].split("_"))
            if words and "valueFrom" not in variable:
                yield f"{name}.env.{variable['name']}"
    for place, text in texts(documents):
        if redact_credentials(text) != text:
            yield place


def retried(documents: Document) -> Iterator[str]:
    """A lost head costs a new cluster, not the job; a submitter that failed is tried again."""
    if not _job(documents)["backoffLimit"]:
        yield "backoffLimit"
    if _job(documents)["submissionMode"] != "K8sJobMode":
        yield "submissionMode"
    if not _job(documents)["submitterConfig"]["backoffLimit"]:
        yield "submitterConfig.backoffLimit"


def cluster_goes_away(documents: Document) -> Iterator[str]:
    """Nobody pays for a cluster whose job is over, or has hung."""
    job = _job(documents)
    if job["shutdownAfterJobFinishes"] is not True or not job["ttlSecondsAfterFinished"]:
        yield "shutdownAfterJobFinishes, ttlSecondsAfterFinished"
    if not (job["activeDeadlineSeconds"] and job["preRunningDeadlineSeconds"]):
        yield "activeDeadlineSeconds, preRunningDeadlineSeconds"


def idle_nodes_leave(documents: Document) -> Iterator[str]:
    """Groups begin at nothing, grow to a bound, and shrink when idle."""
    cluster = _cluster(documents)
    if cluster["enableInTreeAutoscaling"] is not True:
        yield "enableInTreeAutoscaling"
    if not 0 < cluster["autoscalerOptions"]["idleTimeoutSeconds"] <= LONGEST_IDLE_SECONDS:
        yield "autoscalerOptions.idleTimeoutSeconds"
    for name, group in _workers(documents):
        if group["minReplicas"] or not group["maxReplicas"]:
            yield name


def tested_ray(documents: Document) -> Iterator[str]:
    """The operator is told the version that the image holds."""
    if _cluster(documents)["rayVersion"] != TESTED_RAY:
        yield "rayVersion"


def image_by_digest(documents: Document) -> Iterator[str]:
    """What runs is what was looked at: a tag may be moved."""
    for name, container in _containers(documents):
        if not DIGEST.fullmatch(container["image"]):
            yield f"{name}.image"


def not_root(documents: Document) -> Iterator[str]:
    """No container runs as root, and system calls are filtered."""
    for name, pod in _pods(documents):
        context = pod["securityContext"]
        if context["runAsNonRoot"] is not True or not context["runAsUser"]:
            yield f"{name}.securityContext"
        if context["seccompProfile"]["type"] != "RuntimeDefault":
            yield f"{name}.securityContext.seccompProfile"


def no_escalation(documents: Document) -> Iterator[str]:
    """Nothing in a container gains a right that it was not started with."""
    autoscaler = ("autoscaler", _cluster(documents)["autoscalerOptions"])
    for name, container in [*_containers(documents), autoscaler]:
        if container["securityContext"]["allowPrivilegeEscalation"] is not False:
            yield name
        if container["securityContext"]["capabilities"] != {"drop": ["ALL"]}:
            yield f"{name}.capabilities"


def read_only_root(documents: Document) -> Iterator[str]:
    """Only the scratch volume can be written, and it has a limit."""
    for name, container in _containers(documents):
        if container["securityContext"]["readOnlyRootFilesystem"] is not True:
            yield name
    for name, pod in _pods(documents):
        for volume in pod["volumes"]:
            if not volume["emptyDir"]["sizeLimit"]:
                yield f"{name}.volumes.{volume['name']}"


def bounded_resources(documents: Document) -> Iterator[str]:
    """Each container asks for what it may use, so that it is never killed for a neighbour."""
    for name, container in _containers(documents):
        resources = container["resources"]
        if not resources["limits"]["memory"] or resources["requests"] != resources["limits"]:
            yield f"{name}.resources"


def roles_labelled(documents: Document) -> Iterator[str]:
    """The label says what a group is for, and its resources agree."""
    found = set()
    for name, group in _workers(documents):
        role = group["labels"]["role"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        found.add(role)
        if role not in ROLES or (role == "gpu") != ("nvidia.com/gpu" in limits):
            yield f"{name}.labels.role"
    if found != ROLES:
        yield f"only {', '.join(sorted(found))}"


def head_without_work(documents: Document) -> Iterator[str]:
    """No decoder takes memory or time from the driver and the committer."""
    if _cluster(documents)["headGroupSpec"]["rayStartParams"]["num-cpus"] != "0":
        yield "headGroupSpec.rayStartParams.num-cpus"


def own_roles(documents: Document) -> Iterator[str]:
    """Head and workers have service accounts of their own, each bound to a role."""
    names = {name: pod["serviceAccountName"] for name, pod in _pods(documents)}
    accounts = [account["metadata"] for account in documents["ServiceAccount"]]
    roles = {each["name"]: each["annotations"]["eks.amazonaws.com/role-arn"] for each in accounts}
    yield from (name for name, account in names.items() if not roles.get(account))
    if names["head"] in {account for name, account in names.items() if name != "head"}:
        yield "workers have the head's account"
    for name, pod in _pods(documents):
        if name != "head" and pod["automountServiceAccountToken"] is not False:
            yield f"{name}.automountServiceAccountToken"


def time_to_stop(documents: Document) -> Iterator[str]:
    """A stopped job commits what it has and writes its report before its pod is killed."""
    for name, pod in _pods(documents):
        if pod["terminationGracePeriodSeconds"] < SHORTEST_GRACE_SECONDS:
            yield f"{name}.terminationGracePeriodSeconds"
    head = _cluster(documents)["headGroupSpec"]["template"]["spec"]["containers"][0]
    waits = {v["name"]: v.get("value", "0") for v in head["env"]}.get("RAY_JOB_STOP_WAIT_TIME_S", 0)
    if int(waits) < SHORTEST_STOP_SECONDS:
        yield "head.env.RAY_JOB_STOP_WAIT_TIME_S"


def closed_network(documents: Document) -> Iterator[str]:
    """Ray's ports are closed to every other pod: the token protects, it does not encrypt."""
    spec = documents["NetworkPolicy"][0]["spec"]
    if spec["podSelector"] != {} or "Ingress" not in spec["policyTypes"]:
        yield "NetworkPolicy"
    for rule in spec["ingress"]:
        if not rule.get("from") or {} in rule["from"] or {"namespaceSelector": {}} in rule["from"]:
            yield "NetworkPolicy.ingress"


RULES: Final[dict[str, Check]] = {
    check.__name__.replace("_", "-"): check
    for check in (
        filled_in, one_job, token_from_a_secret, no_secret_in_the_environment, retried,
        cluster_goes_away, idle_nodes_leave, tested_ray, image_by_digest, not_root, no_escalation,
        read_only_root, bounded_resources, roles_labelled, head_without_work, own_roles,
        time_to_stop, closed_network,
    )
}  # fmt: skip
"""By the names that `python -m deploy.check` prints."""
