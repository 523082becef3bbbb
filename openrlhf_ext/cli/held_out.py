"""The answers that evaluations of a training run sample: where they are kept, and those of sft and dpo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_ext.cli.specs import OUTPUT_DIR, written_below
from openrlhf_ext.config import DPOConfig, SFTConfig
from openrlhf_ext.config.sections import listed
from openrlhf_ext.data.prompts import LoadedPrompts, PromptSettings, load_prompts
from openrlhf_ext.data.tables import require_columns
from openrlhf_ext.evaluation.asked import AskedRow, Columns, Said, answered, asked_rows
from openrlhf_ext.evaluation.extraction import answer_rule, check_labels
from openrlhf_ext.evaluation.grading import Grader, RuleGrader
from openrlhf_ext.evaluation.record import EvaluationRecord
from openrlhf_ext.evaluation.subjects import load_taxonomy
from openrlhf_ext.ports import SupervisedRole
from openrlhf_ext.track.metrics import run_id
from openrlhf_ext.track.progress import console, waiting
from openrlhf_ext.trainers.answering import TrainedGenerator
from openrlhf_ext.types import Sampling, derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIMIT_S = 5.0
"""Of grading one answer by a rule that has no bound of its own, as --reward.verify_timeout_s is by default."""
EVALUATIONS = "evaluations"
"""The folder of answers in ckpt.output_dir."""


def evaluation_record(
    cfg: Any, asked: Sequence[AskedRow], rule: str, sampling: Sampling, *, resuming: bool, leads: bool = True
) -> EvaluationRecord:
    """Of the run with this config. Raises DataError where groups or subjects of these rows cannot be told."""
    output, evaluation = Path(cfg.ckpt.output_dir), cfg.eval
    record = EvaluationRecord(
        folder=None,
        run=str(output),
        fingerprint="",
        rule=rule,
        settings={"sampling": asdict(sampling)},
        k=(1, evaluation.n_samples_per_prompt),
        groups=listed(evaluation.group_by),
        subject_column=evaluation.subject_column,
        taxonomy=None if evaluation.taxonomy is None else load_taxonomy(evaluation.taxonomy),
    )
    record.check([row.blank for row in asked])
    if not leads:
        return record
    with written_below(OUTPUT_DIR, output):
        output.mkdir(parents=True, exist_ok=True)
        return replace(record, folder=output / EVALUATIONS, fingerprint=run_id(output / "run_id", resuming))


def held_out_rows(cfg: Any, loaded: LoadedPrompts, input_key: str, label_key: str | None) -> list[AskedRow]:
    """The held-out prompts as rows that are asked. Raises DataError for a context that a row lacks."""
    context, evaluation = cfg.eval.context_key, cfg.eval
    if context is not None:
        require_columns(loaded.rows, {context: "--eval.context_key"})
    kept = [*listed(evaluation.group_by), *([evaluation.subject_column] if evaluation.subject_column else [])]
    return asked_rows(loaded.rows, loaded.prompts, Columns(input_key, label_key, context, kept))


@dataclass(frozen=True, slots=True)
class HeldOutAnswers:
    """Of a run of sft or dpo: the rows, and who asks, grades and keeps."""

    asked: Sequence[AskedRow]
    sampling: Sampling
    grader: Grader
    record: EvaluationRecord
    tokenizer: PreTrainedTokenizerBase
    rows_at_a_time: int

    def evaluate(self, model: SupervisedRole, step: int) -> dict[str, float]:
        """Answer, grade and keep; by ranks that evaluate together, all of them."""
        generator = TrainedGenerator(model, self._text, self.tokenizer.eos_token_id, self.rows_at_a_time)
        generator.version = step
        prompts = [row.prompt for row in self.asked]
        with waiting(f"{len(prompts) * self.sampling.n} answers to held-out prompts"):
            rollouts = generator.generate(prompts, self.sampling)
        graded = self.grader.grade(
            [
                (asked, answered(asked.blank, each.sample, Said(each.text, each.response_length, each.finish_reason)))
                for asked, siblings in zip(self.asked, rollouts, strict=True)
                for each in siblings
            ],
            lambda done, of: console.print(f"{done} of {of} answers graded"),
        )
        return self.record.keep(step, graded)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


def held_out_answers(
    cfg: SFTConfig | DPOConfig, tokenizer: PreTrainedTokenizerBase, *, resuming: bool, leads: bool
) -> HeldOutAnswers | None:
    """None where held-out rows are not answered. Raises UserError for rows that cannot be, or a rule that is none."""
    evaluation, data = cfg.eval, cfg.data
    if evaluation.scorer is None:
        return None
    assert evaluation.dataset is not None, "the rules ask for it"
    rule = answer_rule(evaluation.scorer)
    input_key = cfg.data.input_key if isinstance(cfg, SFTConfig) else cfg.data.prompt_key
    label_key = evaluation.label_key or (cfg.data.output_key if isinstance(cfg, SFTConfig) else cfg.data.chosen_key)
    assert input_key is not None and label_key is not None, "the rules ask for them"
    loaded = load_prompts(
        PromptSettings(
            dataset=evaluation.dataset,
            split=evaluation.split,
            input_key=input_key,
            label_key=label_key,
            input_template=data.input_template,
            apply_chat_template=data.apply_chat_template,
            max_samples=evaluation.max_samples,
            max_prompt_tokens=data.max_len - evaluation.max_new_tokens,
            overlong="truncate_left",
            seed=cfg.train.seed,
        ),
        tokenizer,
    )
    asked = held_out_rows(cfg, loaded, input_key, label_key)
    check_labels(rule, [(row.where, row.prompt.label) for row in asked])
    cut = loaded.counts.get("overlong_truncated", 0)
    console.print(
        f"{len(asked)} held-out rows are answered by the model in training itself, {evaluation.answers_at_a_time} at a "
        f"time on each rank{f'; {cut} prompts lose their beginning' if cut else ''}.",
        soft_wrap=True,
    )
    sampling = Sampling(
        n=evaluation.n_samples_per_prompt,
        temperature=evaluation.temperature,
        max_new_tokens=evaluation.max_new_tokens,
        max_total_tokens=data.max_len,
        seed=derive_seed(cfg.train.seed, "evaluation"),
    )
    return HeldOutAnswers(
        asked=asked,
        sampling=sampling,
        grader=RuleGrader(rule, LIMIT_S),
        record=evaluation_record(cfg, asked, rule.spec, sampling, resuming=resuming, leads=leads),
        tokenizer=tokenizer,
        rows_at_a_time=evaluation.answers_at_a_time,
    )
