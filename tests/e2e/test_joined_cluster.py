"""A Ray cluster that is there already is joined by its address, and left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from base_run import BaseRun
from jobs import run
from ray_cluster import ray_cluster
from scenario import FLAGS, ONE_EACH, STEPS, Record, output_to

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(workshop: Path) -> Iterator[str]:
    with ray_cluster(workshop, cpus=3) as address:
        yield address


def test_more_processes_than_the_cluster_has(workshop: Path, address: str):
    flags = [*FLAGS, "--ray.address", address, *ONE_EACH, "--vllm.num_engines", "2", *output_to("crowded")]
    last = run("rl", flags, workshop, exit_code=2).rstrip().splitlines()[-1]
    assert "The roles ask for 4 CPUs (actor 1 x 1, ref 1 x 1, vllm 2 x 1) and there are 3" in last
    assert "lower --actor.num_gpus_per_node" in last


@pytest.mark.parametrize("attempt", ["first", "second"])
def test_a_run_on_it_is_the_run_on_a_private_one(attempt: str, workshop: Path, address: str, base: BaseRun):
    """The second finds the cluster as the first did: nothing of a run stays on it."""
    run("rl", [*FLAGS, "--ray.address", address, *ONE_EACH, *output_to(f"joined_{attempt}")], workshop)
    joined = Record(workshop / f"joined_{attempt}")
    for step in range(1, STEPS + 1):
        assert joined.rollouts(step) == base.record.rollouts(step)
