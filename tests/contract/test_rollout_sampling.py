"""Every sampling parameter reaches the sampler, and log-probs are of what was sampled from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from served_model import Served, start_served
from test_rollout import CPU, TOLERANCE, requests, settings, tokens_of
from torch import Tensor

from openrlhf_ext.types import Rollout


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = start_served(tmp_path_factory.mktemp("model"), True, CPU, settings)
    yield served
    served.engine.close()


def sampled_from(
    served: Served, rollout: Rollout, temperature: float, top_k: int = -1, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """(L, V) log-probs that the response was drawn from: temperature, min-p, top-k, top-p, in this order."""
    with torch.no_grad():
        logits = served.model(torch.tensor([rollout.token_ids])).logits[0, -rollout.response_length - 1 : -1]
    p_LV = (logits.double() / temperature).softmax(-1)
    p_LV = p_LV * (p_LV >= min_p * p_LV.max(-1, keepdim=True).values)
    if top_k > 0:
        p_LV = p_LV * (p_LV >= p_LV.topk(top_k).values[:, -1:])
    p_LV /= p_LV.sum(-1, keepdim=True)
    ordered, places = p_LV.sort(-1, descending=True)
    kept = ordered.cumsum(-1) - ordered < top_p  # up to and with the token that reaches top_p
    p_LV = p_LV * torch.zeros_like(kept).scatter(-1, places, kept)
    return (p_LV / p_LV.sum(-1, keepdim=True)).log()


@pytest.mark.parametrize(
    "chosen",
    [
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.3, "min_p": 0.2},
        {"temperature": 0.7, "top_k": 3},
        {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=lambda chosen: " ".join(f"{name} {value}" for name, value in chosen.items()),
)
def test_logprobs_are_of_the_distribution_that_was_sampled_from(served: Served, chosen: dict[str, float]):
    rollouts = served.engine.call("generate", requests(served, **chosen))
    unrestricted = served.engine.call("generate", requests(served, temperature=chosen["temperature"]))
    assert tokens_of(rollouts) != tokens_of(unrestricted), "the restriction is felt"
    for rollout in rollouts:
        length = rollout.response_length
        expected_LV = sampled_from(served, rollout, **chosen)  # type: ignore[arg-type]
        expected = expected_LV[torch.arange(length), torch.tensor(rollout.token_ids[-length:])]
        found = torch.tensor(rollout.logprobs[-length:], dtype=torch.float64)
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_greedy_answers_are_the_likeliest_tokens(served: Served):
    for rollout in served.engine.call("generate", requests(served, samples=1, temperature=0.0)):
        likeliest = sampled_from(served, rollout, 1.0).argmax(-1)
        assert likeliest.tolist() == rollout.token_ids[-rollout.response_length :].tolist()


def test_a_stop_string_of_several_tokens(served: Served):
    free = served.engine.call("generate", requests(served, samples=2))
    pairs = {rollout.text[at : at + 2] for rollout in free for at in range(2, len(rollout.text) - 6)}
    stops = tuple(sorted(pair for pair in pairs if pair.isascii() and pair.isprintable()))[:3]
    assert len(stops) == 3
    stopped = served.engine.call("generate", requests(served, samples=2, stop=stops))
    cut = 0
    for before, after in zip(free, stopped, strict=True):
        assert before.token_ids[: len(after.token_ids)].tolist() == after.token_ids.tolist()
        assert before.logprobs[: len(after.token_ids)].tolist() == after.logprobs.tolist()
        places = [before.text.find(stop) + len(stop) for stop in stops if stop in before.text]
        assert after.text == before.text[: min(places, default=len(before.text))]
        cut += bool(places)
        assert not places or after.finish_reason == "stop"
    assert 3 <= cut < len(free)
