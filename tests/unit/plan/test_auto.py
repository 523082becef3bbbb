"""--memory.auto: what the planner chooses fits, leaves what is trained as it is, and touches no flag that was set."""

from __future__ import annotations

import pytest
from planned_runs import DPO, REINFORCE, arguments

from openrlhf_ext.config import flags_of, get
from openrlhf_ext.config.rules import broken_rules
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.plan.auto import RESERVE, chosen
from openrlhf_ext.plan.make import make_plan

RM = "--model.model_name_or_path Qwen/Qwen3-0.6B --data.max_len 2048"
OPEN = " ".join(
    word
    for word in REINFORCE.replace("--train.micro_batch_size 4", "").replace("--rollout.micro_batch_size 4", "").split()
)

CASES = [
    ("rm", RM, 80.0, {}),
    ("rm", RM, 24.0, {}),
    ("rm", f"{RM} --model.num_gpus_per_node 4 --ds.zero_stage 3", 24.0, {"count": 4}),
    ("dpo", DPO, 141.0, {}),
    ("sft", "--model.model_name_or_path Qwen/Qwen3-0.6B", 24.0, {}),
    ("rl", OPEN, 96.0, {"host": 512}),
    ("rl", f"{OPEN} --train.dynamic_batch_enable", 96.0, {"host": 512}),
]


@pytest.mark.parametrize(("command", "flags", "gigabytes", "hardware"), CASES)
def test_what_is_chosen_fits_with_the_reserve(command, flags, gigabytes, hardware):
    _, config, explicit, there, data = arguments(command, flags, gigabytes, **hardware)
    changed, changes = chosen(command, config, explicit, there, data)
    memory = make_plan(command, changed, explicit, there, data).memory
    assert memory.fits and memory.gpu_peak <= (1 - RESERVE) * memory.gpu_limit
    differing = {path for path in flags_of(type(config)) if get(config, path) != get(changed, path)}
    assert differing == {change.flag.removeprefix("--") for change in changes}
    assert not differing & explicit
    assert all(change.same_result for change in changes)
    assert not [item for item in broken_rules(changed, explicit | differing) if not item.plannable]
    before, after = (make_plan(command, tree, explicit, there, data).arithmetic for tree in (config, changed))
    assert before == after, "the effective batch is the one asked for"


def test_a_large_gpu_gets_a_larger_micro_batch():
    small, large = (chosen(*arguments("rm", RM, size))[0].train.micro_batch_size for size in (24.0, 80.0))
    assert 1 <= small < large
    assert 128 % large == 0


def test_one_more_would_not_fit_or_be_no_use():
    command, config, explicit, there, data = arguments("rm", RM, 24.0)
    size = chosen(command, config, explicit, there, data)[0].train.micro_batch_size
    larger = RM + f" --train.micro_batch_size {2 * size}"
    memory = make_plan(*arguments("rm", larger, 24.0)).memory
    assert memory.gpu_peak > (1 - RESERVE) * memory.gpu_limit


def test_a_flag_that_was_set_stays():
    config, changes = chosen(*arguments("rm", f"{RM} --train.micro_batch_size 1", 80.0))
    assert config.train.micro_batch_size == 1
    assert not changes


def test_sleep_is_chosen_where_roles_share_a_gpu():
    config, changes = chosen(*arguments("rl", REINFORCE, 96.0, host=512))
    assert config.vllm.enable_sleep
    assert "--vllm.enable_sleep" in {change.flag for change in changes}


def test_what_would_train_something_else_is_not_chosen():
    with pytest.raises(ConfigError, match=r"does not fit.*openrlhf-ext plan"):
        chosen(*arguments("dpo", DPO, 12.0))
