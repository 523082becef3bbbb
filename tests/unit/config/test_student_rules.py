"""What of the student's flags, and of a reference that follows, cannot be honoured is said before anything loads."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from openrlhf_ext.config import RLConfig, get, parse
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.ops.student_reward import REDUCTIONS

BASE = "--actor.model_name_or_path m --data.prompt_dataset d --data.max_len 64 --algo.advantage.estimator reinforce"
STUDENT = "--student.model_name_or_path s --rollout.temperature 0.7"
RULE = "--reward.remote_url r.py"


def config(line: str) -> RLConfig:
    return parse("rl", shlex.split(f"{BASE} {line}")).config


def test_a_student_alone_is_a_reward():
    assert config(STUDENT).has_student
    assert config("--student.from_reference --rollout.temperature 0.7").has_student
    assert config(f"{STUDENT} {RULE} --reward.weights 1 0.5").reward.weights == (1.0, 0.5)
    with pytest.raises(ConfigError, match=r"--reward\.weights.*3 values for 2 sources"):
        config(f"{STUDENT} {RULE} --reward.weights 1 0.5 2")


def test_the_words_of_the_rule_are_those_of_the_reward():
    from openrlhf_ext.config.rules.student import REDUCTIONS as words

    assert set(words) == REDUCTIONS.keys()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{RULE} --student.tags a b", "--student.tags a b: it has no effect without --student.model_name_or_path"),
        (f"{RULE} --ref.sync_mixup 0.5", "--ref.sync_mixup 0.5: it has no effect without --ref.sync_steps"),
        (f"{STUDENT} --student.from_reference", "names another; leave out one"),
        ("--student.from_reference --rollout.temperature 0.7 --algo.kl.init_coef 0", "there is no reference"),
        ("--student.from_reference --rollout.temperature 0.7 --ref.sync_steps 4", "a student stays as it is"),
        ("--student.from_reference --rollout.temperature 0.7 --train.async_enable", "asked by two at once"),
        ("--student.from_reference --rollout.temperature 0.7 --student.offload", "--ref.offload"),
        ("--student.model_name_or_path s", "those of --rollout.temperature 1.0; set both to one value"),
        (f"{STUDENT} --eval.dataset e", "--eval.temperature 0.6: the sampler's log-probs"),
        (f"{STUDENT} --rollout.top_p 0.9", "--rollout.top_p 0.9: the sampler's log-probs are then"),
        (f"{STUDENT} --rollout.top_k 9", "--rollout.top_k 9"),
        (f"{STUDENT} --rollout.min_p 0.1", "--rollout.min_p 0.1"),
        (f"{STUDENT} --student.teacher_logprobs policy --train.async_enable", "the policy trains while others score"),
        (f"{STUDENT} --student.solution_terms mean median", None),
        (f"{STUDENT} --student.solution_terms mean average", "choose among mean, min, max, median"),
        (f"{STUDENT} --student.solution_terms mean mean", "each once"),
        (f"{STUDENT} --student.divergence_coefs 1", "give one for each of the 2 divergence_terms"),
        (f"{STUDENT} --student.tags a a", "two texts that differ"),
        (f"{STUDENT} --student.temperature 0", "above 0"),
        (f"{RULE} --ref.sync_steps 4 --algo.kl.init_coef 0", "--ref.sync_steps 4: there is no reference"),
        (f"{RULE} --ref.sync_steps 4 --ds.lora.rank 8", "the base under the adapters, which stays as it is"),
        (f"{RULE} --ref.sync_steps 4 --ref.sync_mixup 1.5", "from 0 to 1"),
        (
            f"{STUDENT} --student.teacher_logprobs policy --reward.model_name_or_path r --train.colocate_all "
            "--ds.enable_sleep",
            "take turns on the GPU",
        ),
    ],
)
def test_what_does_not_go_together(line: str, said: str | None):
    if said is None:
        config(line)
    else:
        with pytest.raises(ConfigError) as raised:
            config(line)
        assert said in str(raised.value)


def test_the_recipe_for_one_gpu_is_the_preset():
    recipes = Path(__file__).resolve().parents[3] / "examples" / "rlt"
    files = [str(recipes / name) for name in ("teacher_rlt.yaml", "one_gpu.yaml")]
    recipe = parse("rl", ["--config", *files, "--data.prompt_dataset", "d"]).config
    preset = parse("rl", ["--preset", "rlt-mono"], planning=True)
    assert {path: get(recipe, path) for path in preset.explicit} == {
        path: get(preset.config, path) for path in preset.explicit
    }


def test_a_forward_pass_of_the_policy_has_no_conditions():
    line = "--student.model_name_or_path s --student.teacher_logprobs policy --rollout.top_p 0.9 --eval.dataset e"
    assert config(line).student.temperature == 0.7
