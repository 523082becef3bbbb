"""The parts of the field together, as commands: PPO with a critic on adapters, generation ahead of training."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import job, run
from peft import PeftModel
from scenario import FLAGS, STEPS, Record, output_to
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

pytestmark = pytest.mark.slow

PPO = shlex.split("""
--algo.advantage.estimator gae --algo.advantage.lambd 0.95 --critic.adam.lr 3e-3 --critic.freezing_steps 1
--critic.save_value_network --reward.model_name_or_path scorer --reward.weights 1 0.1
--reward.overlong_buffer_len 4 --algo.kl.target 0.01 --algo.kl.horizon 1000
--ds.lora.rank 4 --ds.lora.alpha 8 --ds.zero_stage 2
""")
AHEAD = shlex.split("""
--train.async_enable --train.async_queue_size 1 --algo.advantage.estimator group_norm
--actor.policy_loss_type cispo --actor.eps_clip_low_high 1.0 4.0
--algo.dynamic_filtering_enable --algo.dynamic_filtering_range -1 0.2
--algo.advantage.is_correction_level token --algo.advantage.is_correction_mode clip
""")
PARTIAL = shlex.split("""
--train.async_enable --train.partial_rollout_enable --vllm.num_engines 2 --algo.advantage.estimator rloo
--rollout.vllm_generate_batch_size 16 --train.num_episodes 1
""")


@dataclass(frozen=True)
class Twice:
    """A run, and the same run killed after its third step and resumed."""

    whole: Record
    resumed: Record


def twice(name: str, flags: list[str], workshop: Path) -> Twice:
    run("rl", [*FLAGS, *flags, *output_to(name)], workshop)
    other = [*FLAGS, *flags, *output_to(f"{name}_killed")]
    record = Record(workshop / f"{name}_killed")
    with job("rl", other, workshop) as started:
        started.until(lambda: 3 in record.steps(), "step 3")
        started.kill_driver()
        started.until_gone()
    output = run("rl", [*other, "--ckpt.load_enable"], workshop)
    assert "step 1/" not in output
    return Twice(Record(workshop / name), record)


@pytest.fixture(scope="module")
def ppo(workshop: Path) -> Twice:
    torch.manual_seed(5)
    scorer = AutoModelForSequenceClassification.from_pretrained(workshop / "model", num_labels=1)
    scorer.save_pretrained(workshop / "scorer")
    for file in (workshop / "model").glob("*token*"):
        (workshop / "scorer" / file.name).write_bytes(file.read_bytes())
    return twice("ppo", PPO, workshop)


def by_step(record: Record, name: str) -> list[Any]:
    return [line[name] for line in record.metrics() if line["step"] > 0]


def test_ppo_on_adapters_goes_on_exactly_after_a_kill(ppo: Twice):
    assert ppo.resumed.repeatable() == ppo.whole.repeatable()
    for step in range(1, STEPS + 1):
        assert ppo.resumed.rollouts(step) == ppo.whole.rollouts(step)


def test_the_critic_learns_first_and_every_part_is_reported(ppo: Twice):
    assert by_step(ppo.whole, "policy/optimizer_steps")[:2] == [0.0, 2.0]
    losses = by_step(ppo.whole, "critic/loss")
    assert losses[-1] < 0.7 * losses[0]
    last = ppo.whole.metrics()[-1]
    assert "critic/explained_variance" in last
    sources = last["reward/part/reward"] + 0.1 * last["reward/part/reward_model"]
    assert last["reward"] == pytest.approx(sources, abs=1e-6)
    assert last["policy/kl_coef"] != by_step(ppo.whole, "policy/kl_coef")[0]


def test_the_engine_samples_from_the_merged_adapters(ppo: Twice):
    """What the trainer says of the sampled tokens is what the engine said, after every push."""
    mismatch = [value for value in (line.get("mismatch/abs_max") for line in ppo.whole.metrics()) if value is not None]
    assert len(mismatch) == STEPS - 1  # in the first step the critic learns alone
    assert max(mismatch) < 1e-4
    assert max(by_step(ppo.whole, "policy/kl")[1:]) > 0.0


def test_merged_model_adapters_and_critic_are_exported(ppo: Twice, workshop: Path):
    tokens = torch.arange(3, 30)[None]
    merged = AutoModelForCausalLM.from_pretrained(ppo.whole.folder / "model")
    base = AutoModelForCausalLM.from_pretrained(workshop / "model")
    with torch.no_grad():
        plain = base(tokens).logits
        adapted = PeftModel.from_pretrained(base, ppo.whole.folder / "adapters")(tokens).logits
        torch.testing.assert_close(merged(tokens).logits, adapted, rtol=0, atol=1e-4)
    assert (adapted - plain).abs().max() > 1e-3
    critic = AutoModelForSequenceClassification.from_pretrained(ppo.whole.folder / "critic")
    assert critic.config.num_labels == 1
    assert json.loads((ppo.whole.folder / "result.json").read_text())["steps"] == STEPS


@pytest.fixture(scope="module")
def ahead(workshop: Path) -> Twice:
    return twice("ahead", AHEAD, workshop)


def test_generation_ahead_of_training_goes_on_exactly_after_a_kill(ahead: Twice):
    assert ahead.resumed.repeatable() == ahead.whole.repeatable()


def test_rollouts_are_one_step_old_and_filtered_groups_are_replaced(ahead: Twice):
    staleness = by_step(ahead.whole, "rollout/staleness")
    assert staleness[0] == 0.0
    assert set(staleness[1:]) == {1.0}
    consumed, kept, filtered = (
        sum(by_step(ahead.whole, f"rollout/{name}")) for name in ("consumed", "prompts", "filtered_groups")
    )
    assert filtered > 0
    assert consumed == kept + filtered


def test_answers_go_on_over_a_change_of_weights_on_two_engines(workshop: Path):
    run("rl", [*FLAGS, *PARTIAL, *output_to("partial")], workshop)
    record = Record(workshop / "partial")
    assert record.steps()[-1] == 3  # 8 + 8 + 4 prompts
    ids = [group.prompt.id for step in (1, 2, 3) for group in record.rollouts(step)]
    assert len(ids) == len(set(ids)) == 20
    versions = [m.rollout.versions for step in (1, 2, 3) for group in record.rollouts(step) for m in group.members]
    assert all(low <= high for low, high in versions)
