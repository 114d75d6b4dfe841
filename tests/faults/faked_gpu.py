"""The real command, whose model actors claim a GPU that is not there, and run on the CPU."""

import sys

from indexer.cli import main
from indexer.runtime import pipeline

_model_arguments = pipeline._model_arguments


def on_cpu(plan, pools):
    return _model_arguments(plan, pools) | {"device": "cpu"}


if __name__ == "__main__":
    pipeline._model_arguments = on_cpu
    sys.exit(main())
