import pytest

from indexer.video.sandbox import Sandbox
from tests.video.sandbox.abuse import FRAMES, HASTY, HOSTILE, Bytes, plan_of
from tests.video.synth import Synth


@pytest.fixture(scope="module")
def data():
    return Synth(frames=FRAMES).encode()


@pytest.fixture
def video(data):
    return Bytes(data)


@pytest.fixture(scope="module")
def sandbox():
    """One that may be abused: the next test finds it as good as new."""
    with Sandbox(plan_of(), module=HOSTILE) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def hasty(data):
    plan = plan_of(decode=HASTY)
    with Sandbox(plan, module=HOSTILE) as sandbox:
        list(sandbox.decode(Bytes(data), video_id="start"))
        yield sandbox
