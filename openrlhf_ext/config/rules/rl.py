"""The rules of `rl` on batches, rewards and placement; those of the algorithm are in `algorithm`."""

from __future__ import annotations

from collections.abc import Iterator

from openrlhf_ext.config.fields import get
from openrlhf_ext.config.rl import RLConfig
from openrlhf_ext.config.rules.answered import figures_are_of_answers
from openrlhf_ext.config.rules.effects import flags_have_an_effect
from openrlhf_ext.config.rules.rewards import REWARD_RULES
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation, accumulation, count, one_for_each, required


def rl_needs(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    yield from required(config, {"actor.model_name_or_path": "the policy, a Hugging Face folder or hub name"})
    yield from required(config, {"data.prompt_dataset": "the prompts, a file, folder or hub name"}, plannable=True)
    models = (config.has_reward_model, config.has_student, config.has_agent, config.has_judge)
    if not config.reward.remote_url and not any(models):  # a judge that nobody asks: `rules.judge`
        yield Violation(
            "--reward.remote_url",
            None,
            "it is required: where rewards come from, a Python file with reward_func or a URL; "
            "or give --reward.model_name_or_path, --student.model_name_or_path or --judge.model_name_or_path",
            plannable=True,
        )


def rollouts_divide_into_steps(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    prompts, n, batch = config.rollout.batch_size, config.rollout.n_samples_per_prompt, config.train.batch_size
    if batch > 0 and (prompts * n) % batch:
        divisors = [d for d in range(1, prompts * n + 1) if prompts * n % d == 0]
        near = sorted(sorted(divisors, key=lambda d: abs(d - batch))[:2])
        yield Violation(
            "--train.batch_size",
            batch,
            f"it does not divide the {prompts * n} sequences of a rollout step (--rollout.batch_size "
            f"{prompts} x --rollout.n_samples_per_prompt {n}); choose {' or '.join(map(str, near))}",
        )


def rl_accumulation(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    train = config.train
    roles = ("actor", "critic") if config.has_critic and not train.colocate_all else ("actor",)
    for name in roles:
        if f"{name}.num_gpus_per_node" not in explicit:
            continue  # the device decides how many ranks the default becomes; checked again then
        section = getattr(config, name)
        ranks = section.num_nodes * section.num_gpus_per_node
        if not train.dynamic_batch_enable and ranks > 0 and train.micro_batch_size > 0:
            yield from accumulation(train.batch_size, train.micro_batch_size, ranks)


def dashboard_is_ours(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.ray.dashboard and config.ray.address is not None:
        yield Violation("--ray.dashboard", None, "a joined cluster has its own; leave it out with --ray.address")


def answers_leave_room_for_prompts(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    new, longest = config.rollout.max_new_tokens, config.data.max_len
    if new is not None and new >= longest:
        yield Violation(
            "--rollout.max_new_tokens",
            new,
            f"--data.max_len {longest} is for prompt and response together; raise it above {new}",
        )


def sleep_needs_colocation(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    for path in ("vllm.enable_sleep", "ds.enable_sleep"):
        if get(config, path) and not config.train.colocate_all:
            yield Violation(f"--{path}", None, "nobody else uses the memory it frees; add --train.colocate_all")


def colocated_roles_have_equal_ranks(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    for role, owner in _shared_with(config).items():
        for name in ("num_nodes", "num_gpus_per_node"):
            there, own = get(config, f"{owner}.{name}"), get(config, f"{role}.{name}")
            if own != there and f"{role}.{name}" in explicit:  # a default follows the owner of the devices
                what = "the policy's" if owner == "actor" else f"the {owner}'s"
                yield Violation(
                    f"--{role}.{name}", own, f"it shares {what} devices; set it to {there}, as --{owner}.{name}"
                )


def _shared_with(config: RLConfig) -> dict[str, str]:
    """The roles that run on another role's devices, and whose."""
    train, shared = config.train, {}
    if config.algo.kl.init_coef > 0 and (train.colocate_all or train.colocate_actor_ref):
        shared["ref"] = "actor"
    if config.has_critic and train.colocate_all:
        shared["critic"] = "actor"
    if config.student.model_name_or_path and train.colocate_all:
        shared["student"] = "actor"
    if config.has_reward_model and train.colocate_all:
        shared["reward"] = "actor"
    elif config.has_reward_model and config.has_critic and train.colocate_critic_reward:
        shared["reward"] = "critic"
    return shared


def one_weight_for_each_reward(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    reward = config.reward
    sources = {}
    if reward.remote_url:
        sources["--reward.remote_url"] = count(reward.remote_url)
    if config.has_agent:
        sources["--train.agent_func_path"] = 1
    if config.has_reward_model:
        sources["--reward.model_name_or_path"] = 1
    if config.has_student:
        sources["--student.model_name_or_path"] = 1
    if config.has_judge_reward:
        sources["--judge.prompt"] = 1
    if reward.weights and sources:
        yield from one_for_each("--reward.weights", len(reward.weights), sum(sources.values()), " and ".join(sources))


def one_share_for_each_prompt_set(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    data = config.data
    if data.prompt_probs and data.prompt_dataset:
        yield from one_for_each(
            "--data.prompt_probs", count(data.prompt_probs), count(data.prompt_dataset), "--data.prompt_dataset"
        )


def best_metric_is_measured(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    key = config.ckpt.best_metric_key
    if key not in ("", "none") and config.eval.dataset is None:
        yield Violation("--ckpt.best_metric_key", key, "nothing is evaluated; set --eval.dataset")


def a_reward_of_evaluation_is_asked(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.eval.remote_url is not None and config.eval.dataset is None:
        yield Violation("--eval.remote_url", config.eval.remote_url, "nothing is evaluated; set --eval.dataset")


RL_RULES: tuple[Rule, ...] = (
    a_reward_of_evaluation_is_asked,
    rl_needs,
    rollouts_divide_into_steps,
    rl_accumulation,
    dashboard_is_ours,
    answers_leave_room_for_prompts,
    sleep_needs_colocation,
    colocated_roles_have_equal_ranks,
    flags_have_an_effect,
    one_weight_for_each_reward,
    *REWARD_RULES,
    one_share_for_each_prompt_set,
    best_metric_is_measured,
    figures_are_of_answers,
)
