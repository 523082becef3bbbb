"""From flags to the driver's settings."""

from __future__ import annotations

from types import SimpleNamespace

from openrlhf_ext.cli.rl_run import _schedule
from openrlhf_ext.cli.rl_setup import rl_settings
from openrlhf_ext.config import parse
from openrlhf_ext.ops.length_penalty import LengthPenalties
from openrlhf_ext.ops.mismatch import CorrectionSettings
from openrlhf_ext.trainers.settings import RLSettings

NEEDED = "--actor.model_name_or_path m --data.prompt_dataset d --reward.remote_url r.py "
REINFORCE = "--algo.advantage.estimator reinforce "
LEVEL = "--algo.advantage.is_correction_level "


def settings(text: str) -> RLSettings:
    return rl_settings(parse("rl", (NEEDED + text).split()).config, SimpleNamespace(pad_token_id=0))


def test_a_critic_has_its_loss_and_its_first_steps():
    with_critic = settings("--algo.advantage.estimator gae --critic.value_clip 0.3 --critic.freezing_steps 4")
    assert with_critic.value_objective is not None
    assert (with_critic.value_objective.clip, with_critic.freezing_steps) == (0.3, 4)
    without = settings(REINFORCE)
    assert (without.value_objective, without.freezing_steps) == (None, 0)


def test_a_correction_by_one_bound_or_by_two():
    assert settings(REINFORCE).objective.correction is None
    by_two = settings(REINFORCE + LEVEL + "token --algo.advantage.is_correction_mode clip").objective.correction
    assert by_two == CorrectionSettings("token", "clip", "ratio", 0.5, 5.0)
    flags = "seq --algo.advantage.is_correction_gating tv --algo.advantage.is_correction_threshold 0.1"
    assert settings(REINFORCE + LEVEL + flags).objective.correction == CorrectionSettings("seq", "mask", "tv", 0.0, 0.1)


def test_gspo_weighs_sequences():
    assert settings(REINFORCE + "--actor.policy_loss_type gspo").objective.aggregation == "seq-mean-token-mean"
    assert settings(REINFORCE).objective.aggregation == "token-mean"


def test_lengths_are_penalised_against_the_answers_limit():
    assert settings(REINFORCE).length_penalties is None
    flags = "--rollout.max_new_tokens 64 --reward.overlong_buffer_len 16 --reward.overlong_penalty_factor 0.5"
    expected = LengthPenalties(max_new_tokens=64, overlong_buffer=16.0, overlong_factor=0.5)
    assert settings(REINFORCE + flags).length_penalties == expected
    cut = settings(REINFORCE + "--data.max_len 100 --reward.stop_properly_penalty_coef -0.5").length_penalties
    assert cut == LengthPenalties(max_new_tokens=100, stop_properly=-0.5)


def test_the_kl_is_in_one_place_and_may_adapt():
    in_loss = settings(REINFORCE + "--algo.kl.use_loss --algo.kl.unbiased_gradient --algo.kl.target 0.1")
    assert (in_loss.advantage.kl_coef, in_loss.objective.kl_coef, in_loss.objective.kl_unbiased) == (0.0, 0.01, True)
    assert (in_loss.kl_target, in_loss.kl_horizon) == (0.1, 10_000)


def test_lag_and_filtering_are_off_unless_enabled():
    plain = settings(REINFORCE)
    assert (plain.max_lag, plain.partial, plain.filter_range) == (0, False, None)
    flags = (
        "--train.async_enable --train.async_queue_size 2 --train.partial_rollout_enable --algo.dynamic_filtering_enable"
    )
    ahead = settings(REINFORCE + flags + " --rollout.n_samples_per_prompt 2")
    assert (ahead.max_lag, ahead.partial, ahead.filter_range) == (2, True, (0.0, 1.0))


def test_a_game_of_two_players_may_take_twice_the_optimizer_steps():
    text = f"{NEEDED}{REINFORCE}--rollout.batch_size 16 --train.batch_size 8 --rollout.n_samples_per_prompt 2"
    cfg = parse("rl", text.split()).config
    steps = [_schedule(40, cfg, rl_settings(cfg, SimpleNamespace(pad_token_id=0)), players) for players in (1, 2)]
    assert [schedule.policy for schedule in steps] == [4 + 4 + 2, 8 + 8 + 4]
