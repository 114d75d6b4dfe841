"""Runs commands of the indexer one after the other on one local Ray; a JSON list of them is given.

Each line of stdout is a JSON object: the exit code of a command.
"""

import json
import sys

import ray

from indexer.cli import main


def run(arguments):
    try:
        main(arguments)
    except SystemExit as ended:
        return ended.code


if __name__ == "__main__":
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=True)
    for command in json.loads(sys.argv[1]):
        sys.stdout.write(json.dumps({"command": command[0], "code": run(command)}) + "\n")
        sys.stdout.flush()
    ray.shutdown()
