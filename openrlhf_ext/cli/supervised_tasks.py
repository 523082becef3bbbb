"""What makes sft, rm and dpo different from each other: rows, the model's kind, the loss, and what is evaluated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.types import OptimizerStep, TokenBatch
from openrlhf_ext.cli.supervised_rows import dpo_settings, rm_settings, sft_settings
from openrlhf_ext.config import DPOConfig, RMConfig, SFTConfig
from openrlhf_ext.data.dropped import DroppedRow
from openrlhf_ext.data.preferences import LoadedPreferences, PreferencePair, load_preferences
from openrlhf_ext.data.sft import SftExample, load_sft
from openrlhf_ext.ops.preference_loss import DpoLossSettings, ScoreLossSettings
from openrlhf_ext.plan.types import DataSize
from openrlhf_ext.ports import Objective, SupervisedRole
from openrlhf_ext.trainers.objectives import SftObjective
from openrlhf_ext.trainers.pairs import dpo_evaluation, margin_column, pair_batch, pair_step, score_evaluation
from openrlhf_ext.trainers.preference import DpoObjective, ScoreObjective
from openrlhf_ext.trainers.reference import Reference
from openrlhf_ext.trainers.supervised import sft_evaluation, sft_step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from openrlhf_ext.cli.held_out import HeldOutAnswers

EVALUATION_ROWS = 64
MakeReference = Callable[[SupervisedRole, Sequence[TokenBatch]], Reference]
"""Makes DPO's reference once the model is there; the batches are all that will be asked about."""


@dataclass(slots=True)
class Task:
    """`lengths` are the tokens of each row of each example; `model` the fields of the ModelSpec that are the task's.

    `prepare(model)` is called once, before training; `evaluate(model, step)` gives held-out figures (None: there are
    none).
    """

    examples: Sequence[Any]
    ids: Sequence[str]
    lengths: Sequence[tuple[int, ...]]
    counts: Mapping[str, int]
    dropped: Sequence[DroppedRow]
    held_out: Sequence[TokenBatch]
    objective: Objective
    shown: Mapping[str, str]
    to_step: Callable[[Sequence[Any], SplitSettings, int], OptimizerStep]
    evaluate: Callable[[SupervisedRole, int], dict[str, float]] | None
    prepare: Callable[[SupervisedRole], None] = lambda model: None
    model: Mapping[str, Any] = field(default_factory=dict)
    unit: int = 1

    @property
    def digest(self) -> str:
        """Of which examples there are, in their order: a resumed run must find the same."""
        return hashlib.blake2b("\n".join(self.ids).encode(), digest_size=8).hexdigest()

    def data_size(self) -> DataSize:
        """For the plan: tokens are those of one sequence, and a pair has two."""
        lengths = [length for rows in self.lengths for length in rows]
        return DataSize(
            rows=len(self.examples),
            mean_tokens=sum(lengths) / len(lengths),
            max_tokens=max([*lengths, *(int(batch.lengths_B.max()) for batch in self.held_out)]),
            eval_rows=sum(batch.rows for batch in self.held_out) // self.unit or None,
            how="counted",
        )

    def announcement(self) -> str:
        """How many examples of how many tokens, and what was left out or cut of them."""
        less = [
            f"{name}: {count}" for name, count in self.counts.items() if name.startswith(("dropped", "trunc", "cut"))
        ]
        notes = f" ({', '.join(less)})" if less else ""
        what = "pairs" if self.unit == 2 else "examples"
        return f"{len(self.examples)} {what}{notes} of {self.counts['tokens']} tokens"


SCORE_FIGURES = {"train/loss": "loss", "train/accuracy": "accuracy", "train/grad_norm": "gradient", "train/lr": "lr"}


def sft_task(cfg: SFTConfig, tokenizer: PreTrainedTokenizerBase, answers: HeldOutAnswers | None) -> Task:
    assert cfg.data.dataset is not None
    loaded = load_sft(sft_settings(cfg, cfg.data.dataset, cfg.data.dataset_split, cfg.data.dataset_probs), tokenizer)
    held_out: list[TokenBatch] = []
    if cfg.eval.dataset is not None:
        rows = load_sft(sft_settings(cfg, cfg.eval.dataset, cfg.eval.split, None), tokenizer).examples
        held_out = [token_batch(part, tokenizer.pad_token_id) for part in _parts(rows, EVALUATION_ROWS)]

    def to_step(examples: Sequence[SftExample], split: SplitSettings, ranks: int) -> OptimizerStep:
        return sft_step(token_batch(examples, tokenizer.pad_token_id), split, ranks)

    return Task(
        examples=loaded.examples,
        ids=[example.id for example in loaded.examples],
        lengths=[(len(example.token_ids),) for example in loaded.examples],
        counts=loaded.counts,
        dropped=loaded.dropped,
        held_out=held_out,
        objective=SftObjective(),
        shown={"train/loss": "loss", "train/grad_norm": "gradient", "train/lr": "lr"},
        to_step=to_step,
        evaluate=_with_answers(lambda model: sft_evaluation(model, held_out), answers) if held_out else None,
    )


def rm_task(cfg: RMConfig, tokenizer: PreTrainedTokenizerBase) -> Task:
    loaded, held_out = _pairs(cfg, tokenizer, rm_settings)
    loss = ScoreLossSettings(cfg.model.loss_type, cfg.model.temperature, cfg.model.centring_coef)
    margins = cfg.model.margin_loss_enable
    batches = [(pair_batch(part, tokenizer.pad_token_id), part) for part in held_out]

    def to_step(pairs: Sequence[PreferencePair], split: SplitSettings, ranks: int) -> OptimizerStep:
        batch = pair_batch(pairs, tokenizer.pad_token_id)
        return pair_step(batch, {"margin": margin_column(pairs, batch)} if margins else {}, split, ranks)

    def evaluate(model: SupervisedRole, step: int) -> dict[str, float]:
        asked = [(batch, margin_column(part, batch) if margins else None) for batch, part in batches]
        return score_evaluation(model, asked, loss)

    return Task(
        **_of_pairs(loaded),
        held_out=[batch for batch, _ in batches],
        objective=ScoreObjective(loss, margin=margins),
        shown=SCORE_FIGURES,
        to_step=to_step,
        evaluate=evaluate if batches else None,
        model={
            "kind": "reward",
            "new_head": True,
            "head_dim": cfg.model.head_dim,
            "value_head": cfg.ds.value_head_prefix,
        },
    )


def dpo_task(
    cfg: DPOConfig, tokenizer: PreTrainedTokenizerBase, make_reference: MakeReference, answers: HeldOutAnswers | None
) -> Task:
    loaded, held_out = _pairs(cfg, tokenizer, dpo_settings)
    loss = DpoLossSettings(
        kind="ipo" if cfg.model.ipo_enable else "hinge" if cfg.model.hinge_enable else "sigmoid",
        beta=cfg.model.beta,
        label_smoothing=cfg.model.label_smoothing,
        nll_coef=cfg.model.nll_loss_coef,
        length_normalised=cfg.model.length_normalize,
    )
    batches = [pair_batch(part, tokenizer.pad_token_id) for part in held_out]
    references: list[Reference] = []

    def prepare(model: SupervisedRole) -> None:
        # Neighbours in length together: a batch is as wide as its longest row.
        longest_first = sorted(loaded.pairs, key=lambda pair: -len(pair.chosen.token_ids))
        asked = [pair_batch(part, tokenizer.pad_token_id) for part in _parts(longest_first, EVALUATION_ROWS // 2)]
        references.append(make_reference(model, [*asked, *batches]))

    def to_step(pairs: Sequence[PreferencePair], split: SplitSettings, ranks: int) -> OptimizerStep:
        batch = pair_batch(pairs, tokenizer.pad_token_id)
        return pair_step(batch, {"ref_logp": references[0].column(batch)}, split, ranks)

    return Task(
        **_of_pairs(loaded),
        held_out=batches,
        objective=DpoObjective(loss),
        shown=SCORE_FIGURES,
        to_step=to_step,
        evaluate=_with_answers(lambda model: dpo_evaluation(model, references[0], batches, loss), answers)
        if batches
        else None,
        prepare=prepare,
    )


def _with_answers(
    losses: Callable[[SupervisedRole], dict[str, float]], answers: HeldOutAnswers | None
) -> Callable[[SupervisedRole, int], dict[str, float]]:
    """Figures of the loss, and of what the model answers where it is asked."""
    return lambda model, step: losses(model) | (answers.evaluate(model, step) if answers is not None else {})


def _pairs(
    cfg: Any, tokenizer: PreTrainedTokenizerBase, settings: Callable[..., Any]
) -> tuple[LoadedPreferences, list[Sequence[PreferencePair]]]:
    """The pairs to train on, and those held out in parts."""
    loaded = load_preferences(
        settings(cfg, cfg.data.dataset, cfg.data.dataset_split, cfg.data.dataset_probs), tokenizer
    )
    if cfg.eval.dataset is None:
        return loaded, []
    held_out = load_preferences(settings(cfg, cfg.eval.dataset, cfg.eval.split, None), tokenizer).pairs
    return loaded, _parts(held_out, EVALUATION_ROWS // 2)


def _of_pairs(loaded: LoadedPreferences) -> dict[str, Any]:
    return {
        "examples": loaded.pairs,
        "ids": [pair.id for pair in loaded.pairs],
        "lengths": [(len(pair.chosen.token_ids), len(pair.rejected.token_ids)) for pair in loaded.pairs],
        "counts": loaded.counts,
        "dropped": loaded.dropped,
        "unit": 2,
    }


def _parts(rows: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def dropped_file(output: Path) -> Path:
    return output / "dropped.jsonl"
