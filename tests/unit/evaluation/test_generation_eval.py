from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.evaluation.generation import EvalResult, PromptOutcome, evaluate_generation, pass_at_k
from openrlhf_ext.types import Prompt, Rollout, Sampling, Score, ScoreFailure


@given(n=st.integers(1, 8), data=st.data())
def test_pass_at_k_is_the_share_of_all_draws_of_k_that_hold_a_pass(n: int, data: st.DataObject) -> None:
    passed, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    samples = [True] * passed + [False] * (n - passed)
    draws = [any(draw) for draw in itertools.combinations(samples, k)]
    assert pass_at_k(n, passed, k) == pytest.approx(sum(draws) / len(draws))


class Scripted:
    """Generator and reward in one: prompt i's answers get the rewards written in its label."""

    version = 5

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
        self.sampling = sampling
        return [[self._rollout(prompt, sample) for sample in range(sampling.n)] for prompt in prompts]

    def _rollout(self, prompt: Prompt, sample: int) -> Rollout:
        length = sample + 1
        mask = (False,) * len(prompt.token_ids) + (True,) * length
        tokens = prompt.token_ids + (7,) * length
        reason = "length" if sample == 0 else "stop"
        return Rollout(prompt.id, sample, tokens, mask, (0.0,) * len(tokens), "", reason, (5, 5))

    def score(self, groups: Sequence[tuple[Prompt, Sequence[Rollout]]]) -> list[list[Score] | ScoreFailure]:
        return [
            ScoreFailure("timeout", "") if prompt.label is None else [Score(*entry) for entry in prompt.label]
            for prompt, _ in groups
        ]


def evaluate(labels: dict[str, list[list[tuple] | None]]) -> EvalResult:
    prompts = [
        Prompt(f"{source}{i}", (1, 2), "", label, source)
        for source, entries in labels.items()
        for i, label in enumerate(entries)
    ]
    scripted = Scripted()
    return evaluate_generation(prompts, scripted, scripted, Sampling(n=2))


def test_figures_are_per_source_and_over_all() -> None:
    values = evaluate({"gsm": [[(1.0,), (0.0,)], [(0.0,), (0.0,)]], "math": [[(1.0,), (1.0,)]]}).metrics()
    assert values["eval/gsm/pass@1"] == 0.25
    assert values["eval/gsm/pass@2"] == 0.5
    assert values["eval/math/pass@1"] == values["eval/math/pass@2"] == 1.0
    assert values["eval/all/pass@1"] == 0.5
    assert values["eval/gsm/reward"] == 0.25
    assert values["eval/gsm/response_length"] == 1.5
    assert values["eval/gsm/truncated"] == 0.5
    assert (values["eval/gsm/prompts"], values["eval/gsm/failed"]) == (2.0, 0.0)


def test_one_source_needs_no_total() -> None:
    assert not [name for name in evaluate({"gsm": [[(1.0,), (1.0,)]]}).metrics() if name.startswith("eval/all")]


def test_plus_minus_one_rewards_pass_at_plus_one() -> None:
    values = evaluate({"notes": [[(1.0,), (-1.0,)]]}).metrics()
    assert values["eval/notes/pass@1"] == 0.5
    assert values["eval/notes/reward"] == 0.0


def test_the_reward_functions_own_score_decides_where_it_gives_one() -> None:
    shaped = [[(1.7, {}, 0.0), (-0.3, {}, 1.0)]]
    assert evaluate({"gsm": shaped}).metrics()["eval/gsm/pass@1"] == 0.5
    assert evaluate({"gsm": [[(1.7, {}, 0.0), (1.7, {}, 0.0)]]}).metrics()["eval/gsm/pass@1"] == 0.0


def test_a_prompt_without_scores_is_counted_and_is_not_a_zero() -> None:
    values = evaluate({"gsm": [[(1.0,), (1.0,)], None]}).metrics()
    assert values["eval/gsm/pass@1"] == 1.0
    assert (values["eval/gsm/prompts"], values["eval/gsm/failed"]) == (1.0, 1.0)
    nothing = evaluate({"gsm": [None]}).metrics()
    assert math.isnan(nothing["eval/gsm/pass@1"])


def test_one_sample_per_prompt_gives_pass_at_1_only() -> None:
    result = EvalResult(1, (PromptOutcome("p", "gsm", (1.0,), (True,), (3,), (False,)),))
    assert [name for name in result.metrics() if "pass@" in name] == ["eval/gsm/pass@1"]


def test_a_game_has_figures_of_each_role_over_the_samples_there_are() -> None:
    """Two episodes of each prompt; in the second of the first prompt the assessor said nothing."""

    class Game(Scripted):
        def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Rollout]]:
            return [
                [
                    replace(self._rollout(prompt, 2 * episode + place), role=role)
                    for episode in range(sampling.n)
                    for place, role in enumerate(("attacker", "assessor"))
                    if (prompt.id, episode, role) != ("p0", 1, "assessor")
                ]
                for prompt in prompts
            ]

    labels = [[(1.0,), (-1.0,), (0.0,)], [(0.0,), (1.0,), (1.0,), (0.0,)], None]
    prompts = [Prompt(f"p{i}", (1, 2), "", label, "notes") for i, label in enumerate(labels)]
    game = Game()
    values = evaluate_generation(prompts, game, game, Sampling(n=2)).metrics()
    assert values["eval/notes/attacker/reward"] == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert values["eval/notes/assessor/reward"] == pytest.approx((-1 + 1 + 0) / 3)
    assert values["eval/notes/attacker/pass@1"] == pytest.approx(0.5)
    assert values["eval/notes/assessor/pass@1"] == pytest.approx((0 + 0.5) / 2)
    assert values["eval/notes/assessor/pass@2"] == pytest.approx((0 + 1) / 2)
    assert {values[f"eval/notes/{role}/failed"] for role in ("attacker", "assessor")} == {1.0}
    assert not [name for name in values if name.startswith(("eval/all", "eval/notes/reward"))]
