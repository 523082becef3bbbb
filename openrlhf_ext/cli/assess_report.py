"""`assess report`: what an assessment says, as tables or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from openrlhf_ext.assess.opinions import opinions
from openrlhf_ext.assess.report import report
from openrlhf_ext.cli.assess_serve import open_folder
from openrlhf_ext.cli.judge_report import PIPE_WIDTH
from openrlhf_ext.config.assess import AssessReportConfig
from openrlhf_ext.errors import DataError
from openrlhf_ext.evaluation.sentences import percent


def run(cfg: AssessReportConfig) -> int:
    """0, whatever was found. Raises DataError for a folder without an assessment, or without a judgement."""
    assessment, log = open_folder(cfg.assess.folder)
    asked = cfg.report
    found = report(
        assessment, opinions(assessment, log), at_most=asked.at_most, resamples=asked.resamples, seed=asked.seed
    )
    if not found["judgements"]:
        raise DataError(f"{cfg.assess.folder} holds no judgement yet: judge some items by `assess serve` first.")
    if cfg.json:
        print(json.dumps(found))
    else:
        _show(found)
    return 0


def _show(found: Mapping[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    console.print(_raters(found))
    lost = [f"{found['unjudged']} not judged", f"{found['disputed']} disputed (no word has most votes)"]
    lost += [f"{n} {name} left out at the start" for name, n in found["left_out"].items() if n]
    _say(console, f"{found['items']} items: {', '.join(lost)}")
    if found["models"] is not None:
        console.print(_models(found["models"]))
        for model in found["models"]:
            _say(console, f"{model['name']}: {model['sentence']} hallucinated")
            _say(console, f"{model['name']}: {model['claim']['standing']}: {model['claim']['sentence']}")
        if found["difference"] is not None:
            names = [model["name"] for model in found["models"]]
            _say(console, f"A is {names[0]}, B is {names[1]}. {found['difference']['sentence']}")
    else:
        _preference(console, found["preference"])
    if found["agreement"]["items"]:
        console.print(_agreement(found["agreement"]))
    if found["judge"]:
        console.print(_judge(found["judge"]))


def _raters(found: Mapping[str, Any]) -> Table:
    table = _table(f"{found['task']}: {found['judgements']} judgements", "rater", "judged", "median seconds")
    for rater in found["raters"]:
        seconds = rater["median_seconds"]
        table.add_row(
            rater["name"], f"{rater['judged']} of {rater['of']}", "-" if seconds is None else f"{seconds:.0f}"
        )
    return table


def _models(models: list[Mapping[str, Any]]) -> Table:
    table = _table("hallucinated answers", "model", "type", "n", "of", "rate", "95 %")
    for model in models:
        n, questions = model["judged"], model["questions"]
        name = Text(f"{model['name']} ({model['fingerprint'][:8]})")
        table.add_row(name, "all", str(model["hallucinated"]), str(n), *_percents(model["rate"], questions))
        for kind, of in model["kinds"].items():
            table.add_row("", kind.replace("_", " "), str(of["n"]), str(n), *_percents(of["rate"], questions))
        if model["kind_disputed"]:
            table.add_row("", "type disputed", str(model["kind_disputed"]), str(n), "", "")
    return table


def _preference(console: Console, found: Mapping[str, Any]) -> None:
    first, second = found["first"], found["second"]
    table = _table("pairs", "preferred", "n")
    for model in (first, second):
        table.add_row(Text(f"{model['name']} ({model['fingerprint'][:8]})"), str(model["wins"]))
    table.add_row("tie", str(found["ties"]))
    console.print(table)
    _say(console, f"{second['name']} beats {first['name']} in {found['sentence']}")
    if found["sign_test_p"] is not None:
        told = "is more than chance" if found["sign_test_p"] < 0.05 else "may be chance"
        _say(console, f"sign test: p = {found['sign_test_p']:.3g}: the difference {told} at this n")
    _say(console, f"the side shown first won: {' '.join(_percents(found['shown_first_won'], 0)).strip()}")


def _agreement(found: Mapping[str, Any]) -> Table:
    table = _table("raters agree", "raters", "items", "same", "kappa / alpha", "95 %")
    for pair in found["pairs"]:
        if pair["items"]:
            same = percent(pair["same"]["value"], pair["items"])
            table.add_row(
                " and ".join(pair["raters"]) + ": Cohen's kappa", str(pair["items"]), same, *_numbers(pair["kappa"])
            )
    table.add_row("all: Krippendorff's alpha", str(found["items"]), "", *_numbers(found["alpha"]))
    return table


def _judge(judged: list[Mapping[str, Any]]) -> Table:
    table = _table(
        "the tables' own verdicts and the people", "model", "items", "no verdict", "same", "Cohen's kappa", "95 %"
    )
    for each in judged:
        same = percent(each["accuracy"]["value"], each["items"])
        table.add_row(Text(each["model"]), str(each["items"]), str(each["no_verdict"]), same, *_numbers(each["kappa"]))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place and name != "type" else "left", overflow="fold")
    return table


def _percents(estimate: Mapping[str, Any], n: int) -> tuple[str, str]:
    low, high = (percent(estimate[name], n) for name in ("low", "high"))
    return percent(estimate["value"], n), "" if estimate["low"] is None else f"{low} to {high}"


def _numbers(estimate: Mapping[str, Any]) -> tuple[str, str]:
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    return "-" if value is None else f"{value:.3f}", "" if low is None else f"{low:.3f} to {high:.3f}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
