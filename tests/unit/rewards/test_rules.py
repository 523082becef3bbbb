"""The sources of rewards by rule: what they find right, and that no answer can stop or slow them."""

from __future__ import annotations

import subprocess
import time

import pytest

from openrlhf_ext.errors import RewardError
from openrlhf_ext.rewards.limited import Unfinished, each_in_time
from openrlhf_ext.rewards.load import RewardSettings, load_reward
from openrlhf_ext.rewards.sources import RuleSettings
from openrlhf_ext.rewards.verify import extracted, normal
from openrlhf_ext.types import Prompt, Rollout, ScoreFailure


def groups(*cases: tuple[str, object]):
    made = []
    for index, (answer, label) in enumerate(cases):
        prompt = Prompt(str(index), (1,), "Question? ", label)
        length = 1 + len(answer.split())
        tokens, mask = (1,) * length, (False,) + (True,) * (length - 1)
        rollout = Rollout(str(index), 0, tokens, mask, (0.0,) * length, answer, "stop", (0, 0))
        made.append((prompt, [rollout]))
    return made


def scores_of(spec: str, *cases: tuple[str, object], timeout_s: float = 60.0, **rules):
    settings = RewardSettings(rules=RuleSettings(**rules), timeout_s=timeout_s, max_retries=0, on_error="drop_group")
    with load_reward([spec], settings) as reward:
        reward.probe([Prompt("p", (1,), "1 + 1 = ", "2")])
        return reward.score(groups(*cases))


def values(found) -> list[float]:
    return [group[0].value for group in found]


# --- format and length


def test_format_by_pattern_is_of_the_whole_answer():
    found = scores_of(
        "rule:format",
        ("<a>x\ny</a>", None), ("<a>x</a> more", None), ("", None),
        format_pattern="<a>.*</a>",
    )  # fmt: skip
    assert values(found) == [1, 0, 0]


def test_format_by_tags():
    cases = {
        "<think>a\nb</think><answer>c</answer>": 1,
        "  <think></think>\n\n<answer>c</answer>\n": 1,
        "<answer>c</answer><think>a</think>": 0,
        "<think>a</think>": 0,
        "<think>a</think> so <answer>c</answer>": 0,
        "<think>a</think><answer>c</answer> done": 0,
        "<think>a</think><answer>c</answer><answer>d</answer>": 0,
        "<think>a<answer>b</think>c</answer>": 0,
        "<think>a <think> b</think><answer>c</answer>": 0,
        "": 0,
    }
    found = scores_of("rule:format", *((answer, None) for answer in cases), format_tags=("think", "answer"))
    assert dict(zip(cases, values(found), strict=True)) == cases


def test_length_in_tokens():
    texts = ["", "w", "w w", "w w w w", "w w w w w w w w"]
    found = scores_of("rule:length", *((text, None) for text in texts), length_range=(2, 4))
    assert values(found) == [0.0, 0.5, 1.0, 1.0, 0.5]
    found = scores_of("rule:length", ("", None), ("w w w w", None), length_range=(0, 2))
    assert values(found) == [1.0, 0.5]


# --- verifiers


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Paris", " paris. "), ("1,000", "1000"), ("18", "18.0"), ("$18", "18"), ("-0", "0"), ("007", "7"),
        ("**Yes**", "yes"), ("\uff12", "2"), (".5", "0.50"), ("new  york", "New\nYork"), ("'x'", "x"),
    ],
)  # fmt: skip
def test_the_same_answer(one, other):
    assert normal(one) == normal(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "-1"), ("1.5", "15"), ("a b", "ab"), ("1,00", "100"), ("1" + "0" * 40, "1" + "0" * 39 + "1"), ("", "0")],
)
def test_another_answer(one, other):
    assert normal(one) != normal(other)


def test_the_last_match_is_the_answer():
    assert extracted("#### 1 then #### 2", r"####\s*(\S+)") == "2"
    assert extracted("A or B", "[AB]") == "B"
    assert extracted("none", "[AB]") is None
    assert extracted("whole", None) == "whole"


def test_exact_match_with_a_pattern_in_answer_and_label():
    label = "48 / 2 = 24\n#### 1,072"
    found = scores_of(
        "verify:exact",
        ("so #### 1072", label), ("so #### 7", label), ("1072", label), ("#### blue", ["red", "Blue"]),
        answer_pattern=r"####\s*([^\n]+)",
    )  # fmt: skip
    assert values(found) == [1, 0, 0, 1]
    assert [group[0].parts["exact/no_answer"] for group in found] == [0, 0, 1, 0]


def test_mathematics():
    cases = [
        ("The answer is \\boxed{\\frac{1}{2}}.", "0.5", 1),
        ("It is $x = \\sqrt{2}/2$", "$\\frac{1}{\\sqrt{2}}$", 1),
        ("$$\\frac{3}{4}$$", "\\frac{3}{4}", 1),
        ("1,000", 1000, 1),
        ("so 7", "8", 0),
        ("$(x+1)^2$", "$x^2+2x+1$", 1),
        ("$\\{2, 1\\}$", "$\\{1, 2\\}$", 1),
        ("no idea", "8", 0),
        ("Paris", "paris", 1),  # no mathematics in the label: as text
        ("", "3", 0),
    ]
    found = scores_of("verify:math", *((answer, label) for answer, label, _ in cases))
    assert list(zip([c[0] for c in cases], values(found), strict=True)) == [(c[0], c[2]) for c in cases]


HOSTILE = [
    "$9^{9^{9^{9}}}$",
    "$" + "(" * 5000 + "1" + ")" * 5000 + "$",
    "\\boxed{" * 2000,
    "$\\int_0^1 " * 300 + "$",
    "$100000000!!!$",
    "$" + "9" * 100_000 + "$",
    "\ud800 half of a pair",
    "\x00\x01\x02",
    "$\\sum_{n=1}^{10^{12}} \\frac{1}{n^3}$",
    "x" * 200_000,
]


def test_no_answer_stops_the_verifier_and_none_is_right():
    start = time.monotonic()
    found = scores_of("verify:math", ("4", "4"), *((text, "4") for text in HOSTILE), ("4", "4"), verify_timeout_s=1.0)
    assert time.monotonic() - start < len(HOSTILE) + 20
    assert not any(isinstance(group, ScoreFailure) for group in found)
    assert values(found) == [1.0, *[0.0] * len(HOSTILE), 1.0]
    assert sum(group[0].parts["math/unfinished"] for group in found) >= 1


def test_a_pattern_that_backtracks_for_ever_costs_its_answer_alone():
    found = scores_of(
        "rule:format", ("a" * 40 + "b", None), ("aaa", None), format_pattern="(a+)+", verify_timeout_s=0.5
    )
    assert values(found) == [0.0, 1.0]
    assert [group[0].parts["format/unfinished"] for group in found] == [1.0, 0.0]


def test_what_there_is_no_time_for_has_no_reward():
    found = scores_of(
        "rule:format", *(("a" * 40 + "b" * i, None) for i in range(1, 20)),
        format_pattern="(a+)+", verify_timeout_s=0.7, timeout_s=3.0,
    )  # fmt: skip
    failures = [group for group in found if isinstance(group, ScoreFailure)]
    assert 0 < len(failures) < 19 and {failure.reason for failure in failures} == {"not_finite"}


def test_a_row_without_a_label_is_said_before_the_run():
    for spec in ("verify:exact", "verify:math"):
        with (
            load_reward([spec], RewardSettings()) as reward,
            pytest.raises(RewardError, match="name their column by"),
        ):
            reward.probe([Prompt("p", (1,), "?", None)])


@pytest.mark.parametrize(
    ("spec", "rules", "said"),
    [
        ("rule:fromat", {}, "there is no such rule"),
        ("rule:format", {}, "either --reward.format_pattern or"),
        ("rule:format", {"format_pattern": "a", "format_tags": ("b",)}, "either --reward.format_pattern or"),
        ("rule:format", {"format_pattern": "("}, "no regular expression"),
        ("verify:exact", {"answer_pattern": "["}, "no regular expression"),
        ("rule:length", {}, "--reward.length_range LOW HIGH"),
    ],
)
def test_rules_without_their_settings(spec, rules, said):
    with pytest.raises(RewardError, match=said):
        load_reward([spec], RewardSettings(rules=RuleSettings(**rules)))


def test_rules_compose_with_files(tmp_path):
    (tmp_path / "format.py").write_text("def reward_func(q, p, l):\n    return [0.5] * len(q)\n")
    settings = RewardSettings(weights=(1.0, 10.0, 100.0), rules=RuleSettings(format_pattern="4", length_range=(1, 2)))
    with load_reward([str(tmp_path / "format.py"), "rule:format", "rule:length"], settings) as reward:
        [[score]] = reward.score(groups(("4", "4")))
    assert score.value == 110.5
    assert score.parts == {"format": 0.5, "format_2": 1.0, "format_2/unfinished": 0.0, "length": 1.0}


# --- limits


def _hard(value):
    if value == "hang":
        while True:
            pass
    if value == "die":
        import os

        os._exit(3)
    if value == "memory":
        return len(bytearray(8 << 30))
    if value == "raise":
        raise KeyError(value)
    return value * 2


def test_each_value_has_its_own_end():
    values_ = ["a", "hang", "b", "die", "memory", "raise", "c"]
    found = each_in_time(_hard, values_, limit_s=0.5, until=time.monotonic() + 10)
    assert found == [
        "aa", Unfinished("timeout"), "bb", Unfinished("failed"), Unfinished("failed"), Unfinished("failed"), "cc"
    ]  # fmt: skip
    assert each_in_time(_hard, [], limit_s=1, until=time.monotonic()) == []


def test_no_process_is_left():
    def workers() -> int:
        out = subprocess.run(["ps", "--no-headers", "-eo", "ppid"], capture_output=True, text=True, check=True)
        import os

        return out.stdout.split().count(str(os.getpid()))

    before = workers()
    each_in_time(_hard, ["a", "hang", "die"], limit_s=0.2, until=time.monotonic() + 5)
    assert workers() == before
