"""`eval --compare A B`: the results of two models held against each other. No model is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openrlhf_ext.cli.eval_compare_report import show
from openrlhf_ext.config.evaluation import EvalConfig
from openrlhf_ext.errors import DataError, ResourceError
from openrlhf_ext.evaluation.answers import RESULT, Answerer, AnswerRow, read_answers
from openrlhf_ext.evaluation.comparison import compare
from openrlhf_ext.evaluation.plots import write_comparison_plots
from openrlhf_ext.evaluation.sentences import difference_sentence
from openrlhf_ext.evaluation.subjects import Taxonomy, load_taxonomy, taxonomy_of_nodes
from openrlhf_ext.track.files import write_atomically

COMPARISON = "comparison.json"
NO_MATTER = ("the rows", "scorer", "hallucination", "perplexity", "against")
"""Settings that are held against each other in another way, or that change no answer."""

SILENT = ("unanswered", "truncated")


@dataclass(frozen=True, slots=True)
class Results:
    """What `eval` left in a folder. `letter`: A or B, as messages call it."""

    letter: str
    path: Path
    answerer: Answerer
    rows: list[AnswerRow]
    result: Mapping[str, Any]

    @property
    def rate(self) -> Mapping[str, str]:
        rate: Mapping[str, str] = self.result["rate"]
        return rate

    def __str__(self) -> str:
        return f"{self.letter} ({self.path})"


def run_compare(cfg: EvalConfig) -> int:
    """0, whichever is better. Raises DataError for results that cannot be held against each other."""
    assert cfg.compare is not None
    first, second = cfg.compare
    a, b = _read("A", Path(first)), _read("B", Path(second))
    warnings = _require_comparable(a, b)
    taxonomy, subjects = _taxonomy(cfg, a, b), cfg.eval.subject_column or _subject_column(a)
    found = compare(
        a.rows,
        b.rows,
        counts="wrong" if a.rate["outcome"] == "wrong" else "right",
        groups=cfg.groups or tuple(a.result["figures"]["groups"]),
        subject_column=subjects,
        taxonomy=taxonomy,
        seed=cfg.eval.seed,
    )
    warnings += [*_leftovers(found), *_silent(a, b)]
    result = {
        "a": {**asdict(a.answerer), "folder": str(a.path)},
        "b": {**asdict(b.answerer), "folder": str(b.path)},
        "rate": dict(a.rate),
        "rule": a.result["rule"],
        "sentences": _sentences(found, a.rate),
        "warnings": warnings,
        "preference": _preference(a, b),
        "compared": found,
    }
    if cfg.eval.output is not None:
        _write(Path(cfg.eval.output), result)
    if cfg.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        show(result, cfg.eval.output)
    return 0


def _read(letter: str, path: Path) -> Results:
    if not path.is_dir():
        raise DataError(f"--compare: {path} is no folder: give two folders that eval wrote.")
    answerer, rows = read_answers(path)
    try:
        result = json.loads((path / RESULT).read_text(encoding="utf-8"))
        _ = result["rate"]["outcome"], result["rate"]["name"], result["rule"], result["figures"]["groups"]
    except OSError:
        raise DataError(f"the evaluation in {path} has not ended: run it again with --eval.resume.") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path / RESULT} was not written by eval: give two folders that eval wrote.") from None
    return Results(letter, path, answerer, rows, result)


def _require_comparable(a: Results, b: Results) -> list[str]:
    """What is doubtful, in sentences. Raises DataError for what is wrong."""
    if a.path.resolve() == b.path.resolve():
        raise DataError(f"--compare: {a.path} is named twice: give the results of two models.")
    if dict(a.rate) != dict(b.rate) or a.result["rule"] != b.result["rule"]:
        rules = [f"{each} has the {each.rate['name']} by {each.result['rule']}" for each in (a, b)]
        raise DataError(f"--compare: {rules[0]}, {rules[1]}: evaluate both by the same rule.")
    settings = [each.result.get("settings", {}) for each in (a, b)]
    names = [name for name in (*settings[0], *settings[1]) if name not in NO_MATTER]
    differ = [name for name in dict.fromkeys(names) if settings[0].get(name) != settings[1].get(name)]
    same_model = a.answerer.fingerprint == b.answerer.fingerprint
    if same_model and not differ:
        raise DataError(
            f"--compare: {a} and {b} are of the same model, {b.answerer.name}, by the same settings: give the results "
            "of two models."
        )
    warnings = []
    if same_model:
        warnings.append(f"both are of the same model, {b.answerer.name}: what is compared are settings")
    if differ:
        warnings.append(f"A and B differ in more than their models: {', '.join(differ)}")
    return warnings


def _subject_column(a: Results) -> str | None:
    subjects = a.result["figures"].get("subjects")
    return None if subjects is None else str(subjects["column"])


def _taxonomy(cfg: EvalConfig, a: Results, b: Results) -> Taxonomy | None:
    """Of the file; without one, of what the results say by the same column."""
    if cfg.eval.taxonomy is not None:
        return load_taxonomy(cfg.eval.taxonomy)
    reports = [each.result["figures"].get("subjects") for each in (a, b)]
    column = cfg.eval.subject_column or _subject_column(a)
    nodes = [node for report in reports if report and report["column"] == column for node in report["nodes"]]
    return taxonomy_of_nodes(nodes) if nodes else None


def _silent(a: Results, b: Results) -> list[str]:
    """An answer that says nothing is no wrong one: a model that falls silent has fewer of those."""
    counts = [sum(row.outcome in SILENT for row in each.rows) for each in (a, b)]
    if a.rate["outcome"] != "wrong" or not any(counts):
        return []
    return [
        f"A has {counts[0]} of {len(a.rows)} answers that say nothing (empty, or cut before one), B {counts[1]} of "
        f"{len(b.rows)}: they lower the {a.rate['name']} and make no model better"
    ]


def _leftovers(found: Mapping[str, Any]) -> list[str]:
    parts = [
        (len(found["only_a"]), "only A has"),
        (len(found["only_b"]), "only B has"),
        (len(found["unrated"]), "of which one has no answer that could be rated"),
    ]
    listed = ", ".join(f"{n} {words}" for n, words in parts if n)
    warnings = [f"questions that are in no comparison: {listed}"] if listed else []
    if found["columns_differ"] and (found["groups"] or found["subjects"]):
        warnings.append(f"{found['columns_differ']} questions have other columns in B: groups and subjects are by A's")
    return warnings


def _sentences(found: Mapping[str, Any], rate: Mapping[str, Any]) -> list[str]:
    sentences = []
    if found["rate"] is not None:
        sentences.append(difference_sentence(rate["name"], found["rate"], better=rate.get("better", "high")))
    if found["score"] is not None:
        sentences.append(difference_sentence("mean score", found["score"], of_rates=False))
    if found["logprob"] is not None:
        sentences.append(difference_sentence("log-prob per reference token", found["logprob"], of_rates=False))
    return sentences


def _preference(a: Results, b: Results) -> dict[str, Any] | None:
    """What the judge said of pairs, where one of the evaluations asked it; `of` is whose wins they are."""
    for own, other in ((b, a), (a, b)):
        told = own.result.get("against")
        if told and told["fingerprint"] == other.answerer.fingerprint and told["figures"] is not None:
            return {"of": own.letter, **told}
    return None


def _write(folder: Path, result: Mapping[str, Any]) -> None:
    """Raises DataError for a folder with another comparison, or with results; ResourceError where it cannot be made."""
    file = folder / COMPARISON
    if (folder / RESULT).exists():
        raise DataError(
            f"--eval.output {folder} holds the results of a model: give the comparison a folder of its own."
        )
    if file.exists() and not _is_of(file, result):
        raise DataError(f"--eval.output {folder} holds another comparison: give another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(result, indent=1, ensure_ascii=False).encode() + b"\n")
        compared = result["compared"]
        write_comparison_plots(folder, compared, [result[side]["name"] for side in "ab"], result["rate"]["name"])
    except OSError as error:
        raise ResourceError(f"--eval.output {folder} cannot be written to ({error.strerror}): give another.") from None


def _is_of(file: Path, result: Mapping[str, Any]) -> bool:
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        return all(before[side]["fingerprint"] == result[side]["fingerprint"] for side in "ab")
    except (OSError, ValueError, KeyError, TypeError):
        return False
