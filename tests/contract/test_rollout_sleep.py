"""An engine that sleeps between two batches, in the orders that a shared GPU brings about.

A CPU has no memory to give back, but vLLM's account of what is asleep is the same: it ignores calls that do not
fit it, and an engine that it believes asleep never answers.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from served_model import Served, buckets_of, perturb, reference_logprobs, start_served
from test_rollout import TOLERANCE, requests, sampler_error, settings, tokens_of

from openrlhf_ext.device import Device
from openrlhf_ext.rollout.transfer import make_sender


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    sleeper = Device("cpu", 0, frozenset({"bf16", "sleep"}))
    folder = tmp_path_factory.mktemp("sleeper")
    served = start_served(folder, True, sleeper, lambda model: settings(model, enable_sleep=True))
    yield served
    served.engine.close()


def update(served: Served, version: int) -> None:
    sender = make_sender("object_store")
    served.engine.call("begin_update")
    for bucket in buckets_of(served.model, 3):
        sender.send(bucket, lambda payload: served.engine.start("load_bucket", payload))
    served.engine.call("end_update", version)


@pytest.mark.parametrize("between", [[], ["sleep"], ["sleep", "sleep"]], ids=["at once", "asleep again", "twice"])
def test_weights_wake_first_and_are_replaced_before_the_cache_wakes(served: Served, between: list[str]):
    asked = requests(served, prompts=4)
    before = tokens_of(served.engine.call("generate", asked))
    served.engine.call("sleep")
    served.engine.call("wake", ["weights"])
    perturb(served.model, seed=len(between))
    update(served, 1 + len(between))
    for call in between:
        served.engine.call(call)
    served.engine.call("wake", ["kv_cache", "weights"])
    served.engine.call("wake")
    rollouts = served.engine.call("generate", asked)
    assert tokens_of(rollouts) != before
    assert sampler_error(served, rollouts) < TOLERANCE


def test_a_sleeping_engine_is_not_asked(served: Served):
    given = [[5, 6, 7, 8]]
    expected = reference_logprobs(served.model, given[0]).tolist()
    served.engine.call("sleep")
    for parts in [(), ("weights",)]:
        served.engine.call("wake", parts)
        with pytest.raises(AssertionError, match="asleep"):
            served.engine.call("logprobs", given)
    served.engine.call("sleep")
    with pytest.raises(AssertionError, match="awake"):
        served.engine.call("begin_update")
    served.engine.call("wake")
    assert served.engine.call("logprobs", given)[0] == pytest.approx(expected, abs=TOLERANCE)
