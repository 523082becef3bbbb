"""What an evaluation found, as tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from openrlhf_ext.cli.judge_report import PIPE_WIDTH
from openrlhf_ext.evaluation.figures import rate_of
from openrlhf_ext.evaluation.sentences import outcome_sentence

COUNTED = ("right", "wrong", "unanswered", "truncated", "failed", "ungraded")


def show(result: Mapping[str, Any], folder: Path) -> None:
    """The figures of all rows, of groups and of subjects, and what is to be known about them, on stdout."""
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    console.print(_table(result))
    for line in _remarks(result):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"answers and all figures: {folder}", markup=False, soft_wrap=True)


def _table(result: Mapping[str, Any]) -> Table:
    figures, rate = result["figures"], result["rate"]
    whole = figures["all"]
    scorer = f" by {result['scorer']}" if result["scorer"] else ""
    title = f"{result['answerer']['name']} on {result['data']['dataset']}{scorer}"
    table = Table(title=Text(title))
    outcomes = [name for name in COUNTED if whole["outcomes"].get(name)]
    more = [k for k in whole["pass_at"] if k != "1"]
    shows_score = whole["score"]["value"] is not None and not _is_accuracy(whole)
    for name in ("", "questions", *outcomes, rate["name"], "95 %", *(f"pass@{k}" for k in more)):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    if shows_score:
        table.add_column("mean score", justify="right")
        table.add_column("95 %", justify="right")
    for name, own in lines_of(whole, figures):
        cells = [str(own["questions"]), *(str(own["outcomes"].get(outcome, 0)) for outcome in outcomes)]
        cells += [*_cells(rate_of(own, rate["outcome"])), *(_number(own["pass_at"][k]["value"]) for k in more)]
        if shows_score:
            cells += _cells(own["score"])
        table.add_row(Text(name), *cells)
    return table


def lines_of(whole: Mapping[str, Any], figures: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The lines of a table, each with its name: what all rows have, each group and each subject, indented."""
    yield "all", whole
    for column, values in figures["groups"].items():
        for value, own in values.items():
            yield f"{column} = {value}", own
    if subjects := figures["subjects"]:
        for node in subjects["nodes"]:
            yield "  " * (node["depth"] - 1) + f"{node['id']} {node['name']}".rstrip(), node
        if subjects["without"] is not None:
            yield "(no known subject)", subjects["without"]


def _is_accuracy(own: Mapping[str, Any]) -> bool:
    """Rules score 1 and 0: the mean says the same."""
    score, accuracy = own["score"]["value"], own["accuracy"]["value"]
    return accuracy is not None and abs(score - accuracy) < 1e-12


def _cells(estimate: Mapping[str, float | None]) -> list[str]:
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    return [_number(value), "" if low is None or high is None else f"{low:.3f} to {high:.3f}"]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _remarks(result: Mapping[str, Any]) -> Iterator[str]:
    whole, rate = result["figures"]["all"], result["rate"]
    if whole["rated"]["answers"]:
        yield f"{rate['name']}: {outcome_sentence(whole, rate['outcome'])}"
    if result["ended_at_limit"]:
        yield f"{result['ended_at_limit']} of {whole['answers']} answers ended at --eval.max_new_tokens"
    if whole["outcomes"]["failed"]:
        yield f"WARNING: {whole['outcomes']['failed']} answers failed and are in no rate; their notes say why."
    for name, n in result["data"].items():
        if name.startswith("overlong"):
            yield f"prompts that were too long, {name.removeprefix('overlong_')}: {n}"
    if (subjects := result["figures"]["subjects"]) and subjects["unknown"]:
        listed = ", ".join(f"{id} ({n})" for id, n in subjects["unknown"].items())
        yield f"subjects that the taxonomy does not have: {listed}"
    if found := result["perplexity"]:
        low, high = found["perplexity"]["low"], found["perplexity"]["high"]
        yield (
            f"perplexity of {found['questions']} references ({found['tokens']} tokens): "
            f"{found['perplexity']['value']:.3f} ({low:.3f} to {high:.3f}), mean log-probability of a token "
            f"{found['mean_logprob']['value']:.4f}"
        )
    yield from _against(result["against"])


def _against(found: Mapping[str, Any] | None) -> Iterator[str]:
    if not found:
        return
    alone = f"; without a partner: {found['ours_alone']} here, {found['theirs_alone']} there"
    if found["figures"] is None:
        yield f"against {found['name']}: the judge gave no verdict on any pair{alone}"
        return
    own = found["figures"]
    counts, rate = own["counts"], own["win_rate"]
    p = "" if own["p_value"] is None else f", sign test p = {own['p_value']:.3g}"
    yield (
        f"against {found['name']}: {counts['won']} won, {counts['tie']} tied, {counts['lost']} lost of {own['pairs']} "
        f"pairs; win rate {rate['value']:.3f} ({rate['low']:.3f} to {rate['high']:.3f}, a tie is half){p}"
        f"; no verdict on {found['no_verdict']}{alone}"
    )
