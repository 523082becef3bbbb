"""What the sides of benchmarks/supervised.py are given: one model, one set of tokenized rows, one set of numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

Task = Literal["sft", "rm", "dpo"]
GSM8K, HH = Path("gsm8k/test.jsonl"), Path("hh-rlhf/harmless-base_part.jsonl")


@dataclass(frozen=True, slots=True)
class SupervisedWorkload:
    """A turn is one epoch: every row once, in optimizer steps of `batch` examples, float32."""

    task: Task
    folder: Path
    threads: int
    examples: int
    batch: int
    micro_batch: int  # examples of one forward and backward pass of TRL
    max_tokens: int  # of one of ours, padding included
    window: int  # steps whose examples ours sorts by length
    lr: float
    beta: float  # of dpo
    seed: int

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def row_file(self) -> Path:
        return self.folder / "rows.jsonl"

    @property
    def steps(self) -> int:
        return self.examples // self.batch

    def rows(self) -> Iterator[dict[str, Any]]:
        """sft: `tokens` and how many of them are `prompt`; else the tokens of `prompt`, `chosen` and `rejected`."""
        for line in self.row_file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def lengths_of(row: dict[str, Any]) -> tuple[int, ...]:
    """Tokens of each sequence of a row."""
    if "tokens" in row:
        return (len(row["tokens"]),)
    return tuple(len(row["prompt"]) + len(row[side]) for side in ("chosen", "rejected"))


def write_workload(workload: SupervisedWorkload, shape: Any, data: Path, max_length: int) -> int:
    """Write the model and a random choice of the data's rows of at most `max_length` tokens; returns the parameters.

    A preference model's folder has a head of one number, so that every side starts from the same.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils.logging import set_verbosity_error

    from openrlhf_ext.models.tiny import build_tiny_model

    workload.folder.mkdir(parents=True, exist_ok=True)
    source = data / (GSM8K if workload.task == "sft" else HH)
    build_tiny_model(workload.model, shape, corpus=_texts(source), seed=workload.seed)
    rows = [row for row in _tokenized(workload, source) if max(lengths_of(row)) <= max_length]
    if len(rows) < workload.examples:
        raise SystemExit(f"{source} has {len(rows)} rows of at most {max_length} tokens: ask for fewer examples.")
    chosen = Random(workload.seed).sample(rows, workload.examples)
    workload.row_file.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    if workload.task != "rm":
        return sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(workload.model).parameters())
    set_verbosity_error()  # a table of the one weight that is new
    torch.manual_seed(workload.seed)
    scored = AutoModelForSequenceClassification.from_pretrained(workload.model, num_labels=1)
    scored.score.weight.data.normal_(std=0.02)
    scored.save_pretrained(workload.model)
    return sum(p.numel() for p in scored.parameters())


def _texts(source: Path) -> list[str]:
    lines = source.read_text(encoding="utf-8").splitlines()
    return [text for line in lines for text in json.loads(line).values()]


def _tokenized(workload: SupervisedWorkload, source: Path) -> list[dict[str, Any]]:
    from openrlhf_ext.data.preferences import PreferenceSettings, load_preferences
    from openrlhf_ext.data.sft import SftSettings, load_sft
    from openrlhf_ext.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(workload.model))
    if workload.task == "sft":
        loaded = load_sft(SftSettings(str(source), input_key="question", output_key="answer"), tokenizer)
        return [{"tokens": row.token_ids, "prompt": row.action_mask.index(True)} for row in loaded.examples]
    pairs = load_preferences(PreferenceSettings(str(source)), tokenizer).pairs
    return [{"prompt": pair.prompt_ids, "chosen": pair.chosen_ids, "rejected": pair.rejected_ids} for pair in pairs]


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of a side's process: when its libraries were loaded and no model, and at the most in a turn."""

    libraries: int
    peak: int


class MemoryClock:
    """Make one before the model is loaded; `start` begins a turn."""

    def __init__(self) -> None:
        from openrlhf_ext.device.host_memory import reset_resident_peak, resident_bytes

        self._reset, self._resident = reset_resident_peak, resident_bytes
        self._libraries = resident_bytes("VmRSS") or 0

    def start(self) -> None:
        assert self._reset(), "this kernel resets no peaks, so none can be measured"

    def read(self) -> Memory:
        return Memory(self._libraries, self._resident("VmHWM") or 0)


def parts(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
