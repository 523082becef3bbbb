"""The rules of the student, and of a reference that follows the policy."""

from __future__ import annotations

from collections.abc import Iterator

from openrlhf_ext.config.rl import RLConfig
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation
from openrlhf_ext.config.serve_rm import ServeRMConfig

REDUCTIONS = ("mean", "min", "max", "median", "quartile1", "quartile3")


def one_student(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    student = config.student
    if student.from_reference and student.model_name_or_path is not None:
        yield Violation("--student.from_reference", None, "--student.model_name_or_path names another; leave out one")


def the_reference_can_be_the_student(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    if not config.student.from_reference:
        return
    reasons = {
        "there is no reference; set --algo.kl.init_coef above 0": config.algo.kl.init_coef == 0,
        "it would be asked by two at once; leave out --train.async_enable": config.train.async_enable,
        "a student stays as it is; leave out --ref.sync_steps": config.ref.sync_steps > 0,
    }
    yield from (Violation("--student.from_reference", None, reason) for reason, holds in reasons.items() if holds)
    for name in ("num_nodes", "num_gpus_per_node", "offload"):
        if f"student.{name}" in explicit:
            yield Violation(f"--student.{name}", None, f"it is the reference's own; set --ref.{name}")


def terms_have_weights(config: RLConfig | ServeRMConfig, explicit: Explicit) -> Iterator[Violation]:
    student = config.student
    for kind in ("solution", "divergence"):
        terms, coefs = getattr(student, f"{kind}_terms"), getattr(student, f"{kind}_coefs")
        unknown = [term for term in terms if term not in REDUCTIONS]
        if unknown or len(set(terms)) < len(terms):
            yield Violation(f"--student.{kind}_terms", terms, f"choose among {', '.join(REDUCTIONS)}, each once")
        if len(terms) != len(coefs):
            yield Violation(f"--student.{kind}_coefs", coefs, f"give one for each of the {len(terms)} {kind}_terms")


def tags_can_be_found(config: RLConfig | ServeRMConfig, explicit: Explicit) -> Iterator[Violation]:
    opening, closing = config.student.tags
    if not opening.strip() or not closing.strip() or opening == closing:
        yield Violation("--student.tags", config.student.tags, "give two texts that differ, an opening and a closing")


def teacher_logprobs_are_of_one_temperature(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    """The sampler tells the log-probs of the distribution that it drew from, and of no other."""
    student, rollout = config.student, config.rollout
    if not config.has_student or student.teacher_logprobs != "sampler":
        return
    otherwise = "or set --student.teacher_logprobs policy"
    if rollout.temperature != student.temperature:
        yield Violation(
            "--student.temperature",
            student.temperature,
            f"the sampler's log-probs are those of --rollout.temperature {rollout.temperature}; set both to one value, "
            f"{otherwise}",
        )
    if config.eval.dataset is not None and config.eval.temperature != student.temperature:
        yield Violation(
            "--eval.temperature",
            config.eval.temperature,
            f"the sampler's log-probs are compared with the student's at {student.temperature}; set it to that, "
            f"{otherwise}",
        )
    for name, off in {"top_p": 1.0, "top_k": -1, "min_p": 0.0}.items():
        if getattr(rollout, name) != off:
            yield Violation(
                f"--rollout.{name}",
                getattr(rollout, name),
                f"the sampler's log-probs are then of a distribution that was cut off; leave it out, {otherwise}",
            )


def the_policy_is_free_to_answer(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.has_student and config.student.teacher_logprobs == "policy" and config.train.async_enable:
        yield Violation(
            "--student.teacher_logprobs",
            "policy",
            "the policy trains while others score; leave out --train.async_enable, or let the sampler tell them",
        )
    training = "--student.from_reference" if config.student.from_reference else "--student.teacher_logprobs"
    wakes = config.student.from_reference or config.student.teacher_logprobs == "policy"
    others = config.has_reward_model or config.judge.model_name_or_path is not None
    if config.has_student and wakes and others and (config.ds.enable_sleep or config.vllm.enable_sleep):
        yield Violation(
            training,
            None,
            "the models that train would be awake while a reward model or a judge scores, which take turns on the GPU; "
            "give a student of its own (--student.model_name_or_path, --student.teacher_logprobs sampler)",
        )
    if config.has_student and config.train.agent_func_path is not None:
        yield Violation(
            "--train.agent_func_path",
            config.train.agent_func_path,
            "a student scores answers of one turn; leave out one",
        )


def the_reference_follows(config: RLConfig, explicit: Explicit) -> Iterator[Violation]:
    ref = config.ref
    if ref.sync_steps <= 0:
        return
    if config.algo.kl.init_coef == 0:
        yield Violation("--ref.sync_steps", ref.sync_steps, "there is no reference; set --algo.kl.init_coef above 0")
    if config.ds.lora.rank > 0:
        yield Violation(
            "--ref.sync_steps",
            ref.sync_steps,
            "the reference is the base under the adapters, which stays as it is; leave it out, or train all weights "
            "(--ds.lora.rank 0)",
        )


STUDENT_RULES: tuple[Rule, ...] = (
    one_student,
    the_reference_can_be_the_student,
    terms_have_weights,
    tags_can_be_found,
    teacher_logprobs_are_of_one_temperature,
    the_policy_is_free_to_answer,
    the_reference_follows,
)
