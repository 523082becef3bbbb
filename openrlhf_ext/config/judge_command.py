"""The flags of `openrlhf-ext judge calibrate` and `openrlhf-ext judge serve`."""

# ruff: noqa: RUF009 (`flag` and `section` are dataclasses.field with a help text)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openrlhf_ext.config.fields import flag, section
from openrlhf_ext.config.sections import DeviceSection
from openrlhf_ext.config.serve_rm import LimitsSection


@dataclass(frozen=True, slots=True)
class JudgeModelFields:
    """Who answers: as in `rl`, but for what belongs to a cluster."""

    model_name_or_path: str | None = flag(None, "the judge: a Hugging Face folder or hub name", common=True)
    url: str | None = flag(
        None, "an OpenAI-compatible endpoint in its place, the address before /chat/completions", common=True
    )
    served_model_name: str | None = flag(None, "the endpoint's name of the model")
    api_key: str | None = flag(None, "the endpoint's key (not set: OPENAI_API_KEY of the environment)", secret=True)
    temperature: float = flag(0.0, "sampling temperature of its answers")
    max_new_tokens: int = flag(256, "tokens of its longest answer")
    max_len: int = flag(4096, "tokens of its longest question and answer (at most: the model's positions)")
    cache: str | None = flag(None, "folder in which its answers are kept (not set: none)")
    tensor_parallel_size: int = flag(1, "GPUs of its engine")
    gpu_memory_utilization: float = flag(0.9, "part of a GPU's memory the engine may take")
    enforce_eager: bool = flag(False, "no compiled graphs")
    kv_cache_gb: float = flag(0.25, "GB of the engine's cache on a CPU")
    threads: int | None = flag(None, "threads of the engine on a CPU (not set: one for each core that it may use)")
    concurrency: int = flag(16, "requests to the endpoint at a time")
    timeout_s: float = flag(60.0, "seconds one request to the endpoint may take")
    max_retries: int = flag(5, "requests after the first that failed")


@dataclass(frozen=True, slots=True)
class CommandJudgeFields(JudgeModelFields):
    prompt: str | None = flag(None, "rubric file (YAML) by which it judges", common=True)
    n_samples: int = flag(1, "verdicts asked for at a time, which vote")


@dataclass(frozen=True, slots=True)
class CommandJudgeSection(CommandJudgeFields):
    mode: Literal["pointwise", "pairwise"] = flag(
        "pointwise", "it sees one answer at a time, or two of one prompt in both orders"
    )


@dataclass(frozen=True, slots=True)
class LabelledDataSection:
    """Responses with a label each (`response_key`, `label_key`), or a right and a wrong one in each row."""

    dataset: str | None = flag(None, "labelled rows: files, folders or hub names; several with commas", common=True)
    split: str = flag("train", "their split")
    prompt_key: str | None = flag(None, "column of the prompt (not set: the rubric has what it needs)", common=True)
    response_key: str | None = flag(None, "column of the response", common=True)
    label_key: str | None = flag(None, "column that says whether it is right", common=True)
    right_values: tuple[str, ...] = flag(
        (), "labels that mean right, all others wrong (not set: 1, true, yes, right, correct; and their opposites)"
    )
    right_key: str | None = flag(None, "column of a right response, in place of response_key", common=True)
    wrong_key: str | None = flag(None, "column of a wrong response to the same prompt", common=True)
    reference_key: str | None = flag(None, "column that the rubric's {{ label }} stands for (the reference answer)")
    max_samples: int = flag(int(1e8), "at most this many rows")


@dataclass(frozen=True, slots=True)
class CalibrateSection:
    threshold: float = flag(0.5, "part of the rubric's reward range from which a verdict means right")
    repeats: int = flag(3, "verdicts on each response for consistency (1: it is not measured)")
    repeat_temperature: float = flag(0.7, "sampling temperature of those")
    repeat_rows: int = flag(100, "rows of which it is measured")
    order_rows: int = flag(200, "rows that are judged with the criteria in reversed order (0: none; pointwise)")
    resamples: int = flag(2000, "draws of the bootstrap")
    seed: int = flag(42, "of the draws, and of the rows of both")
    shown: int = flag(10, "disagreements in the table (all are in the file)")
    output: str | None = flag(
        None,
        "folder for calibration.json and disagreements.jsonl (not set: the rubric's name and _calibration, beside it)",
    )


@dataclass(frozen=True, slots=True)
class CalibrateConfig:
    """`openrlhf-ext judge calibrate`: the judge against labelled rows."""

    judge: CommandJudgeSection = section(CommandJudgeSection, "the judge")
    data: LabelledDataSection = section(LabelledDataSection, "the labelled rows")
    calibrate: CalibrateSection = section(CalibrateSection, "what is measured")
    device: DeviceSection = section(DeviceSection, "CPU or GPU")
    json: bool = flag(False, "print one JSON object instead of tables", common=True)


@dataclass(frozen=True, slots=True)
class ServeJudgeConfig:
    """`openrlhf-ext judge serve`: the judge behind HTTP, in the form of serve-rm."""

    judge: CommandJudgeSection = section(CommandJudgeSection, "the judge")
    device: DeviceSection = section(DeviceSection, "CPU or GPU")
    limits: LimitsSection = section(LimitsSection, "what is taken at a time")
    host: str = flag("127.0.0.1", "address to listen on (loopback: this machine only; 0.0.0.0: whoever reaches it)")
    port: int = flag(5000, "port to listen on (0: any free one)")
