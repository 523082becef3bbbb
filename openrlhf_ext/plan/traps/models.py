"""Traps of models that do not go together, or with the lengths asked for."""

from __future__ import annotations

from pathlib import Path

from openrlhf_ext.plan.traps.case import Case, Trap
from openrlhf_ext.plan.types import ModelRun, Role


def length_beyond_positions(case: Case) -> str | None:
    longest = case.config.data.max_len
    short = [model for model in case.setup.models if model.role != "reward" and model.shape.positions < longest]
    if not short:
        return None
    shape = min((model.shape for model in short), key=lambda shape: shape.positions)
    return (
        f"--data.max_len {longest} is beyond the {shape.positions} positions that {shape.name} was made for; give "
        f"{shape.positions} or less."
    )


def reward_model_cuts_answers(case: Case) -> str | None:
    reward, longest = _of(case, "reward"), case.config.data.max_len
    if reward is None or reward.shape.positions >= longest:
        return None
    return (
        f"The reward model {reward.shape.name} reads {reward.shape.positions} tokens of the {longest} of "
        "--data.max_len, and longer answers lose their beginning; give a smaller --data.max_len."
    )


def reward_of_another_vocabulary(case: Case) -> str | None:
    reward = _of(case, "reward")
    if reward is None or reward.shape.vocab == case.trained.shape.vocab:
        return None
    return (
        f"The reward model {reward.shape.name} has another vocabulary ({reward.shape.vocab}) than the policy "
        f"({case.trained.shape.vocab}): answers are read as text and tokenized anew, which needs a chat template of "
        "its own."
    )


def critic_of_another_vocabulary(case: Case) -> str | None:
    critic = _of(case, "critic")
    if critic is None or critic.shape.vocab == case.trained.shape.vocab:
        return None
    return (
        f"The critic {critic.shape.name} has another vocabulary ({critic.shape.vocab}) than the policy "
        f"({case.trained.shape.vocab}), whose tokens it is given: give --critic.model_name_or_path of the policy's "
        "family."
    )


def reference_of_another_vocabulary(case: Case) -> str | None:
    reference = _of(case, "reference")
    if reference is None or reference.shape.vocab == case.trained.shape.vocab:
        return None
    return (
        f"The reference {reference.shape.name} has another vocabulary ({reference.shape.vocab}) than the model "
        f"({case.trained.shape.vocab}), so their log-probs are of different tokens: give another "
        "--ref.model_name_or_path."
    )


def reference_is_the_bare_base(case: Case) -> str | None:
    """Adapters that training goes on from are not part of a reference that is the base under them."""
    config, path = case.config, getattr(case.config, case.section).model_name_or_path
    if path is None or not (Path(path) / "adapter_config.json").is_file() or config.ds.lora.rank == 0:
        return None
    if case.rl and config.algo.kl.init_coef > 0:
        remedy = "merge them into the model first"
    elif case.setup.command == "dpo" and config.ref.strategy == "base":
        remedy = "give --ref.strategy adapter"
    else:
        return None
    return (
        f"--{case.section}.model_name_or_path {path} holds adapters, and the reference is the base without them: the "
        f"distance is not taken to where training began; {remedy}."
    )


def reference_copied_for_nothing(case: Case) -> str | None:
    config = case.config
    if case.setup.command != "dpo" or config.ds.lora.rank == 0 or config.ref.model_name_or_path is not None:
        return None
    if config.ref.strategy not in ("model", "offloaded"):
        return None
    return (
        f"--ref.strategy {config.ref.strategy} loads a second model that is the base under the adapters; give "
        "--ref.strategy base, which takes no memory."
    )


def tensor_parallel_does_not_divide(case: Case) -> str | None:
    for engines in case.setup.engines:
        heads, parts = engines.shape.heads, engines.tensor_parallel
        if heads % parts:
            name = "judge" if engines.role == "judge" else "vllm"
            fitting = max(number for number in range(1, parts) if heads % number == 0)
            return (
                f"--{name}.tensor_parallel_size {parts} does not divide the {heads} heads of {engines.shape.name}, "
                f"which vLLM refuses; give {fitting}."
            )
    return None


def _of(case: Case, role: Role) -> ModelRun | None:
    return next((model for model in case.setup.models if model.role == role), None)


MODELS: tuple[Trap, ...] = (
    length_beyond_positions,
    reward_model_cuts_answers,
    reward_of_another_vocabulary,
    critic_of_another_vocabulary,
    reference_of_another_vocabulary,
    reference_is_the_bare_base,
    reference_copied_for_nothing,
    tensor_parallel_does_not_divide,
)
