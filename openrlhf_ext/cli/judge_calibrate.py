"""`judge calibrate`: what the judge says of labelled responses, and how far that can be trusted."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from openrlhf_ext.cli.judge_calibration import FILE, fingerprint, folder_of, name_of
from openrlhf_ext.cli.judge_model import OpenJudge, open_judge, settings_of
from openrlhf_ext.cli.judge_report import show
from openrlhf_ext.cli.judge_rows import LabelledCase, labelled_cases
from openrlhf_ext.config import Parsed
from openrlhf_ext.config.judge_command import CalibrateConfig
from openrlhf_ext.device import choose_device
from openrlhf_ext.errors import DataError, ResourceError
from openrlhf_ext.evaluation.agreement import agreement, as_json, consistency, order_bias, pair_order_bias, wilson
from openrlhf_ext.rewards.judge.asking import NoVerdict
from openrlhf_ext.rewards.judge.judge import Verdict
from openrlhf_ext.rewards.judge.pairs import PairVerdict
from openrlhf_ext.rewards.judge.rubric import A, B, Rubric
from openrlhf_ext.rewards.judge.rubric_file import load_rubric

DISAGREEMENTS = "disagreements.jsonl"


def run(parsed: Parsed) -> int:
    """0, whatever the judge is worth. Raises UserError before a model is loaded where the input cannot be used."""
    cfg: CalibrateConfig = parsed.config
    assert cfg.judge.prompt is not None
    rubric = load_rubric(cfg.judge.prompt)
    cases = labelled_cases(cfg.data, rubric, cfg.judge.mode)
    device = choose_device(cfg.device.type)
    folder = _folder(cfg)
    with open_judge(cfg.judge, device) as opened:
        measure = _pairwise if cfg.judge.mode == "pairwise" else _pointwise
        found = measure(cfg, opened, rubric, cases)
        mark = fingerprint(cfg.judge, rubric, cfg.judge.mode)
    result = {
        "judge": name_of(cfg.judge),
        "rubric": rubric.origin,
        "mode": cfg.judge.mode,
        "responses": len(cases),
        **found.figures,
        "fingerprint": mark,
    }
    _write(folder, result, found.disagreements)
    if cfg.json:
        print(json.dumps(result))
    else:
        show(result, found.disagreements[: cfg.calibrate.shown], folder)
    return 0


@dataclass(frozen=True, slots=True)
class _Found:
    figures: Mapping[str, Any]
    disagreements: Sequence[Mapping[str, Any]] = field(default_factory=list)


def _pointwise(cfg: CalibrateConfig, opened: OpenJudge, rubric: Rubric, cases: Sequence[LabelledCase]) -> _Found:
    judge = opened.judge(rubric, settings_of(cfg.judge))
    verdicts = judge.judge([item.case for item in cases])
    means_right = _reader(rubric, cfg.calibrate.threshold)
    told = [(item, v) for item, v in zip(cases, verdicts, strict=True) if isinstance(v, Verdict)]
    _require_some(told, verdicts)
    whole = agreement(
        [item.right for item, _ in told],
        [means_right(verdict) for _, verdict in told],
        rewards=[verdict.reward for _, verdict in told],
        clusters=[item.row for item, _ in told],
        resamples=cfg.calibrate.resamples,
        seed=cfg.calibrate.seed,
    )
    figures = {
        "no_verdict": _lost(verdicts),
        "agreement": as_json(whole),
        "no_better_than_chance": whole.no_better_than_chance,
        "one_kind_of_label": whole.one_kind_of_label,
        "order": _order(cfg, opened, rubric, told, means_right),
        "consistency": _consistency(cfg, opened, rubric, cases, means_right),
        "costs": {name: metric.value for name, metric in judge.take_report().items()},
    }
    return _Found(figures, [_row(i, v) for i, v in told if means_right(v) != i.right])


def _pairwise(cfg: CalibrateConfig, opened: OpenJudge, rubric: Rubric, cases: Sequence[LabelledCase]) -> _Found:
    """The right response is the first of each pair. A verdict of one order is one; ties are counted apart."""
    judge = opened.judge(rubric, settings_of(cfg.judge))
    pairs = [(right.case, wrong.case) for right, wrong in zip(cases[::2], cases[1::2], strict=True)]
    verdicts = judge.compare_pairs(pairs)
    told = [(i, v) for i, v in enumerate(verdicts) if isinstance(v, PairVerdict)]
    _require_some(told, verdicts)
    straight = [rubric.winner(v.straight) for _, v in told]
    turned = [rubric.winner(v.turned) for _, v in told]
    # (pair, whether the first shown is right, whether it won), where there is a winner
    votes = [(i, True, won) for (i, _), won in zip(told, straight, strict=True) if won is not None]
    votes += [(i, False, not won) for (i, _), won in zip(told, turned, strict=True) if won is not None]
    whole = agreement(
        [right for _, right, _ in votes],
        [won for _, _, won in votes],
        clusters=[i for i, _, _ in votes],
        resamples=cfg.calibrate.resamples,
        seed=cfg.calibrate.seed,
    )
    both = [rubric.winner(v.winners) for _, v in told]
    figures = {
        "no_verdict": _lost(verdicts),
        "agreement": as_json(whole),
        "no_better_than_chance": whole.no_better_than_chance or not votes,
        "one_kind_of_label": whole.one_kind_of_label,
        "ties": 2 * len(told) - len(votes),
        "pairs_right": asdict(wilson(sum(won is True for won in both), len(told))),
        "order": as_json(pair_order_bias(straight, turned)),
        "consistency": None,
        "costs": {name: metric.value for name, metric in judge.take_report().items()},
    }
    rows = [_pair_row(cases, i, v) for (i, v), won in zip(told, both, strict=True) if won is not True]
    return _Found(figures, rows)


def _reader(rubric: Rubric, threshold: float) -> Callable[[Verdict], bool]:
    low, high = rubric.reward_range
    return lambda verdict: (verdict.reward - low) / (high - low) >= threshold


def _order(
    cfg: CalibrateConfig,
    opened: OpenJudge,
    rubric: Rubric,
    told: Sequence[tuple[LabelledCase, Verdict]],
    means_right: Callable[[Verdict], bool],
) -> dict[str, Any] | None:
    """The same responses with the criteria from last to first; None where there is one, or it is not asked for."""
    if len(rubric.criteria) < 2 or not cfg.calibrate.order_rows:
        return None
    chosen = _drawn(told, cfg.calibrate.order_rows, cfg.calibrate.seed)
    judge = opened.judge(replace(rubric, criteria=rubric.criteria[::-1]), settings_of(cfg.judge))
    again = judge.judge([item.case for item, _ in chosen])
    both = [(means_right(v), means_right(w)) for (_, v), w in zip(chosen, again, strict=True) if isinstance(w, Verdict)]
    return as_json(order_bias([a for a, _ in both], [b for _, b in both])) if both else None


def _consistency(
    cfg: CalibrateConfig,
    opened: OpenJudge,
    rubric: Rubric,
    cases: Sequence[LabelledCase],
    means_right: Callable[[Verdict], bool],
) -> dict[str, Any] | None:
    """Each response judged anew with other draws; None where that is not asked for or gave no verdict."""
    asked = cfg.calibrate
    if asked.repeats < 2:
        return None
    chosen = [item.case for item in _drawn(cases, asked.repeat_rows, asked.seed)]
    base = replace(settings_of(cfg.judge), samples=1, temperature=asked.repeat_temperature)
    rounds = [
        opened.judge(rubric, replace(base, seed=asked.seed + number)).judge(chosen) for number in range(asked.repeats)
    ]
    whole = [row for row in zip(*rounds, strict=True) if all(isinstance(v, Verdict) for v in row)]
    if not whole:
        return None
    found = as_json(consistency([[means_right(v) for v in row if isinstance(v, Verdict)] for row in whole]))
    return {**found, "temperature": asked.repeat_temperature}


def _drawn(items: Sequence[Any], most: int, seed: int) -> list[Any]:
    if len(items) <= most:
        return list(items)
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), most))]


def _lost(verdicts: Sequence[Any]) -> dict[str, int]:
    return dict(Counter(verdict.reason for verdict in verdicts if isinstance(verdict, NoVerdict)))


def _require_some(told: Sequence[Any], verdicts: Sequence[Any]) -> None:
    if not told:
        first = verdicts[0]
        raise DataError(f"the judge gave no verdict on any of {len(verdicts)} rows ({first.reason}: {first.detail}).")


def _row(item: LabelledCase, verdict: Verdict) -> dict[str, Any]:
    return {
        "row": item.case.name, "label": "right" if item.right else "wrong", "reward": verdict.reward,
        "criteria": dict(verdict.criteria), "said": [dict(sample) for sample in verdict.samples],
        "prompt": item.case.prompt, "response": item.case.response,
    }  # fmt: skip


def _pair_row(cases: Sequence[LabelledCase], i: int, verdict: PairVerdict) -> dict[str, Any]:
    right, wrong = cases[2 * i].case, cases[2 * i + 1].case
    names = {A: "right", B: "wrong"}
    return {
        "row": right.name, "label": "right is better",
        "right_shown_first": {name: names.get(won, won) for name, won in verdict.straight.items()},
        "right_shown_second": {name: names.get(won, won) for name, won in verdict.turned.items()},
        "prompt": right.prompt, "right": right.response, "wrong": wrong.response,
    }  # fmt: skip


def _folder(cfg: CalibrateConfig) -> Path:
    assert cfg.judge.prompt is not None
    folder = Path(cfg.calibrate.output) if cfg.calibrate.output else folder_of(cfg.judge.prompt)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be made ({error.strerror}): give another folder by --calibrate.output."
        ) from None
    return folder


def _write(folder: Path, result: Mapping[str, Any], disagreements: Sequence[Mapping[str, Any]]) -> None:
    (folder / FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in disagreements]
    (folder / DISAGREEMENTS).write_text("".join(lines), encoding="utf-8")
