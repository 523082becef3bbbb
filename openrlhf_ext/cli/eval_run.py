"""One evaluation: check everything that needs no model, ask, grade, compare, write, show."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openrlhf_ext.cli.eval_folder import EvaluationFolder
from openrlhf_ext.cli.eval_model import (
    EndpointModel,
    EngineModel,
    Weights,
    evaluated_endpoint,
    find_weights,
    merged,
    open_engine,
    sampling_of,
)
from openrlhf_ext.cli.eval_report import show
from openrlhf_ext.cli.eval_rows import Asked, rows_for_endpoint, rows_for_engine
from openrlhf_ext.cli.eval_scoring import Scoring, judge_rule, late_roles, open_scoring, pair_judge
from openrlhf_ext.config import Parsed
from openrlhf_ext.config.evaluation import EvalConfig
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.device import Device, choose_device
from openrlhf_ext.evaluation.answers import Answerer, AnswerKey, AnswerRow, read_answers
from openrlhf_ext.evaluation.asked import AskedRow, answered
from openrlhf_ext.evaluation.figures import summarise
from openrlhf_ext.evaluation.likelihood import likelihood
from openrlhf_ext.evaluation.plots import write_plots
from openrlhf_ext.evaluation.preference import Pairing, paired, prefer, preference_figures, with_preferences
from openrlhf_ext.evaluation.subjects import Taxonomy, load_taxonomy
from openrlhf_ext.rewards.judge.judge import Judge
from openrlhf_ext.track.progress import console

ASKED_AT_ONCE = 4096
"""Answers between two writings of those that are there."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that is known before a model is loaded."""

    cfg: EvalConfig
    device: Device
    answerer: Answerer
    weights: Weights | None
    endpoint: Any
    asked: Asked
    scoring: Scoring
    against: tuple[Answerer, list[AnswerRow]] | None
    judge: Judge | None  # of pairs
    taxonomy: Taxonomy | None
    folder: EvaluationFolder
    engine: EngineModel | None = None  # one that is up already

    def figures(self, rows: Sequence[AnswerRow]) -> dict[str, Any]:
        asked = self.cfg.eval
        return summarise(
            rows,
            k=asked.k or sorted({1, asked.n_samples_per_prompt}),
            groups=self.cfg.groups,
            subject_column=asked.subject_column,
            taxonomy=self.taxonomy,
        )


def run(parsed: Parsed, engine: EngineModel | None = None) -> int:
    """0, however good the model is. Raises UserError before a model is loaded where the input cannot be used.

    `engine`: one with the model of the flags that is up already, and stays so.
    """
    with _prepared(parsed) as evaluation:
        evaluation = replace(evaluation, engine=engine)
        rows, graded = evaluation.folder.open(resume=parsed.config.eval.resume)
        if not graded:
            rows = _grade(evaluation, _ask(evaluation, rows))
            evaluation.folder.keep(rows)
        result = _result(evaluation, rows)
        evaluation.folder.finish(result)
        write_plots(evaluation.folder.path, result["figures"], result["rate"])
    if parsed.config.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        show(result, evaluation.folder.path)
    return 0


@contextmanager
def _prepared(parsed: Parsed) -> Iterator[Evaluation]:
    cfg: EvalConfig = parsed.config
    assert cfg.eval.output is not None
    device = choose_device(cfg.device.type)
    taxonomy = None if cfg.eval.taxonomy is None else load_taxonomy(cfg.eval.taxonomy)
    against = None if cfg.eval.against is None else read_answers(Path(cfg.eval.against))
    weights = endpoint = tokenizer = None
    with ExitStack() as stack:
        if cfg.model.url is not None:
            asked = rows_for_endpoint(cfg)
            answerer, endpoint = evaluated_endpoint(cfg.model)
            stack.callback(endpoint.close)
        else:
            weights = find_weights(cfg.model)
            answerer = weights.answerer
            tokenizer = load_tokenizer(weights.path, chat_template=cfg.data.tokenizer_chat_template)
            asked = rows_for_engine(parsed, weights, tokenizer)
        if against is not None:
            paired(_blanks(cfg, asked), against[1])
        scoring = stack.enter_context(open_scoring(parsed, asked.rows, tokenizer, device))
        judge = pair_judge(cfg, asked.rows)
        folder = EvaluationFolder(Path(cfg.eval.output), answerer, _settings(cfg, asked, scoring, against))
        evaluation = Evaluation(
            cfg, device, answerer, weights, endpoint, asked, scoring, against, judge, taxonomy, folder
        )
        evaluation.figures(_blanks(cfg, asked))  # groups and subjects can be told
        yield evaluation


def _blanks(cfg: EvalConfig, asked: Asked) -> list[AnswerRow]:
    samples = range(cfg.eval.n_samples_per_prompt)
    return [replace(row.blank, sample=sample) for row in asked.rows for sample in samples]


def _settings(
    cfg: EvalConfig, asked: Asked, scoring: Scoring, against: tuple[Answerer, list[AnswerRow]] | None
) -> dict[str, Any]:
    """What makes it another evaluation. Groups and subjects do not: they are figures of the same answers."""
    settings: dict[str, Any] = {
        "the rows": _fingerprint(asked),
        "prompt": [cfg.data.input_template, cfg.data.apply_chat_template, cfg.data.tokenizer_chat_template],
        "overlong prompts": [cfg.data.max_len, cfg.data.overlong_prompt],
        "scorer": scoring.rule,
        "hallucination": cfg.eval.hallucination,
        "perplexity": cfg.eval.perplexity,
        "against": None if against is None else [against[0].fingerprint, judge_rule(cfg)],
    }
    if cfg.generates:
        sampling = sampling_of(cfg)
        settings["sampling"] = {name: getattr(sampling, name) for name in sampling.__slots__}
    return settings


def _fingerprint(asked: Asked) -> str:
    """Of the rows in any order; a key is a row's content."""
    keys = sorted(row.blank.key for row in asked.rows)
    return hashlib.blake2b(json.dumps(keys).encode(), digest_size=8).hexdigest()


# --- asking ------------------------------------------------------------------------------


def _ask(evaluation: Evaluation, known: Sequence[AnswerRow]) -> list[AnswerRow]:
    """A row for every answer, in the order of the rows: those that are known, and what the model says now."""
    cfg, asked = evaluation.cfg, evaluation.asked
    rows = {row.pair: row for row in known if row.outcome != "failed"}
    samples = range(cfg.eval.n_samples_per_prompt)
    missing = [(row, sample) for row in asked.rows for sample in samples if (row.blank.key, sample) not in rows]
    if not cfg.generates:
        rows |= {AnswerKey(row.blank.key, sample): replace(row.blank, sample=sample) for row, sample in missing}
        missing = []
    unmeasured = cfg.eval.perplexity and any(row.reference_logprob is None for row in rows.values())
    if missing or unmeasured or (cfg.eval.perplexity and not rows):
        with _opened(evaluation) as model:
            _generate(evaluation, model, missing, rows)
            if cfg.eval.perplexity:
                assert isinstance(model, EngineModel)
                _measure(evaluation, model, rows)
    return _ordered(evaluation, rows)


@contextmanager
def _opened(evaluation: Evaluation) -> Iterator[EngineModel | EndpointModel]:
    cfg = evaluation.cfg
    if evaluation.engine is not None:
        yield evaluation.engine
        return
    if evaluation.weights is None:
        yield EndpointModel(evaluation.endpoint, sampling_of(cfg))
        return
    with ExitStack() as stack:
        weights = evaluation.weights
        if cfg.eval.perplexity:
            weights = stack.enter_context(merged(weights))
        longest = evaluation.asked.longest
        yield stack.enter_context(open_engine(weights, cfg.vllm, sampling_of(cfg), longest, evaluation.device))


def _generate(
    evaluation: Evaluation,
    model: EngineModel | EndpointModel,
    missing: Sequence[tuple[AskedRow, int]],
    rows: dict[AnswerKey, AnswerRow],
) -> None:
    at_once = ASKED_AT_ONCE if isinstance(model, EngineModel) else 16 * evaluation.cfg.model.concurrency
    for start in range(0, len(missing), at_once):
        part = missing[start : start + at_once]
        said = model.say(part, lambda done, _, start=start: _say(start + done, len(missing), "answers"))  # type: ignore[misc]
        for (row, sample), answer in zip(part, said, strict=True):
            rows[AnswerKey(row.blank.key, sample)] = answered(row.blank, sample, answer)
        evaluation.folder.keep(_ordered(evaluation, rows))


def _measure(evaluation: Evaluation, model: EngineModel, rows: dict[AnswerKey, AnswerRow]) -> None:
    references = evaluation.asked.references
    sums = model.reference_logprobs(references, lambda done, of: _say(done, of, "references"))
    for asked, total, (_, tokens) in zip(evaluation.asked.rows, sums, references, strict=True):
        for sample in range(evaluation.cfg.eval.n_samples_per_prompt):
            pair = AnswerKey(asked.blank.key, sample)
            if pair in rows:
                rows[pair] = replace(rows[pair], reference_logprob=total, reference_tokens=len(tokens))
    evaluation.folder.keep(_ordered(evaluation, rows))


def _ordered(evaluation: Evaluation, rows: dict[AnswerKey, AnswerRow]) -> list[AnswerRow]:
    pairs = [blank.pair for blank in _blanks(evaluation.cfg, evaluation.asked)]
    return [rows[pair] for pair in pairs if pair in rows]


# --- grading -----------------------------------------------------------------------------


def _grade(evaluation: Evaluation, rows: list[AnswerRow]) -> list[AnswerRow]:
    scoring = evaluation.scoring
    if scoring.grader is None and evaluation.against is None:
        return rows
    by_key = {row.blank.key: row for row in evaluation.asked.rows}
    asked = [by_key[row.key] for row in rows]
    with late_roles(evaluation.cfg, scoring, evaluation.device) as late:
        if scoring.grader is not None:
            scoring.meet(late)
            rows = scoring.grader.grade(
                list(zip(asked, rows, strict=True)), lambda done, of: _say(done, of, "answers graded")
            )
        if evaluation.against is not None and evaluation.judge is not None:
            assert late.judge is not None
            evaluation.judge.connect(late.judge)
            pairs = paired(rows, evaluation.against[1])
            ours = [rows[place] for place in pairs.places]
            said = prefer(evaluation.judge, [asked[place] for place in pairs.places], ours, pairs.others)
            rows = with_preferences(rows, pairs.places, said)
    return rows


def _say(done: int, of: int, what: str) -> None:
    console.print(f"{done} of {of} {what}", markup=False)


# --- results -----------------------------------------------------------------------------


def _result(evaluation: Evaluation, rows: Sequence[AnswerRow]) -> dict[str, Any]:
    cfg, asked = evaluation.cfg, evaluation.asked
    hallucination = cfg.eval.hallucination
    cut = sum(row.finish == "length" for row in rows)
    result: dict[str, Any] = {
        "answerer": {"name": evaluation.answerer.name, "fingerprint": evaluation.answerer.fingerprint},
        "data": {
            "dataset": cfg.data.dataset,
            "split": cfg.data.split,
            "rows": len(asked.rows),
            "fingerprint": _fingerprint(asked),
            **asked.counts,
        },
        "scorer": cfg.eval.scorer,
        "rule": evaluation.scoring.rule,
        "rate": {
            "name": "hallucination rate" if hallucination else "accuracy",
            "outcome": "wrong" if hallucination else "right",
            "better": "low" if hallucination else "high",
        },
        "settings": dict(evaluation.folder.settings),
        "ended_at_limit": cut,
        "figures": evaluation.figures(rows),
        "perplexity": likelihood(rows),
        "against": None,
    }
    if evaluation.against is not None:
        pairs: Pairing = paired(rows, evaluation.against[1])
        result["against"] = {
            "name": evaluation.against[0].name,
            "fingerprint": evaluation.against[0].fingerprint,
            "judge": judge_rule(cfg),
            "no_verdict": len(pairs.places) - sum("against" in row.notes for row in rows),
            "ours_alone": pairs.ours_alone,
            "theirs_alone": pairs.theirs_alone,
            "figures": preference_figures(rows),
        }
    return result
