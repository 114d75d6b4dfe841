"""The shipped templates, as they are and as a user would fill them in."""

import re
from pathlib import Path

from deploy.check import read

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER_YAML = REPOSITORY / "cluster.yaml"
RAY_JOB_YAML = REPOSITORY / "deploy" / "rayjob.yaml"


def filled(file):
    """The document with every place filled in."""
    return _fill(read(file))


def _fill(node):
    if isinstance(node, dict):
        return {key: _fill(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_fill(value) for value in node]
    if isinstance(node, str):
        return re.sub("PUT-[A-Z-]+", "filled", re.sub("sha256:PUT-[A-Z-]+", DIGEST, node))
    return node


DIGEST = "sha256:" + "0123456789abcdef" * 4


def put(document, place, value):
    """Sets one place, named by dots and numbers."""
    *parents, last = [int(part) if part.isdigit() else part for part in place.split("/")]
    for part in parents:
        document = document[part]
    document[last] = value


def drop(document, place):
    """Takes one place out."""
    *parents, last = place.split("/")
    for part in parents:
        document = document[int(part) if part.isdigit() else part]
    del document[last]
