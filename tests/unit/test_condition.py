from __future__ import annotations

import math

import pytest

from openrlhf_ext.condition import Condition, find_metric, parse_condition
from openrlhf_ext.config import COMMANDS, parse
from openrlhf_ext.config.rules.stopping import LESS_IS_BETTER, figure_meant, figures_of

MANY = ["eval/aime/pass@1", "eval/all/pass@1", "eval/gsm/pass@1", "eval/gsm/subject/1.2/pass@1", "eval/gsm/reward"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eval_accuracy>=0.9", Condition("eval_accuracy", ">=", 0.9)),
        (" eval/gsm/pass@1 > .5 ", Condition("eval/gsm/pass@1", ">", 0.5)),
        ("loss<=-1e-3", Condition("loss", "<=", -1e-3)),
        ("loss<2", Condition("loss", "<", 2.0)),
    ],
)
def test_a_condition_is_a_figure_a_sign_and_a_number(text: str, expected: Condition) -> None:
    assert parse_condition(text) == expected
    assert parse_condition(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["", "loss", "loss<", "<1", "loss=1", "loss==1", "loss!=1", "a b<1", "loss<1<2", "x<inf"]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no condition|never reached"):
        parse_condition(text)


@pytest.mark.parametrize(("sign", "held"), [(">=", "bc"), (">", "c"), ("<=", "ab"), ("<", "a")])
def test_each_sign_means_what_it_says_and_nan_reaches_nothing(sign: str, held: str) -> None:
    condition = Condition("x", sign, 0.5)
    assert [name for name, value in zip("abcd", (0.4, 0.5, 0.6, math.nan), strict=True) if condition.holds(value)] == [
        *held
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pass@1", "eval/all/pass@1"),
        ("eval_pass@1", "eval/all/pass@1"),
        ("gsm/pass@1", "eval/gsm/pass@1"),
        ("eval_gsm_pass@1", "eval/gsm/pass@1"),
        ("1.2_pass@1", "eval/gsm/subject/1.2/pass@1"),
        ("eval/gsm/reward", "eval/gsm/reward"),
        ("ass@1", None),
        ("accuracy", None),
    ],
)
def test_a_figure_is_known_by_its_last_parts(name: str, expected: str | None) -> None:
    assert find_metric(name, MANY) == expected


NEEDED = {
    "rl": "--actor.model_name_or_path m --data.prompt_dataset d --reward.remote_url r.py --actor.num_gpus_per_node 1",
    **dict.fromkeys(("sft", "rm", "dpo"), "--model.model_name_or_path m --data.dataset d"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_figure_of_a_command_can_be_a_goal(command: str) -> None:
    config = parse(command, NEEDED[command].split()).config
    for figure in figures_of(config):
        goal = f"--eval.dataset e --eval.steps 1 --train.stop_when eval_{figure}>1"
        parsed = parse(command, f"{NEEDED[command]} {goal}".split())
        assert figure_meant(parse_condition(parsed.config.train.stop_when), parsed.config) == figure


def test_what_is_better_when_less_is_a_figure_of_some_command() -> None:
    known = {name for command in COMMANDS for name in figures_of(parse(command, NEEDED[command].split()).config)}
    assert set(LESS_IS_BETTER) <= known
