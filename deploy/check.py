"""Says which rules a cluster.yaml of `ray up`, or a RayJob, breaks; run it before starting either.

    python -m deploy.check cluster.yaml deploy/rayjob.yaml

Prints one line for each place, and exits with 1 if there is any. As shipped, the files break
`filled-in` alone: their places for what only you can know are open.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from deploy import ray_job_rules, ray_up_rules
from deploy.findings import Document, broken_rules


def read(file: Path) -> Document:
    """A cluster.yaml as it is; the documents of a Kubernetes file by their kind."""
    documents = [found for found in yaml.safe_load_all(file.read_text("utf-8")) if found]
    if len(documents) == 1 and "kind" not in documents[0]:
        cluster: Document = documents[0]
        return cluster
    by_kind: dict[str, list[Any]] = defaultdict(list)
    for document in documents:
        by_kind[document["kind"]].append(document)
    return dict(by_kind)


def broken(document: Document) -> dict[str, list[str]]:
    """The rules that a document breaks, with the places."""
    rules = ray_job_rules.RULES if "RayJob" in document else ray_up_rules.RULES
    return broken_rules(document, rules)


def main(files: list[str]) -> int:
    """Prints what is broken and returns the exit code."""
    found = [
        f"{file}: {rule}: {place}"
        for file in files
        for rule, places in broken(read(Path(file))).items()
        for place in places
    ]
    print("\n".join(found) or "every rule holds")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
