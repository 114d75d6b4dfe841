"""The same on a real S3 server: kills at any request, and a store that fails all the time."""

import random
import threading

import pytest

from tests.faults.forks import KILLED, Forks, bytes_left_over, lasting_rows
from tests.faults.job import many, run_job
from tests.faults.proxy import FAULTS, kill_by

POINTS = 6
WRITERS = 6
VIDEOS = 8


def copy(s3, source, target):
    """Copies all objects below a prefix."""
    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    target_prefix = target.removeprefix(f"s3://{bucket}/")
    for key in s3.keys(bucket, prefix):
        body = s3.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        s3.put(bucket, target_prefix + key.removeprefix(prefix), body)
    return target


@pytest.fixture(scope="module")
def bucket(s3):
    return f"s3://{s3.bucket()}"


@pytest.fixture(scope="module")
def begun(forks, bucket):
    assert forks.run(f"{bucket}/begun", "first", first=True, count=False) == 0, forks.errors()
    return f"{bucket}/begun"


@pytest.fixture(scope="module")
def clean(forks, s3, proxy, begun, bucket):
    """The rows of a run that nothing disturbed, and the number of its requests."""
    index = copy(s3, begun, f"{bucket}/clean")
    proxy.reset()
    order = {"env": {"AWS_ENDPOINT_URL": proxy.endpoint}, "count": False}
    assert forks.run(index, "clean", **order) == 0, forks.errors()
    rows = lasting_rows(index)
    assert len(rows["clips"]) == 14
    assert bytes_left_over(index) == set()
    return rows, proxy.requests


def check_point(forks, proxy, index, clean, kill_at, rng):
    order = {"env": {"AWS_ENDPOINT_URL": proxy.endpoint}, "count": False}
    order["started"] = kill_by(proxy)
    proxy.reset(kill_at, after=rng.random() < 0.5)
    point = [(kill_at, proxy.after)]
    first = forks.run(index, "killed", **order)
    assert first == KILLED or proxy.requests < kill_at, forks.errors()
    proxy.reset(rng.randint(1, clean[1]), after=rng.random() < 0.5)
    point.append((proxy.kill_at, proxy.after))
    second = forks.run(index, "resumed", **order)
    assert second in (0, KILLED), forks.errors()
    proxy.reset()
    assert forks.run(index, "last", **order) == 0, forks.errors()
    assert lasting_rows(index) == clean[0], point
    assert bytes_left_over(index) == set(), point
    return (first == KILLED) + (second == KILLED)


def check_points(forks, proxy, s3, begun, bucket, clean, points, seed):
    rng = random.Random(seed)
    requests, kills = clean[1], 0
    assert requests > 100
    for number in range(points):
        kill_at = 1 + (number * requests // points + rng.randint(0, requests // points)) % requests
        index = copy(s3, begun, f"{bucket}/{seed}-{number}")
        kills += check_point(forks, proxy, index, clean, kill_at, rng)
    assert kills >= points


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_kill_at_any_request_leaves_what_a_clean_run_leaves(
    forks, proxy, s3, begun, bucket, clean
):
    check_points(forks, proxy, s3, begun, bucket, clean, POINTS, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(14400)
def test_a_thousand_kills_at_requests(forks, proxy, s3, begun, bucket, clean):
    check_points(forks, proxy, s3, begun, bucket, clean, 1000, seed=2)


def run_writers(index, proxy):
    codes, said = {}, []

    def write(number):
        with Forks() as own:
            codes[number] = own.run(
                index, f"run-{number}", shard=f"{number}/{WRITERS}", many=VIDEOS, count=False,
                env={"AWS_ENDPOINT_URL": proxy.endpoint},
            )  # fmt: skip
            said.append(own.errors())

    threads = [threading.Thread(target=write, args=(n,)) for n in range(1, WRITERS + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return codes, said


def check_writers(proxy, bucket, seed):
    quiet, noisy = f"{bucket}/quiet-{seed}", f"{bucket}/noisy-{seed}"
    run_job(quiet, "quiet", many(VIDEOS))
    proxy.reset()
    proxy.flaky(0.2, seed)
    codes, said = run_writers(noisy, proxy)
    requests, faults = proxy.requests, dict(proxy.faults)
    proxy.flaky(0.0, seed)
    assert set(codes.values()) == {0}, said
    rows = lasting_rows(noisy)
    assert rows == lasting_rows(quiet)
    assert len(rows["clips"]) == 2 * VIDEOS
    assert set(faults) == set(FAULTS)
    assert sum(faults.values()) > requests // 10


@pytest.mark.timeout(300)
def test_six_writers_and_a_store_that_fails_every_fifth_request(proxy, bucket):
    check_writers(proxy, bucket, 1)


@pytest.mark.soak
@pytest.mark.timeout(14400)
@pytest.mark.parametrize("seed", range(2, 22))
def test_six_writers_many_times(proxy, bucket, seed):
    check_writers(proxy, bucket, seed)
