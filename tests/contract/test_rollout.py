"""A real vLLM engine on the CPU against a Hugging Face forward of the same weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch
from served_model import Served, buckets_of, perturb, reference_logprobs, start_served

from openrlhf_ext.device import Device
from openrlhf_ext.errors import ConfigError, DataError, ResourceError
from openrlhf_ext.rollout.transfer import make_sender
from openrlhf_ext.rollout.vllm_engine import EngineSettings, GenerateRequest
from openrlhf_ext.types import Prompt, Rollout, Sampling

CPU = Device("cpu", 0, frozenset({"bf16"}))
TOLERANCE = 1e-4


def settings(model: str, **changed: object) -> EngineSettings:
    return EngineSettings(
        **{  # type: ignore[arg-type]
            "model": model,
            "transport": "object_store",
            "max_model_len": 384,
            "dtype": "float32",
            "kv_cache_gb": 0.03,
            **changed,
        }
    )


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    """Both engines are started before the first is waited for."""
    started = {
        name: start_served(tmp_path_factory.mktemp(name), tied, CPU, settings)
        for name, tied in (("tied", True), ("untied", False))
    }
    yield started
    for served in started.values():
        served.engine.close()


@pytest.fixture(params=["tied", "untied"])
def served(request: pytest.FixtureRequest, engines: dict[str, Served]) -> Served:
    return engines[request.param]


@pytest.fixture
def tied(engines: dict[str, Served]) -> Served:
    return engines["tied"]


def requests(served: Served, prompts: int = 8, samples: int = 4, **sampling: object) -> list[GenerateRequest]:
    texts = [f"Question {i}: what is {i} times {i * 13}? " + "Think. " * (i % 3) for i in range(prompts)]
    tokens = [tuple(served.tokenizer(text).input_ids) for text in texts]
    chosen = Sampling(**{"max_new_tokens": 40, "seed": 5, **sampling})  # type: ignore[arg-type]
    return [
        GenerateRequest(Prompt(f"p{i}", tokens[i], texts[i]), k, chosen) for i in range(prompts) for k in range(samples)
    ]


def tokens_of(rollouts: Iterable[Rollout]) -> list[tuple[int, ...]]:
    return [tuple(rollout.token_ids.tolist()) for rollout in rollouts]


def sampler_error(served: Served, rollouts: list[Rollout], temperature: float = 1.0, top_k: int = 0) -> float:
    """The largest difference between the sampler's log-probs and the model's, over all actions."""
    worst = 0.0
    for rollout in rollouts:
        expected = reference_logprobs(served.model, rollout.token_ids, temperature, top_k)
        action = torch.tensor(rollout.action_mask[1:])
        worst = max(worst, (torch.tensor(rollout.logprobs[1:]) - expected)[action].abs().max().item())
    return worst


def publish(served: Served, version: int, buckets: int) -> None:
    sender = make_sender("object_store")
    served.engine.call("begin_update")
    for bucket in buckets_of(served.model, buckets):
        sender.send(bucket, lambda payload: served.engine.start("load_bucket", payload))
    served.engine.call("end_update", version)
    sender.close()


def test_tokens_do_not_depend_on_who_else_is_in_the_batch(served: Served):
    asked = requests(served)
    whole = tokens_of(served.engine.call("generate", asked))
    assert len(set(whole)) == len(whole), "samples of a prompt differ"
    assert tokens_of(served.engine.call("generate", asked)) == whole
    assert tokens_of(served.engine.call("generate", asked[5:18])) == whole[5:18]
    assert tokens_of(served.engine.call("generate", asked[::-1])) == whole[::-1]
    for index in (0, 7, 31):
        assert tokens_of(served.engine.call("generate", [asked[index]])) == [whole[index]]
    assert tokens_of(served.engine.call("generate", requests(served, seed=6))) != whole


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, -1), (0.6, -1), (0.8, 5)])
def test_the_samplers_logprobs_are_those_of_what_was_sampled_from(served: Served, temperature: float, top_k: int):
    rollouts = served.engine.call("generate", requests(served, temperature=temperature, top_k=top_k))
    assert sampler_error(served, rollouts, temperature, max(top_k, 0)) < TOLERANCE
    for rollout, asked in zip(rollouts, requests(served), strict=True):
        length = len(asked.prompt.token_ids)
        assert rollout.key == asked.key
        assert tuple(rollout.token_ids[:length].tolist()) == asked.prompt.token_ids
        assert rollout.action_mask.tolist() == [False] * length + [True] * rollout.response_length


def test_logprobs_of_given_tokens(served: Served):
    given = tokens_of(served.engine.call("generate", requests(served, prompts=4)))
    for tokens, found in zip(given, served.engine.call("logprobs", given), strict=True):
        torch.testing.assert_close(
            torch.tensor(found), reference_logprobs(served.model, tokens), atol=TOLERANCE, rtol=0
        )


def test_after_a_publish_the_engine_has_the_trainers_weights(served: Served):
    given = tokens_of(served.engine.call("generate", requests(served, prompts=4)))
    first = served.engine.call("version")
    for repeat in range(1, 6):
        before = torch.cat([reference_logprobs(served.model, tokens) for tokens in given])
        perturb(served.model, seed=repeat)
        publish(served, first + repeat, buckets=2 + repeat)
        after = torch.cat([reference_logprobs(served.model, tokens) for tokens in given])
        found = torch.cat([torch.tensor(values) for values in served.engine.call("logprobs", given)])
        assert (after - before).abs().max() > 0.1, "the weights changed visibly"
        torch.testing.assert_close(found, after, atol=TOLERANCE, rtol=0)
        rollouts = served.engine.call("generate", requests(served, prompts=4))
        assert sampler_error(served, rollouts) < TOLERANCE
        assert {rollout.versions for rollout in rollouts} == {(first + repeat, first + repeat)}


def test_a_cached_prefix_is_forgotten_with_its_weights(served: Served):
    # Longer than two of the cache's blocks (128 tokens on a CPU), so that there is something to reuse.
    text = "A prefix that many prompts share. " * 8
    tokens = tuple(served.tokenizer(text).input_ids)
    assert len(tokens) > 256
    asked = [GenerateRequest(Prompt("long", tokens, text), k, Sampling(max_new_tokens=30)) for k in range(4)]
    assert sampler_error(served, served.engine.call("generate", asked)) < TOLERANCE
    perturb(served.model, seed=99)
    publish(served, 50, buckets=3)
    assert sampler_error(served, served.engine.call("generate", asked)) < TOLERANCE


def test_how_a_response_ends(tied: Served):
    eos = tied.tokenizer.eos_token_id
    rollouts = tied.engine.call("generate", requests(tied, samples=16, temperature=2.0, max_new_tokens=60))
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        response = rollout.token_ids[-rollout.response_length :].tolist()
        assert rollout.text == tied.tokenizer.decode(response, skip_special_tokens=True)
        assert tied.tokenizer.eos_token not in rollout.text
        if rollout.finish_reason == "stop":
            assert response.count(eos) == 1
            assert response[-1] == eos
        else:
            assert eos not in response
            assert rollout.response_length == 60


def test_a_stop_string_ends_a_response_and_stays_in_it(tied: Served):
    free = tied.engine.call("generate", requests(tied, samples=1))
    stop = next(c for rollout in free for c in rollout.text[3:] if c.isascii() and c.isprintable())
    stopped = tied.engine.call("generate", requests(tied, samples=1, stop=(stop,)))
    assert any(rollout.finish_reason == "stop" for rollout in stopped)
    for before, after in zip(free, stopped, strict=True):
        assert before.token_ids[: len(after.token_ids)].tolist() == after.token_ids.tolist()
        assert (stop in after.text) == (stop in before.text)
        assert stop not in after.text[:-1]


def test_the_total_length_is_kept(tied: Served):
    asked = requests(tied, samples=2, max_total_tokens=70)
    for request, rollout in zip(asked, tied.engine.call("generate", asked), strict=True):
        room = min(40, 70 - len(request.prompt.token_ids))
        assert rollout.response_length == room or rollout.finish_reason == "stop"
        assert rollout.response_length <= room
    with pytest.raises(DataError, match=r"p0 has .* leaves no room"):
        tied.engine.call("generate", requests(tied, max_total_tokens=20))
    with pytest.raises(ConfigError, match="temperature"):
        tied.engine.call("generate", requests(tied, temperature=-1.0))


def test_progress_is_told_and_an_error_leaves_nothing_behind(tied: Served):
    asked = requests(tied)
    rollouts, calls = tied.engine.call("generate_and_count", asked)
    assert calls[-1] == (len(asked), len(asked))
    assert calls == sorted(calls)
    with pytest.raises(StopIteration):
        tied.engine.call("interrupt", asked, 5)
    assert tokens_of(tied.engine.call("generate", asked)) == tokens_of(rollouts)


@pytest.fixture
def cramped(tmp_path) -> Iterator[Served]:
    """An engine whose cache holds only a few sequences at a time."""
    served = start_served(tmp_path, True, CPU, lambda model: settings(model, kv_cache_gb=0.0012))
    yield served
    served.engine.close()


@pytest.mark.slow
def test_putting_requests_off_changes_no_token_and_a_missing_weight_is_noticed(cramped: Served):
    asked = requests(cramped, max_new_tokens=200)
    together = tokens_of(cramped.engine.call("generate", asked))
    assert max(map(len, together)) > 128, "long enough to need more of the cache while under way"
    alone = tokens_of(cramped.engine.call("generate", [request])[0] for request in asked)
    assert together == alone

    cramped.engine.call("begin_update")
    sender = make_sender("object_store")
    sender.send(buckets_of(cramped.model, 3)[0], lambda payload: cramped.engine.start("load_bucket", payload))
    with pytest.raises(AssertionError, match="did not bring"):
        cramped.engine.call("end_update", 1)


def test_a_cache_too_small_for_one_sequence_is_said_in_plain_words(tmp_path):
    served = start_served(tmp_path, True, CPU, lambda model: settings(model, kv_cache_gb=0.0001))
    with pytest.raises(ResourceError, match=r"384 tokens .* --vllm\.kv_cache_gb"):
        served.engine.call("version")
    served.engine.close()
