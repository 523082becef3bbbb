"""The rules of rl's algorithms: what each forbids with its remedy, what it lets pass, and what is only said."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from openrlhf_ext.config import Parsed, flags_of, parse
from openrlhf_ext.config.rl import AdvantageEstimator, KLEstimator, LossAggregation, RLConfig
from openrlhf_ext.config.rules.algorithm import DISCOUNTED, GROUP_ESTIMATORS
from openrlhf_ext.config.rules.effects import NEEDS
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.ops.advantage import ESTIMATORS, AdvantageSettings, advantages
from openrlhf_ext.ops.aggregate import AGGREGATIONS
from openrlhf_ext.ops.kl import KL_ESTIMATORS
from openrlhf_ext.ops.policy_loss import POLICY_LOSSES

BASE = "--actor.model_name_or_path m --data.prompt_dataset d --actor.num_gpus_per_node 1 "
URL = "--reward.remote_url r.py "
GAE = "--algo.advantage.estimator gae "
REINFORCE = "--algo.advantage.estimator reinforce "
PAIR = "--rollout.n_samples_per_prompt 2 "
LEVEL = "--algo.advantage.is_correction_level "
MODE = "--algo.advantage.is_correction_mode "
GATING = "--algo.advantage.is_correction_gating "
BOUNDS = "--algo.advantage.is_correction_threshold "
GSPO = "--actor.policy_loss_type gspo "
ASYNC = "--train.async_enable "
FILTER = "--algo.dynamic_filtering_enable "
LORA = "--ds.lora.rank 8 "
RM = "--reward.model_name_or_path rm "

FORBIDDEN = [
    # estimators
    ("--algo.advantage.estimator dr_grpo", "--rollout.n_samples_per_prompt to 2 or more"),
    (PAIR + "--algo.advantage.estimator dr_grpo --algo.advantage.gamma 0.9", "leave it at 1.0"),
    ("--algo.advantage.estimator flash_reinforce --algo.advantage.gamma 0.9", "leave it at 1.0"),
    (GAE + "--algo.advantage.gamma 1.1", "from 0 to 1"),
    (GAE + "--algo.advantage.lambd 1.1", "from 0 to 1"),
    (REINFORCE + "--algo.advantage.lambd 0.9", "without --algo.advantage.estimator gae"),
    ("--algo.advantage.no_std_norm --algo.advantage.norm std", "leave out one of them"),
    # losses
    (GSPO + "--actor.loss_agg_mode token-mean", "set it to seq-mean-token-mean"),
    (GSPO + "--actor.loss_agg_mode seq-mean-token-sum-norm", "set it to seq-mean-token-mean"),
    ("--actor.policy_loss_type cispo --actor.dual_clip 3", "cispo has none"),
    # corrections
    (MODE + "clip", "without --algo.advantage.is_correction_level"),
    (GATING + "tv", "without --algo.advantage.is_correction_level"),
    (BOUNDS + "2", "without --algo.advantage.is_correction_level"),
    (LEVEL + "seq " + MODE + "clip", "it cuts the weight of a token"),
    (LEVEL + "token " + MODE + "clip " + GATING + "tv " + BOUNDS + "0.1", "it cuts the weight of a token"),
    (LEVEL + "token " + GATING + "binary_kl", "0.5 5.0: binary_kl has an upper bound only; give one number"),
    (LEVEL + "seq " + GATING + "tv " + BOUNDS + "0 1", "tv has an upper bound only"),
    (LEVEL + "token " + BOUNDS + "1 2 3", "it takes HIGH or LOW HIGH"),
    (LEVEL + "token " + BOUNDS, "it takes HIGH or LOW HIGH"),
    (LEVEL + "token " + BOUNDS + "2 1", "0 <= LOW < HIGH"),
    (LEVEL + "token " + BOUNDS + "-1 1", "0 <= LOW < HIGH"),
    (LEVEL + "token " + BOUNDS + "0", "above 0"),
    (LEVEL + "token " + GATING + "tv " + BOUNDS + "-1", "above 0"),
    (LEVEL + "token " + BOUNDS + "nan", "above 0"),
    (GSPO + LEVEL + "seq " + GATING + "tv", "leave it out"),
    (GSPO + LEVEL + "seq " + MODE + "clip", "leave it out"),
    (GSPO + LEVEL + "token " + BOUNDS + "2", "leave it out"),
    # KL
    ("--algo.kl.init_coef 0 --algo.kl.target 0.1", "without --algo.kl.init_coef above 0"),
    ("--algo.kl.target 0", "above 0"),
    ("--algo.kl.target 0.1 --algo.kl.horizon 0", "1 or more"),
    ("--algo.kl.target 0.1 --algo.kl.horizon 100", "give more than 204"),
    ("--algo.kl.horizon 10", "without --algo.kl.target"),
    ("--algo.kl.unbiased_gradient", "without --algo.kl.use_loss"),
    # critic
    (REINFORCE + "--critic.adam.lr 1e-5", "--critic.adam.lr 1e-05: it has no effect without"),
    (REINFORCE + "--critic.freezing_steps 2", "without --algo.advantage.estimator gae"),
    (REINFORCE + "--critic.save_value_network", "without --algo.advantage.estimator gae"),
    (GAE + "--critic.freezing_steps -2", "a number of rollout steps"),
    (GAE + "--critic.value_clip 0", "above 0"),
    (GAE + "--critic.lr_scheduler cosin", "--critic.lr_scheduler cosin: did you mean cosine"),
    (GAE + "--critic.adam.lr -1", "0 or more"),
    (GAE + "--critic.num_gpus_per_node 3", "no multiple of --train.micro_batch_size 1 x 3 ranks"),
    (GAE + "--train.colocate_all --critic.num_gpus_per_node 2", "it shares the policy's devices; set it to 1"),
    (REINFORCE + "--ds.value_head_prefix v", "without --algo.advantage.estimator gae or --reward.model"),
    (GAE + "--ds.value_head_prefix a.b", "the name of a module"),
    # reward model
    ("--reward.normalize_enable", "without --reward.model_name_or_path"),
    ("--reward.num_gpus_per_node 2", "without --reward.model_name_or_path"),
    ("--reward.num_nodes 2", "without --reward.model_name_or_path"),
    ("--reward.offload", "without --reward.model_name_or_path"),
    (RM + "--train.colocate_all --reward.num_gpus_per_node 2", "it shares the policy's devices; set it to 1"),
    (REINFORCE + RM + "--train.colocate_critic_reward", "without --algo.advantage.estimator gae and --reward.model"),
    (GAE + "--train.colocate_critic_reward", "without --algo.advantage.estimator gae and --reward.model"),
    (
        GAE + RM + "--train.colocate_critic_reward --critic.num_gpus_per_node 2 --reward.num_gpus_per_node 1",
        "it shares the critic's devices; set it to 2, as --critic.num_gpus_per_node",
    ),
    # penalties
    ("--reward.overlong_penalty_factor 2", "without --reward.overlong_buffer_len"),
    ("--reward.overlong_buffer_len 0", "above 0"),
    ("--reward.overlong_buffer_len 65 --rollout.max_new_tokens 64", "part of --rollout.max_new_tokens 64"),
    ("--reward.overlong_buffer_len 65 --data.max_len 64", "part of --data.max_len 64"),
    ("--reward.stop_properly_penalty_coef 1.5", "from 0 to 1, a factor"),
    # filtering and generation
    (FILTER, "set --rollout.n_samples_per_prompt to 2 or more"),
    (FILTER + PAIR + "--algo.dynamic_filtering_range 1 0", "the lower one first"),
    ("--algo.dynamic_filtering_range 0.1 0.9", "without --algo.dynamic_filtering_enable"),
    ("--rollout.batch_size 128 --rollout.vllm_generate_batch_size 300", "choose 256 or 384"),
    ("--rollout.batch_size 128 --rollout.vllm_generate_batch_size 64", "choose 128."),
    # asynchrony
    ("--train.async_queue_size 2", "without --train.async_enable"),
    ("--train.partial_rollout_enable", "--train.partial_rollout_enable: it has no effect without --train.async_enable"),
    (ASYNC + "--train.async_queue_size 0", "1 or more"),
    (ASYNC + "--train.colocate_all --vllm.enable_sleep", "work at the same time; leave it out"),
    (ASYNC + "--train.colocate_all --ds.enable_sleep", "work at the same time; leave it out"),
    # adapters
    ("--ds.load_in_4bit", "without --ds.lora.rank above 0"),
    ("--ds.load_in_8bit", "without --ds.lora.rank above 0"),
    ("--ds.lora.alpha 32", "without --ds.lora.rank above 0"),
    ("--ds.lora.dropout 0.1", "without --ds.lora.rank above 0"),
    ("--ds.lora.target_modules q_proj", "without --ds.lora.rank above 0"),
    (LORA + "--ds.lora.alpha 0", "1 or more"),
    (LORA + "--ds.lora.dropout 1", "from 0 to below 1"),
    (LORA + "--ds.lora.target_modules", "all-linear, or names"),
    ("--ds.lora.rank -1", "0 or more"),
    (LORA + "--ds.load_in_4bit --ds.zero_stage 3", "set --ds.zero_stage 2 or less"),
    (LORA + "--ds.load_in_8bit --ds.zero_stage 3", "8-bit weights are not sharded; set --ds.zero_stage 2 or less"),
    (LORA + "--ds.load_in_8bit --ds.zero_stage 2 --ds.grad_accum_dtype fp32", "which 8-bit weights rule out"),
    (LORA + "--ds.load_in_4bit --ds.load_in_8bit", "4 bits by --ds.load_in_4bit; leave one of them out"),
]

ALLOWED = [
    GAE + "--algo.advantage.lambd 0.95 --algo.advantage.gamma 0.99 --critic.adam.lr 1e-5 --critic.freezing_steps 3",
    REINFORCE + "--algo.advantage.gamma 0.9 --algo.advantage.no_std_norm",
    REINFORCE + "--critic.num_gpus_per_node 8",
    PAIR + "--algo.advantage.estimator dr_grpo --actor.loss_agg_mode seq-mean-token-sum-norm",
    "--algo.advantage.estimator flash_reinforce --algo.advantage.norm mean",
    GSPO,
    GSPO + "--actor.loss_agg_mode seq-mean-token-mean --actor.dual_clip 3 " + LEVEL + "seq",
    "--actor.policy_loss_type cispo --actor.eps_clip_low_high 1.0 4.0",
    LEVEL + "token",
    LEVEL + "token " + MODE + "clip " + BOUNDS + "2",
    LEVEL + "seq " + GATING + "binary_kl " + BOUNDS + "0.001",
    "--algo.kl.target 0.1 --algo.kl.horizon 1000",
    "--algo.kl.use_loss --algo.kl.unbiased_gradient",
    GAE + RM + "--train.colocate_critic_reward --critic.num_gpus_per_node 2 --reward.num_gpus_per_node 2",
    GAE + "--train.colocate_all --critic.num_gpus_per_node 1 --ds.value_head_prefix value_head",
    GAE + "--critic.num_gpus_per_node 3 --train.dynamic_batch_enable",
    REINFORCE + RM + "--reward.normalize_enable --reward.offload --reward.weights 1 0.5 --ds.value_head_prefix v",
    "--reward.overlong_buffer_len 64 --rollout.max_new_tokens 64 --reward.overlong_penalty_factor 0.5",
    "--reward.stop_properly_penalty_coef -0.5",
    FILTER + PAIR + "--algo.dynamic_filtering_range 0.1 0.9",
    "--rollout.batch_size 128 --rollout.vllm_generate_batch_size 256",
    ASYNC + "--train.async_queue_size 2 --train.partial_rollout_enable",
    LORA + "--ds.load_in_4bit --ds.lora.alpha 32 --ds.lora.dropout 0.1 --ds.lora.target_modules q_proj v_proj",
    LORA + "--ds.load_in_8bit --ds.zero_stage 2",
    LORA + "--ds.zero_stage 3",
]


def rl(text: str, rewards: str = URL) -> Parsed:
    return parse("rl", (BASE + rewards + text).split())


@pytest.mark.parametrize(("text", "words"), FORBIDDEN)
def test_what_is_forbidden_says_what_to_change(text: str, words: str):
    with pytest.raises(ConfigError) as caught:
        rl(text)
    (line,) = str(caught.value).splitlines()
    assert words in line
    assert line.startswith("--")


@pytest.mark.parametrize("text", ALLOWED)
def test_what_is_allowed(text: str):
    rl(text)


def test_what_adapters_need_is_refused_without_them():
    for text in ("--ds.lora.alpha 8", "--ds.load_in_4bit", "--ds.load_in_8bit", "--ds.lora.dropout 0.1"):
        with pytest.raises(ConfigError, match=r"it has no effect without --ds\.lora\.rank"):
            parse("sft", f"--model.model_name_or_path m --data.dataset d {text}".split())
    assert parse(
        "sft", ["--model.model_name_or_path", "m", "--data.dataset", "d", "--ds.lora.rank", "8", "--ds.load_in_4bit"]
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--algo.kl.use_loss", "take k2 or k3"),
        ("--algo.kl.estimator k3", "only k1 is an unbiased penalty"),
        (ASYNC + "--train.colocate_all", "engines have their own"),
    ],
)
def test_what_is_only_said(text: str, words: str):
    (note,) = rl(text).notes
    assert words in note


@pytest.mark.parametrize(
    "text",
    ["", "--algo.kl.use_loss --algo.kl.estimator k3", "--algo.kl.use_loss --algo.kl.unbiased_gradient", ASYNC],
)
def test_nothing_is_said_without_need(text: str):
    assert not rl(text).notes


def test_every_need_names_flags_that_exist():
    flags = flags_of(RLConfig)
    for need in NEEDS:
        for name in need.paths:
            assert any(path == name or path.startswith(f"{name}.") for path in flags), name


def test_the_names_are_those_of_the_operations():
    losses = get_args(type_of("actor.policy_loss_type"))
    assert set(losses) == POLICY_LOSSES.keys()
    assert set(get_args(AdvantageEstimator)) == ESTIMATORS.keys()
    assert set(get_args(KLEstimator)) == KL_ESTIMATORS.keys()
    assert set(get_args(LossAggregation)) == AGGREGATIONS.keys()
    assert set(DISCOUNTED) == {name for name, estimator in ESTIMATORS.items() if estimator.discounted}


def test_group_estimators_have_no_signal_from_one_answer():
    scores_B, group_B, action_BA = torch.tensor([1.0, 3.0]), torch.tensor([0, 1]), torch.ones(2, 1, dtype=torch.bool)
    flat = {
        name
        for name, estimator in ESTIMATORS.items()
        if not estimator.needs_values
        and not advantages(scores_B, group_B, action_BA, None, AdvantageSettings(name))[0].any()
    }
    assert set(GROUP_ESTIMATORS) == flat


def type_of(path: str) -> object:
    return flags_of(RLConfig)[path].type
