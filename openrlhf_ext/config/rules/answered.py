"""The rules of answers that evaluations of a training run sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from openrlhf_ext.config.dpo import DPOConfig
from openrlhf_ext.config.evaluation import ANSWER_RULES, is_answer_rule
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation
from openrlhf_ext.config.sections import AnsweringEvalSection
from openrlhf_ext.config.supervised import AnsweredEvalSection


def figures_are_of_answers(config: Any, explicit: Explicit) -> Iterator[Violation]:
    """Of rl, sft and dpo."""
    asked = config.eval
    answered = asked.dataset if not isinstance(asked, AnsweredEvalSection) else asked.scorer
    if answered is None:
        without = "--eval.scorer" if isinstance(asked, AnsweredEvalSection) else "--eval.dataset"
        for name in _own_names(asked):
            if f"eval.{name}" in explicit:
                yield Violation(f"--eval.{name}", getattr(asked, name), f"it has no effect without {without}")
    if asked.taxonomy is not None and asked.subject_column is None:
        yield Violation("--eval.taxonomy", asked.taxonomy, "it names subjects; give --eval.subject_column too")


def _own_names(asked: Any) -> list[str]:
    kinds = (AnsweringEvalSection, *((AnsweredEvalSection,) if isinstance(asked, AnsweredEvalSection) else ()))
    return [name for kind in kinds for name in kind.__annotations__ if name != "scorer"]


def held_out_rows_can_be_answered(config: Any, explicit: Explicit) -> Iterator[Violation]:
    """Of sft and dpo."""
    asked, ds = config.eval, config.ds
    scorer = asked.scorer
    if scorer is None:
        return
    if asked.dataset is None:
        yield Violation("--eval.scorer", scorer, "nothing is evaluated; set --eval.dataset")
    if not is_answer_rule(scorer):
        yield Violation(
            "--eval.scorer",
            scorer,
            f"a run scores its answers by a rule, one of {', '.join(ANSWER_RULES)}; for anything else give checkpoints "
            "to openrlhf-ext eval",
        )
    if (needed := _without_a_prompt(config)) is not None:
        yield Violation("--eval.scorer", scorer, needed)
    if ds.zero_stage == 3 or (ds.param_dtype == "bf16" and ds.grad_accum_dtype == "fp32"):
        yield Violation(
            "--eval.scorer",
            scorer,
            "a model whose parameters are sharded (stage 3) would gather them for every token; give --ds.zero_stage 2 "
            "without --ds.grad_accum_dtype, or checkpoints to openrlhf-ext eval",
        )
    if ds.attn_implementation == "torch_varlen":
        yield Violation("--ds.attn_implementation", "torch_varlen", "it cannot sample the answers of --eval.scorer")
    if asked.n_samples_per_prompt > 1 and asked.temperature == 0:
        remedy = "at temperature 0 all of them are alike; set --eval.temperature above 0"
        yield Violation("--eval.n_samples_per_prompt", asked.n_samples_per_prompt, remedy)
    if asked.max_new_tokens >= config.data.max_len:
        remedy = f"--data.max_len {config.data.max_len} is for prompt and answer together; give less"
        yield Violation("--eval.max_new_tokens", asked.max_new_tokens, remedy)


def _without_a_prompt(config: Any) -> str | None:
    """Why a row does not say what to answer."""
    if isinstance(config, DPOConfig):
        return None if config.data.prompt_key is not None else "the prompts need a column; set --data.prompt_key"
    if config.model.pretrain_mode_enable:
        return "plain text has no answers; leave it out with --model.pretrain_mode_enable"
    return None if config.data.output_key is not None else "the answers need a column; set --data.output_key"


ANSWERED: tuple[Rule, ...] = (figures_are_of_answers, held_out_rows_can_be_answered)
