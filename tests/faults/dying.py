"""The real command, whose model actors die as the environment says, wherever Ray makes them."""

import os
import signal

from indexer.cli import main
from indexer.runtime import failures, pipeline, placement
from indexer.runtime.workers import ScoreUnits, public_errors

HOW = os.environ.get("DYING")


class DyingActor(ScoreUnits):
    """Defined in `__main__`, and so sent to the workers as it is."""

    def __init__(self, *arguments, **options):
        if HOW == "raises":
            with public_errors():
                raise RuntimeError("this GPU is broken")
        if HOW == "killed when made":
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(*arguments, **options)

    def __call__(self, decoded):
        if HOW == "killed at work":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(decoded)


if __name__ == "__main__":
    pipeline.ScoreUnits = DyingActor
    placement.MAX_RESTARTS = failures.MAX_RESTARTS = 1  # thirty times takes minutes
    pipeline.MAX_FAILED_STARTS = failures.MAX_FAILED_STARTS = 1
    main()
