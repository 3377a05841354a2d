"""The promise on several hosts: liars on one of them, and one that goes away."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.job import GLOO_SECONDS, Job
from tests.hosts.network import Network, connected

HOST_OF_RANK = {"0": "a", "1": "a", "2": "b", "3": "b", "4": "c", "5": "c"}
STEPS = 20
WORK = f"SGD: {STEPS} steps in {STEPS} exchanges"

pytestmark = pytest.mark.timeout(400)  # a job takes a minute to start where others run, too


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Iterator[Network]:
    """Connect the hosts of the job that trains in all cases."""
    with connected(tmp_path_factory.mktemp("hosts"), "abc") as network:
        yield network


@pytest.fixture(scope="module")
def job(network: Network) -> Job:
    """Start that job."""
    return Job(network, "spread:fair", "spread:b lies", "packed:fair", "packed:b lies")


def weights(job: Job, case: str) -> set[str]:
    """Return the digests of the weights that the ranks ended with."""
    return {found[case]["weights"] for found in job.found()}


def test_every_rank_knows_the_hosts_of_all(job):
    for rank, found in enumerate(job.found()):
        assert found["spread:fair"]["host"] == HOST_OF_RANK[str(rank)]
        assert found["spread:fair"]["report"]["hosts"] == HOST_OF_RANK


def test_placement_spreads_groups_over_hosts_or_packs_them(job):
    for found in job.found():
        assert found["spread:fair"]["groups"] == [0, 1, 0, 1, 0, 1]
        assert found["packed:fair"]["groups"] == [0, 0, 1, 1, 2, 2]


def test_a_host_of_liars_is_masked_and_named_where_groups_are_spread(job):
    fair = weights(job, "spread:fair")
    assert len(fair) == 1
    assert weights(job, "spread:b lies") == fair
    for found in job.found():
        assert found["spread:b lies"]["report"]["dissents"] == {"2": STEPS, "3": STEPS}
        assert found["spread:b lies"]["at fault"] == {"b": [2, 3]}
        assert found["spread:b lies"]["text"] == (
            f"host b (ranks 2, 3) dissented in {STEPS} of {STEPS} steps; {WORK}"
        )
    assert "step 0: group 0 outvoted rank 2 (host b)" in job.log


def test_a_host_of_liars_captures_the_group_that_is_packed_on_it(job):
    """Show that the test above can fail: the median bounds the lie, and nobody is named."""
    fair = weights(job, "packed:fair")
    assert len(fair) == 1
    assert weights(job, "packed:b lies").isdisjoint(fair)
    for found in job.found():
        assert found["packed:b lies"]["text"] == f"no fault in any of {STEPS} steps; {WORK}"


def test_a_host_whose_cable_is_pulled_out_ends_the_job(network, job):
    job.found()
    network.unplug("b")
    began = time.monotonic()
    errors = job.errors()
    assert time.monotonic() - began < 10 * GLOO_SECONDS
    assert job.exit_code == 1
    # Also the ranks on the lost host end, and nobody is left to hear of it but their folder.
    assert errors.keys() >= {2, 3}
    kinds = {error.partition(":")[0] for error in errors.values()}
    assert kinds <= {"HorovodInternalError", "ExchangeTimeout", "RankLeft"}
    assert "rank 2 (host b) has not answered" in job.said(0)
    assert "rank 0 (host a) has not answered" in job.said(2)


def test_a_host_without_power_ends_the_job(tmp_path: Path):
    with connected(tmp_path, "abc") as network:
        job = Job(network, slots=1, options=["--network-interfaces", "eth0"])
        job.found()
        network.hosts["c"].kill()
        errors = job.errors()
        assert job.exit_code == 1
    assert 2 not in errors  # it could not say so
    assert "Connection to c closed" in job.log
