"""Votes, pairs in both orders, what is asked again: in front of a model whose answers are known."""

from __future__ import annotations

import itertools
import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sums import RUBRIC, case

from openrlhf_ext.errors import ConfigError
from openrlhf_ext.rewards.judge.asking import NoVerdict
from openrlhf_ext.rewards.judge.judge import Judge, Verdict
from openrlhf_ext.rewards.judge.pairs import choose_pairs
from openrlhf_ext.rewards.judge.prompt import Case
from openrlhf_ext.rewards.judge.rubric import TIE
from openrlhf_ext.rewards.judge.rubric_file import read_rubric
from openrlhf_ext.rewards.judge.settings import JudgeSettings
from openrlhf_ext.rewards.judge.types import NoReply, Reply
from openrlhf_ext.rewards.judge.vote import vote, vote_on_pair

PAIRED = read_rubric("""
instructions: '{{ prompt }} {{ response }}'
criteria:
  - {name: long, description: Longer., scale: boolean}
  - {name: early, description: Earlier in the alphabet., scale: boolean, weight: 3}
reward: {range: [-1, 1]}
""")
RESPONSES = re.compile(r"<data ([0-9a-f]{8})>\n?(.*?)\n?</data \1>", re.DOTALL)


class Answering:
    """A `LanguageModel` that answers by a function of the question, and keeps what it was asked."""

    name = "answering"

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def reply(self, questions):
        self.asked.extend(questions)
        replies = [self.answer(question) for question in questions]
        return [r if isinstance(r, NoReply) else Reply(json.dumps(r), "stop", 10, 3) for r in replies]


def connected(rubric, model, **settings):
    judge = Judge(rubric, JudgeSettings(**settings))
    judge.connect(model)
    return judge


def counts(judge):
    return {name.removeprefix("judge/"): metric.value for name, metric in judge.take_report().items()}


def by_length_and_letter(question):
    """A fair comparison."""
    _, a, b = (text for _, text in RESPONSES.findall(question.messages[0]["content"]))
    return {
        "long": "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie",
        "early": "A" if a < b else "B" if b < a else "tie",
    }


def group(*responses):
    return [Case("p", response) for response in responses]


def test_numeric_votes_are_medians_and_others_modes():
    samples = [{"correct": True, "grade": 7}, {"correct": False, "grade": 1}, {"correct": True, "grade": 3}]
    assert vote(RUBRIC.criteria, samples) == {"correct": True, "grade": 3}


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 10)), min_size=1, max_size=6), st.randoms())
def test_votes_depend_on_no_order_and_doubt_is_no_gain(values, rng):
    samples = [{"correct": correct, "grade": grade} for correct, grade in values]
    voted = vote(RUBRIC.criteria, samples)
    rng.shuffle(samples)
    assert vote(RUBRIC.criteria, samples) == voted
    grades, trues = sorted(grade for _, grade in values), [correct for correct, _ in values]
    assert voted["grade"] == grades[(len(grades) - 1) // 2]
    assert voted["correct"] == (trues.count(True) > trues.count(False))


def test_a_vote_is_against_the_response_also_where_low_is_good():
    rubric = read_rubric(
        "instructions: '{{ response }}'\n"
        "criteria: [{name: bad, description: d, scale: boolean, better: low},"
        " {name: n, description: d, scale: {integer: [0, 9]}, better: low}]"
    )
    assert vote(rubric.criteria, [{"bad": True, "n": 2}, {"bad": False, "n": 5}]) == {"bad": True, "n": 5}


def test_votes_on_pairs():
    assert vote_on_pair(["A", "B", "A"]) == "A"
    assert vote_on_pair(["A", "B"]) == vote_on_pair(["tie", "B", "B", "tie"]) == TIE


def test_samples_have_their_own_seeds_and_more_than_half_make_a_verdict():
    good = {"correct": True, "grade": 10}

    def answer(question):
        return good

    model = Answering(answer)
    judge = connected(RUBRIC, model, samples=5, temperature=0.5)
    [verdict] = judge.judge([case(1)])
    seeds = [question.seed for question in model.asked]
    assert len(set(seeds)) == 5 and verdict.reward == 1.0 and len(verdict.samples) == 5
    among = Answering(answer)
    connected(RUBRIC, among, samples=5, temperature=0.5).judge([case(2), case(1)])
    assert [question.seed for question in among.asked][5:] == seeds, "they depend on the case alone"
    assert not set(seeds) & {question.seed for question in among.asked[:5]}
    other = Answering(answer)
    connected(RUBRIC, other, samples=5, temperature=0.5, seed=1).judge([case(1)])
    assert not set(seeds) & {question.seed for question in other.asked}
    # A sample fails for good if its second try fails as well.
    for failing, made in ((2, True), (3, False)):
        model.answer = lambda question, read=seeds[failing:]: good if question.seed in read else {"correct": 1}
        [verdict] = judge.judge([case(1)])
        assert isinstance(verdict, Verdict if made else NoVerdict)
        assert len(verdict.samples) == 3 if made else verdict.reason == "parse"
    assert counts(judge)["no_verdict"] == 1


def test_the_second_try_is_another_draw():
    model = Answering(lambda question: {"correct": True, "grade": 5} if question.seed != first else {})
    probe = Answering(lambda question: {"correct": True, "grade": 5})
    connected(RUBRIC, probe).judge([case(1)])
    first = probe.asked[0].seed
    judge = connected(RUBRIC, model)
    [verdict] = judge.judge([case(1)])
    assert isinstance(verdict, Verdict)
    assert [q.temperature for q in model.asked] == [0.0, 0.7] and model.asked[0].messages == model.asked[1].messages
    found = counts(judge)
    assert (found["asked"], found["parse_failures"], found["retried"]) == (2, 1, 1)
    assert (found["prompt_tokens"], found["answer_tokens"]) == (20, 6), "the lost reply was paid for"


def test_equal_questions_are_asked_once():
    model = Answering(lambda question: {"correct": True, "grade": 5})
    judge = connected(RUBRIC, model)
    verdicts = judge.judge([case(1), case(2), case(1), case(1)])
    assert len(model.asked) == 2 and len(verdicts) == 4 and verdicts[0] == verdicts[3]
    assert counts(judge)["repeated"] == 2


def test_no_reply_is_counted_by_its_reason_and_not_repeated():
    model = Answering(lambda q: NoReply("too_long", "9 tokens") if "4 + 4" in q.messages[0]["content"] else
                      {"correct": True, "grade": 5})  # fmt: skip
    judge = connected(RUBRIC, model)
    first, second = judge.judge([case(3), case(4)])
    assert isinstance(first, Verdict) and second == NoVerdict("too_long", "9 tokens")
    found = counts(judge)
    assert found["no_reply/too_long"] == found["no_verdict"] == 1 and found["retried"] == 0
    assert counts(judge) == {}


def test_pairs_in_both_orders():
    model = Answering(by_length_and_letter)
    judge = connected(PAIRED, model, mode="pairwise")
    [verdicts] = judge.judge_groups([group("aaaa", "bb", "c")])
    assert len(model.asked) == 3 * 2
    assert [v.criteria for v in verdicts] == [
        {"long": 1.0, "early": 1.0}, {"long": 0.5, "early": 0.5}, {"long": 0.0, "early": 0.0}
    ]  # fmt: skip
    assert [v.reward for v in verdicts] == [1.0, 0.0, -1.0]
    assert counts(judge)["pairs"] == 3
    said = json.loads(verdicts[0].note())["samples"]
    assert [pair["against"] for pair in said] == [1, 2] and [o["order"] for o in said[0]["said"]] == ["AB", "BA"]


def test_what_a_pair_could_not_be_shown_is_told():
    judge = connected(PAIRED, Answering(by_length_and_letter), mode="pairwise", max_pairs=2)
    [verdicts] = judge.judge_groups([group("a", "b" * 9000, "c", "d")])
    assert [v.cut for v in verdicts] == [1000, 1000, 0, 0]


def test_a_judge_that_likes_the_first_one_finds_ties():
    judge = connected(PAIRED, Answering(lambda question: {"long": "A", "early": "A"}), mode="pairwise")
    [verdicts] = judge.judge_groups([group("x", "y", "z")])
    assert [v.reward for v in verdicts] == [0.0] * 3
    assert counts(judge)["disagreements"] == 6, "three pairs, two criteria"
    [pair] = judge.compare_pairs([tuple(group("x", "y"))])
    assert pair.winners == {"long": TIE, "early": TIE}
    assert pair.straight == {"long": "A", "early": "A"} and pair.turned == {"long": "B", "early": "B"}


def test_equal_texts_are_ties_that_nobody_is_asked():
    model = Answering(by_length_and_letter)
    judge = connected(PAIRED, model, mode="pairwise")
    [verdicts, alone] = judge.judge_groups([group("x", "x", "yy"), group("only")])
    assert len(model.asked) == 2, "x against yy, once in each order"
    assert [v.criteria["long"] for v in verdicts] == [0.25, 0.25, 1.0]
    assert alone[0].criteria == {"long": 0.5, "early": 0.5} and counts(judge)["alone"] == 1


def test_a_lost_pair_counts_for_nobody():
    def answer(question):
        texts = [text for _, text in RESPONSES.findall(question.messages[0]["content"])][1:]
        return NoReply("crashed", "gone") if texts == ["c", "bb"] else by_length_and_letter(question)

    judge = connected(PAIRED, Answering(answer), mode="pairwise")
    [verdicts] = judge.judge_groups([group("aaaa", "bb", "c")])
    assert [v.criteria["long"] for v in verdicts] == [1.0, 0.0, 0.0]
    found = counts(judge)
    assert found["pairs_lost"] == found["no_reply/crashed"] == 1 and found["no_verdict"] == 0
    judge = connected(PAIRED, Answering(lambda question: NoReply("crashed", "gone")), mode="pairwise")
    [verdicts] = judge.judge_groups([group("aaaa", "bb")])
    assert verdicts == [NoVerdict("crashed", "gone")] * 2 and counts(judge)["no_verdict"] == 2


@given(st.integers(0, 9), st.none() | st.integers(1, 40))
def test_chosen_pairs(n, most):
    pairs = [(i, j) for i, j, _ in choose_pairs([str(i) for i in range(n)], most)]
    everything = list(itertools.combinations(range(n), 2))
    assert set(pairs) <= set(everything) and len(set(pairs)) == len(pairs)
    assert len(pairs) == min(len(everything), max(most or len(everything), (n + 1) // 2))
    of_each = [sum(i in pair for pair in pairs) for i in range(n)]
    assert n < 2 or min(of_each) >= 1
    assert n < 2 or max(of_each) - min(of_each) <= 2


def test_a_bounded_number_of_pairs():
    model = Answering(by_length_and_letter)
    judge = connected(PAIRED, model, mode="pairwise", max_pairs=4)
    [verdicts] = judge.judge_groups([group("dddd", "ccc", "bb", "a")])
    assert len(model.asked) == 8
    assert [v.criteria["long"] for v in verdicts] == [1.0, 0.5, 0.5, 0.0]
    [few] = connected(PAIRED, model, mode="pairwise", max_pairs=1).judge_groups([group("dd", "c", "bbbb")])
    assert all(isinstance(verdict, Verdict) for verdict in few), "each is compared at least once"


def test_ranks_follow_a_fair_judge():
    """The mean share of wins orders a group as the judge does, whatever the group's order."""
    texts = [chr(ord("a") + i) * (9 - i) for i in range(6)]
    for seed in range(3):
        random.Random(seed).shuffle(texts)
        judge = connected(PAIRED, Answering(by_length_and_letter), mode="pairwise")
        [verdicts] = judge.judge_groups([group(*texts)])
        assert [t for _, t in sorted(zip([-v.reward for v in verdicts], texts))] == sorted(texts)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"samples": 3}, {"max_pairs": 0}], ids=str)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(ConfigError, match="give"):
        JudgeSettings(**wrong)
