"""The rules of `eval`. What a scorer's own words mean is checked where it is opened."""

from __future__ import annotations

from collections.abc import Iterator

from openrlhf_ext.config.evaluation import ANSWER_RULES, JUDGE, REWARD_MODEL, UNGRADED, EvalConfig, is_answer_rule
from openrlhf_ext.config.rules.common import (
    refused_flags,
    template_has_a_place,
    values_in_range,
    varlen_needs_packing,
)
from openrlhf_ext.config.rules.judge_command import (
    a_rubric_is_named,
    an_answer_fits,
    one_model_is_named,
    votes_differ,
)
from openrlhf_ext.config.rules.rewards import BUILTIN
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation, required

OF_TOKENS = ("data.tokenizer_chat_template", "data.max_len", "data.overlong_prompt", "eval.perplexity", "eval.top_p",
             "eval.top_k", "eval.min_p", "eval.stop", "vllm.tensor_parallel_size", "vllm.gpu_memory_utilization",
             "vllm.enforce_eager", "vllm.kv_cache_gb", "vllm.threads")  # fmt: skip
"""Of a model whose tokens are here; an endpoint is sent messages."""

OF_GENERATION = (
    "n_samples_per_prompt",
    "k",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_new_tokens",
    "stop",
    "seed",
)
OF_HARNESS = ("data.max_samples", "data.max_len", "data.apply_chat_template")
OF_SOURCES = ("timeout_s", "max_retries", "http_batch_size", "http_concurrency", "http_failures", "http_cooldown_s",
              "format_pattern", "format_tags", "length_range", "answer_pattern")  # fmt: skip


def one_model_is_evaluated(config: EvalConfig, explicit: Explicit) -> Iterator[Violation]:
    yield from one_model_is_named(config, explicit, "model", "what is evaluated", OF_TOKENS)


def something_is_measured(config: EvalConfig, explicit: Explicit) -> Iterator[Violation]:
    asked = config.eval
    yield from required(config, {"eval.output": "the folder of the results"})
    if asked.lm_eval is not None:
        for path in sorted(explicit):
            of_rows = path.startswith(("data.", "reward.", "judge.")) and path not in OF_HARNESS
            if of_rows or path in ("eval.scorer", "eval.perplexity", "eval.against"):
                yield Violation(f"--{path}", None, "--eval.lm_eval's tasks bring their own; leave it out")
        return
    yield from required(config, {"data.dataset": "the rows"})
    if asked.scorer is None and not asked.perplexity and asked.against is None:
        yield Violation(
            "--eval.scorer",
            None,
            f"it is required: one of {', '.join(ANSWER_RULES)}, a Python file, a URL, {', '.join(BUILTIN)}, "
            f"{REWARD_MODEL}, {JUDGE}, or {UNGRADED} (or give --eval.perplexity or --eval.against)",
        )
    if not config.generates:
        for name in OF_GENERATION:
            if f"eval.{name}" in explicit:
                yield Violation(f"--eval.{name}", None, "nothing is generated without --eval.scorer; leave it out")


def the_scorer_is_known(config: EvalConfig, explicit: Explicit) -> Iterator[Violation]:
    scorer, reward = config.eval.scorer, config.reward
    is_rule = scorer is not None and is_answer_rule(scorer)
    is_source = scorer is not None and not is_rule and scorer not in (UNGRADED, REWARD_MODEL, JUDGE)
    if is_source and not _names_source(scorer or ""):
        yield Violation(
            "--eval.scorer",
            scorer,
            f"there is no such rule; choose from {', '.join((*ANSWER_RULES, *BUILTIN, REWARD_MODEL, JUDGE))} and "
            f"{UNGRADED}, or give a Python file (.py) or a URL",
        )
    if scorer == REWARD_MODEL:
        yield from required(config, {"reward.model_name_or_path": "the reward model, a folder or hub name"})
    else:
        for name in ("model_name_or_path", "normalize_enable"):
            if f"reward.{name}" in explicit:
                yield Violation(f"--reward.{name}", None, f"it has no effect without --eval.scorer {REWARD_MODEL}")
    if not is_source:
        for name in OF_SOURCES:
            if f"reward.{name}" in explicit:
                words = "it is of a file, URL or rule as --eval.scorer; leave it out"
                yield Violation(f"--reward.{name}", None, words)
    if config.data.label_key is None and (is_rule or (scorer or "").startswith("verify:") or config.eval.perplexity):
        what = scorer if is_rule or not config.eval.perplexity else "--eval.perplexity"
        yield Violation("--data.label_key", None, f"{what} needs reference answers; name their column")
    if scorer == "rule:format" and (reward.format_pattern is None) == (not reward.format_tags):
        yield Violation("--eval.scorer", scorer, "give either --reward.format_pattern or --reward.format_tags")
    if scorer == "rule:length" and reward.length_range is None:
        yield Violation("--eval.scorer", scorer, "give --reward.length_range LOW HIGH, in tokens")


def _names_source(scorer: str) -> bool:
    return scorer in BUILTIN or scorer.endswith(".py") or scorer.startswith(("http://", "https://"))


def the_judge_has_work(config: EvalConfig, explicit: Explicit) -> Iterator[Violation]:
    scorer = config.eval.scorer or ""
    wanted = "--eval.scorer judge" if scorer == JUDGE else "--eval.against" if config.eval.against else None
    if wanted is not None:
        yield from one_model_is_named(config, explicit, "judge", f"the judge of {wanted}", ())
        yield from a_rubric_is_named(config, explicit)
    elif not (scorer.endswith(".py") and config.has_judge):
        for path in sorted(path for path in explicit if path.startswith("judge.")):
            yield Violation(
                f"--{path}", None, "nobody asks the judge; give --eval.scorer judge, --eval.against or a Python file"
            )


def rates_can_be_told(config: EvalConfig, explicit: Explicit) -> Iterator[Violation]:
    asked = config.eval
    graded = asked.scorer not in (None, UNGRADED) and (asked.scorer != REWARD_MODEL or asked.threshold is not None)
    if asked.threshold is not None and (asked.scorer in (None, UNGRADED) or is_answer_rule(asked.scorer)):
        yield Violation("--eval.threshold", asked.threshold, "an answer rule says right or wrong; leave it out")
    if asked.hallucination and not graded:
        remedy = "nothing says which answers are wrong; give a scorer that does, a reward model with --eval.threshold"
        yield Violation("--eval.hallucination", None, remedy)
    if asked.n_samples_per_prompt > 1 and asked.temperature == 0:
        yield Violation(
            "--eval.n_samples_per_prompt",
            asked.n_samples_per_prompt,
            "at temperature 0 all of them are alike; set --eval.temperature above 0",
        )
    if asked.k and max(asked.k) > asked.n_samples_per_prompt:
        yield Violation(
            "--eval.k", asked.k, f"of {asked.n_samples_per_prompt} answers; raise --eval.n_samples_per_prompt"
        )
    if asked.taxonomy is not None and asked.subject_column is None:
        yield Violation("--eval.taxonomy", asked.taxonomy, "it names subjects; give --eval.subject_column too")


def an_evaluated_answer_fits(config: EvalConfig, explicit: Explicit) -> Iterator[Violation]:
    longest, answer = config.data.max_len, config.eval.max_new_tokens
    if longest is not None and longest <= answer and config.generates:
        yield Violation(
            "--data.max_len",
            longest,
            f"it is for prompt and answer together; raise it above --eval.max_new_tokens {answer}",
        )


WITH_COMPARE = ("compare", "json", "eval.output", "eval.group_by", "eval.subject_column", "eval.taxonomy", "eval.seed")


def results_are_compared(config: EvalConfig, explicit: Explicit) -> Iterator[Violation]:
    for path in sorted(explicit - set(WITH_COMPARE)):
        yield Violation(f"--{path}", None, "it has no effect with --compare; leave it out")


EVAL_RULES: tuple[Rule, ...] = (
    refused_flags,
    values_in_range,
    template_has_a_place,
    varlen_needs_packing,
    one_model_is_evaluated,
    something_is_measured,
    the_scorer_is_known,
    the_judge_has_work,
    rates_can_be_told,
    an_evaluated_answer_fits,
    votes_differ,
    an_answer_fits,
)
COMPARE_RULES: tuple[Rule, ...] = (refused_flags, values_in_range, results_are_compared)
