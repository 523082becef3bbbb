"""The model in training as a generator: who answers what, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from openrlhf_ext.trainers.answering import TrainedGenerator, collected, dealt
from openrlhf_ext.types import Prompt, Sampling, derive_seed

END = 0


class Echo:
    """Says a prompt's last token as often as its first one says, then ends, if there is room."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, *, end: int, rows: int
    ) -> list[list[int]]:
        self.seeds += seeds
        return [([tokens[-1]] * tokens[0] + [end])[: sampling.max_new_tokens] for tokens in prompts]


def test_answers_come_back_to_their_prompts_with_seeds_of_their_own() -> None:
    model = Echo()
    generator = TrainedGenerator(model, lambda tokens: " ".join(map(str, tokens)), END, rows=2)  # type: ignore[arg-type]
    generator.version = 7
    prompts = [Prompt("a", (2, 9), ""), Prompt("b", (1, 8), "")]
    found = generator.generate(prompts, Sampling(n=2, max_new_tokens=3, seed=5))
    assert model.seeds == [derive_seed(5, name, sample) for name in "ab" for sample in (0, 1)]
    assert [[each.sample for each in siblings] for siblings in found] == [[0, 1], [0, 1]]
    first = found[0][0]
    assert first.token_ids.tolist() == [2, 9, 9, 9, 0]
    assert first.action_mask.tolist() == [False, False, True, True, True]
    assert (first.text, first.finish_reason, first.versions) == ("9 9 0", "stop", (7, 7))
    assert all(math.isnan(value) for value in first.logprobs[2:])


@pytest.mark.parametrize(("most", "reason"), [(2, "length"), (3, "stop"), (9, "stop")])
def test_an_answer_that_filled_its_room_without_an_end_was_cut(most: int, reason: str) -> None:
    generator = TrainedGenerator(Echo(), str, END, rows=2)  # type: ignore[arg-type]
    ((answer,),) = generator.generate([Prompt("a", (2, 9), "")], Sampling(max_new_tokens=most))
    assert answer.finish_reason == reason


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_the_prompts_and_answers_come_back_in_order(ranks: int) -> None:
    prompts = [[place] * (1 + place % 4) for place in range(6)]
    shares = dealt(prompts, ranks)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    lengths = [sum(len(prompts[place]) for place in share) for share in shares]
    assert ranks > 3 or max(lengths) - min(lengths) <= 3
    assert collected(shares, [[prompts[place] for place in share] for share in shares]) == prompts
