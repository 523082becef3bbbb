"""The flags of `openrlhf-ext eval`: the words are those of `rl`, `serve-rm` and `judge` where they mean the same."""

# ruff: noqa: RUF009 (`flag` and `section` are dataclasses.field with a help text)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openrlhf_ext.config.fields import flag, section
from openrlhf_ext.config.judge_command import CommandJudgeFields
from openrlhf_ext.config.sections import DeviceSection, RewardSourceFields, listed
from openrlhf_ext.config.serve_rm import ServedDsSection

ANSWER_RULES = ("exact", "first_letter", "number_after:MARK", "last_number", "tag:NAME", "pattern:REGEX", "math")
"""Scorers that find the answer in a text and compare it with the reference."""

UNGRADED, REWARD_MODEL, JUDGE = "none", "reward_model", "judge"
"""The scorer that leaves answers to people, and those that are models."""


def is_answer_rule(scorer: str) -> bool:
    """Whether it is of the form of one of the rules; it may still be wrong."""
    return scorer.partition(":")[0] in {name.partition(":")[0] for name in ANSWER_RULES}


@dataclass(frozen=True, slots=True)
class EvaluatedModelSection:
    model_name_or_path: str | None = flag(
        None,
        "what is evaluated: a Hugging Face folder or hub name, a folder of adapters, or what a training of ours left "
        "(ckpt.output_dir, or ckpt.path with --ckpt.save_hf)",
        common=True,
    )
    name: str | None = flag(None, "what results call it (not set: the path as it is given)")
    url: str | None = flag(
        None, "an OpenAI-compatible endpoint in its place, the address before /chat/completions", common=True
    )
    served_model_name: str | None = flag(None, "the endpoint's name of the model")
    api_key: str | None = flag(None, "the endpoint's key (not set: OPENAI_API_KEY of the environment)", secret=True)
    concurrency: int = flag(16, "requests to the endpoint at a time")
    timeout_s: float = flag(300.0, "seconds one request to the endpoint may take")
    max_retries: int = flag(5, "requests after the first that failed")


@dataclass(frozen=True, slots=True)
class EvaluatedDataSection:
    dataset: str | None = flag(None, "rows: files, folders or hub names; several with commas", common=True)
    split: str = flag("train", "their split")
    input_key: str = flag("input", "column of the prompt: a text, or messages", common=True)
    label_key: str | None = flag(None, "column of the reference answer (a list: any one of them)", common=True)
    context_key: str | None = flag(None, "column of the source that answers are to be held against, kept for people")
    input_template: str | None = flag(None, "text around the prompt, with {} where it goes")
    apply_chat_template: bool = flag(
        False, "format with the tokenizer's chat template (an endpoint has its own)", common=True
    )
    tokenizer_chat_template: str | None = flag(None, "chat template in place of the tokenizer's own")
    max_samples: int = flag(int(1e8), "at most this many rows")
    max_len: int | None = flag(
        None, "tokens of the longest prompt and answer together (not set: what the rows need, within the positions)"
    )
    overlong_prompt: Literal["refuse", "drop", "truncate_left"] = flag(
        "refuse", "a prompt that leaves no room for an answer: error, left out, or cut at the left (counted)"
    )


@dataclass(frozen=True, slots=True)
class EvalCommandSection:
    scorer: str | None = flag(
        None,
        "what says whether an answer is right: exact, first_letter, number_after:MARK, last_number, tag:NAME, "
        "pattern:REGEX, math; a Python file, URL or rule as of reward.remote_url; reward_model; judge; or none",
        common=True,
    )
    threshold: float | None = flag(
        None,
        "score from which an answer is right (not set: 0.5, of the judge 0.5 of its rubric's range; none of a "
        "reward model)",
    )
    hallucination: bool = flag(False, "a wrong answer is a hallucinated one: the figure is the rate of those")
    perplexity: bool = flag(
        False, "measure the log-likelihood of the reference answers too (without a scorer: nothing else)", common=True
    )
    against: str | None = flag(
        None, "results of another model on the same rows: the judge says in pairs which answer is better"
    )
    n_samples_per_prompt: int = flag(1, "answers for each prompt", common=True)
    k: tuple[int, ...] = flag((), "the k of pass@k (not set: 1 and the answers for each prompt)")
    temperature: float = flag(0.0, "sampling temperature (0: the likeliest token)", common=True)
    top_p: float = flag(1.0, "nucleus sampling")
    top_k: int = flag(-1, "sample from the k likeliest tokens (-1: all)")
    min_p: float = flag(0.0, "least probability, as a part of the likeliest token's")
    max_new_tokens: int = flag(512, "tokens of the longest answer", common=True)
    stop: tuple[str, ...] = flag((), "strings that end an answer")
    seed: int = flag(42, "of every draw")
    group_by: str | None = flag(None, "columns whose values have figures of their own, with commas", common=True)
    subject_column: str | None = flag(None, "column of ids such as 1.4.2, which roll up to 1.4 and 1", common=True)
    taxonomy: str | None = flag(None, "names of those ids: YAML, JSON, CSV or JSONL (not set: ids alone)")
    output: str | None = flag(None, "folder of the results", common=True)
    resume: bool = flag(False, "go on in a folder that holds a part, or all, of this very evaluation")
    lm_eval: str | None = flag(
        None, "tasks of lm-eval-harness in place of data and scorer, with commas (pip install openrlhf-ext[lm-eval])"
    )


@dataclass(frozen=True, slots=True)
class ScoringModelSection(RewardSourceFields):
    model_name_or_path: str | None = flag(None, "the reward model of --eval.scorer reward_model")
    normalize_enable: bool = flag(False, "normalise its scores by the mean and deviation that it knows")


@dataclass(frozen=True, slots=True)
class EvalVllmSection:
    tensor_parallel_size: int = flag(1, "GPUs of the engine")
    gpu_memory_utilization: float = flag(0.9, "part of a GPU's memory it may take", common=True)
    enforce_eager: bool = flag(False, "no compiled graphs")
    kv_cache_gb: float = flag(0.25, "GB of its cache on a CPU")
    threads: int | None = flag(None, "threads on a CPU (not set: one for each core that it may use)")


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """`openrlhf-ext eval`: answers of a model to rows, and how good they are."""

    model: EvaluatedModelSection = section(EvaluatedModelSection, "what is evaluated")
    data: EvaluatedDataSection = section(EvaluatedDataSection, "the rows")
    eval: EvalCommandSection = section(EvalCommandSection, "what is measured, sampling, results")
    reward: ScoringModelSection = section(ScoringModelSection, "scorers other than rules and judge")
    judge: CommandJudgeFields = section(CommandJudgeFields, "the judge (--eval.scorer judge, --eval.against)")
    vllm: EvalVllmSection = section(EvalVllmSection, "the inference engine")
    ds: ServedDsSection = section(ServedDsSection, "number formats, kernels of the reward model")
    device: DeviceSection = section(DeviceSection, "CPU or GPU")
    compare: tuple[str, str] | None = flag(
        None, "two folders of results, A and B, to be held against each other: no model is asked", common=True
    )
    json: bool = flag(False, "print one JSON object instead of tables", common=True)

    @property
    def groups(self) -> tuple[str, ...]:
        return listed(self.eval.group_by)

    @property
    def generates(self) -> bool:
        """Log-likelihoods alone need no answers."""
        return self.eval.scorer is not None or self.eval.against is not None

    @property
    def has_judge(self) -> bool:
        return self.judge.model_name_or_path is not None or self.judge.url is not None
