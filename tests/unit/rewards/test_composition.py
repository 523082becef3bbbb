"""Weights, normalisation and failures of several sources, each an object with the protocol of a source."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_ext.errors import RewardError
from openrlhf_ext.rewards.answer import Answer, AnswerError
from openrlhf_ext.rewards.load import RewardSettings, WeightedReward, load_reward
from openrlhf_ext.rewards.normalise import normalised
from openrlhf_ext.types import Metric, Prompt, Rollout, ScoreFailure


class Numbers:
    """A source that says the numbers that the answers' texts are, times its factor; `asked` are the batches."""

    signature = "numbers"

    def __init__(self, name: str, factor: float = 1.0, **extra) -> None:
        self.name = self.origin = name
        self.factor = factor
        self.extra = extra
        self.asked: list[list[str]] = []
        self.error: AnswerError | None = None

    def start(self) -> None:
        pass

    def ask(self, batch, timeout_s: float) -> Answer:
        texts = [rollout.text for _, rollout in batch.samples]
        self.asked.append(texts)
        rewards = [self.factor * float(text) for text in texts]
        if self.error is not None:
            error, self.error = self.error, None
            known = [math.nan if reward > 5 else reward for reward in rewards]
            raise AnswerError(error.reason, error.detail, Answer(known), final=error.final)
        if any(math.isinf(reward) for reward in rewards):
            raise AnswerError("exception", "infinite")
        return Answer(rewards, **{name: make(rewards) for name, make in self.extra.items()})

    def take_report(self) -> dict[str, Metric]:
        return {f"reward/{self.name}/calls": Metric(len(self.asked), reduction="sum")}

    def close(self) -> None:
        pass


def groups(*values: list[float]):
    made = []
    for index, group in enumerate(values):
        prompt = Prompt(str(index), (1,), "q")
        rollouts = [
            Rollout(str(index), i, (1, 2), (False, True), (0.0, 0.0), repr(float(value)), "stop", (0, 0))
            for i, value in enumerate(group)
        ]
        made.append((prompt, rollouts))
    return made


def composed(*sources, **settings) -> WeightedReward:
    return WeightedReward(sources, RewardSettings(**{"max_retries": 0, **settings}), None)


def values(scores) -> list[list[float]]:
    return [[score.value for score in group] for group in scores]


def test_each_source_is_normalised_over_the_batch_then_weighed():
    first, second = Numbers("first"), Numbers("second", 100.0)
    reward = composed(first, second, weights=(2.0, 0.5), normalize=("batch", "none"))
    scores = reward.score(groups([0, 1], [2, 5]))
    mean, deviation = statistics.fmean([0, 1, 2, 5]), statistics.pstdev([0, 1, 2, 5])
    expected = [[2 * (x - mean) / deviation + 50 * x for x in group] for group in ([0, 1], [2, 5])]
    assert [pytest.approx(group) for group in expected] == values(scores)
    assert scores[1][1].parts == {"first": 5.0, "second": 500.0, "unnormalised": 260.0}
    assert scores[1][1].filter_value == 260.0  # filters look at the plain reward


def test_one_value_is_for_all_and_groups_are_apart():
    reward = composed(Numbers("first"), Numbers("second", -3.0), normalize=("group",))
    scores = reward.score(groups([0, 1], [10, 30], [7, 7]))
    assert values(scores) == [[0, 0], [0, 0], [0, 0]]  # the second undoes the first, whatever its scale
    [scores] = composed(Numbers("first"), normalize=("group",)).score(groups([10, 30]))
    assert [score.value for score in scores] == [-1.0, 1.0]


def test_no_spread_says_nothing():
    third = 0.1 + 0.2
    for how in ("batch", "group"):
        scores = composed(Numbers("only"), normalize=(how,)).score(groups([third, 0.3], [third, third]))
        assert values(scores) == [[0, 0], [0, 0]], how  # rounding is no spread
        assert scores[0][0].parts["only"] == third


def test_evaluation_sees_plain_rewards():
    reward = composed(Numbers("only"), weights=(2.0,), normalize=("batch",))
    scores = reward.plain.score(groups([1, 3]))
    assert values(scores) == [[2.0, 6.0]]
    assert scores[0][0].filter_value is None and "unnormalised" not in scores[0][0].parts
    assert reward.plain.take_report()["reward/only/calls"].value == 1


def test_scores_of_a_source_stay_what_filters_look_at():
    marked = Numbers("marked", scores=lambda rewards: [r / 10 for r in rewards])
    [[_, score]] = composed(marked, Numbers("other"), normalize=("batch",)).score(groups([1, 3]))
    assert score.filter_value == 0.3


def test_turns_are_on_the_scale_of_their_source():
    turned = Numbers("turned", turns=lambda rewards: [((1, r),) for r in rewards])
    [[low, high]] = composed(turned, weights=(3.0,), normalize=("batch",)).score(groups([1, 3]))
    assert (low.value, high.value) == (-3.0, 3.0)
    assert low.turns == ((1, 3.0 * 1.0),) and high.turns == ((1, 3.0 * 3.0),)  # a deviation of 1


def test_a_failed_group_has_no_part_in_the_batch():
    reward = composed(Numbers("only"), normalize=("batch",), on_error="drop_group")
    scores = reward.score(groups([1, 3], [math.inf, 1], [1, 3]))
    assert isinstance(scores[1], ScoreFailure)
    assert values([scores[0], scores[2]]) == [[-1.0, 1.0], [-1.0, 1.0]]


def test_only_rows_without_a_reward_are_asked_for_again():
    source = Numbers("only")
    source.error = AnswerError("timeout", "late")
    reward = composed(source, on_error="drop_group")
    assert values(reward.score(groups([1, 2], [3, 9], [4, 5]))) == [[1, 2], [3, 9], [4, 5]]
    assert source.asked[1:] == [["3.0", "9.0"]]  # the other groups are kept


def test_a_final_failure_drops_its_group_without_another_call():
    source = Numbers("only")
    source.error = AnswerError("timeout", "late", final=True)
    reward = composed(source, on_error="drop_group", max_retries=5)
    [first, failure, last] = reward.score(groups([1, 2], [3, 9], [4, 5]))
    assert values([first, last]) == [[1, 2], [4, 5]]
    assert failure == ScoreFailure("timeout", "only: late")
    assert len(source.asked) == 1 and not reward.retries


def test_final_failures_stop_the_run_under_abort():
    source = Numbers("only")
    source.error = AnswerError("timeout", "late", final=True)
    with pytest.raises(RewardError, match=r"reward only failed \(timeout: late\)"):
        composed(source, max_retries=5).score(groups([9, 9]))
    assert len(source.asked) == 1


def test_normalisations_must_fit(tmp_path):
    (tmp_path / "a.py").touch()
    path = str(tmp_path / "a.py")
    with pytest.raises(RewardError, match="2 normalisations for 3 rewards"):
        load_reward([path] * 3, RewardSettings(normalize=("batch", "none")))


finite = st.floats(-1e6, 1e6)


@given(st.lists(st.lists(finite, min_size=1, max_size=5), min_size=1, max_size=5))
def test_normalised_is_the_slow_formula(rewards):
    flat = [x for group in rewards for x in group]
    found = [x for group in normalised(rewards, "batch") for x in group.rewards]
    deviation = statistics.pstdev(flat)
    if deviation > 1e-6 * max(1.0, *map(abs, flat)):
        assert found == pytest.approx([(x - statistics.fmean(flat)) / deviation for x in flat], abs=1e-6)
        assert statistics.fmean(found) == pytest.approx(0, abs=1e-6)
        assert statistics.pstdev(found) == pytest.approx(1)
    assert all(math.isfinite(x) for x in found)
    for group, alone in zip(rewards, normalised(rewards, "group"), strict=True):
        assert alone.rewards == normalised([group], "batch")[0].rewards


@given(
    rewards=st.lists(st.lists(st.floats(-9, 9), min_size=2, max_size=4), min_size=1, max_size=4),
    how=st.sampled_from(["batch", "group"]),
    data=st.data(),
)
def test_in_a_game_a_reward_is_compared_with_those_of_its_role(rewards, how, data) -> None:
    roles = [data.draw(st.lists(st.sampled_from("ab"), min_size=len(g), max_size=len(g))) for g in rewards]
    found = normalised(rewards, how, roles)
    for role in "ab":
        own = [[x for x, r in zip(g, named, strict=True) if r == role] for g, named in zip(rewards, roles, strict=True)]
        alone = normalised(own, how)
        for group, named, expected in zip(found, roles, alone, strict=True):
            assert [x for x, r in zip(group.rewards, named, strict=True) if r == role] == expected.rewards
            assert [x for x, r in zip(group.factors, named, strict=True) if r == role] == expected.factors


class Reader(Numbers):
    """A source that reads the texts of all tokens."""

    def ask(self, batch, timeout_s: float) -> Answer:
        self.read = [*batch.queries]
        return super().ask(batch, timeout_s)


def test_tokens_are_decoded_once_and_only_for_who_reads_the_texts():
    decoded = []

    class Tokenizer:
        def batch_decode(self, rows, *, skip_special_tokens: bool) -> list[str]:
            decoded.append(rows)
            return [" ".join(map(str, row)) for row in rows]

    settings = RewardSettings(max_retries=0)
    rules = WeightedReward([Numbers("one"), Numbers("two")], settings, Tokenizer())
    assert values(rules.score(groups([1, 2]))) == [[2.0, 4.0]]
    assert not decoded
    readers = [Reader("one"), Reader("two"), Numbers("three")]
    assert values(WeightedReward(readers, settings, Tokenizer()).score(groups([1, 2]))) == [[3.0, 6.0]]
    assert decoded == [[[1, 2], [1, 2]]]
    assert [each.read for each in readers[:2]] == [["1 2", "1 2"]] * 2
