"""The rules of `assess serve`, `assess report` and `assess export`."""

from __future__ import annotations

from collections.abc import Iterator

from openrlhf_ext.config.assess import AssessConfig, AssessExportConfig, AssessReportConfig
from openrlhf_ext.config.rules.common import refused_flags, values_in_range
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation, required


def a_folder_is_named(
    config: AssessConfig | AssessReportConfig | AssessExportConfig, explicit: Explicit
) -> Iterator[Violation]:
    yield from required(config, {"assess.folder": "the folder of the assessment"})


def answers_come_from_one_place(config: AssessConfig, explicit: Explicit) -> Iterator[Violation]:
    answers, data = config.assess.answers, config.data
    if len(answers) > 2:
        yield Violation("--assess.answers", answers, "name one folder, or two")
    if answers and data.dataset:
        yield Violation("--data.dataset", data.dataset, "--assess.answers names other answers; leave out one")
    if not data.dataset:
        for path in sorted(explicit):
            if path.startswith("data."):
                yield Violation(f"--{path}", None, "it has no effect without --data.dataset; leave it out")
    elif data.other_answer_key is None and data.other_model is not None:
        yield Violation("--data.other_model", data.other_model, "it has no effect without --data.other_answer_key")
    elif data.other_answer_key is not None and data.verdict_key is not None:
        yield Violation(
            "--data.verdict_key", data.verdict_key, "it is of one answer; leave out --data.other_answer_key"
        )
    elif data.other_answer_key == data.answer_key:
        yield Violation("--data.other_answer_key", data.answer_key, "--data.answer_key is the same; name two columns")


def a_preference_has_two_models(config: AssessConfig, explicit: Explicit) -> Iterator[Violation]:
    if config.assess.task != "preference":
        return
    if len(config.assess.answers) == 1:
        yield Violation("--assess.answers", config.assess.answers, "a preference is between two; name two folders")
    if config.data.dataset and config.data.other_answer_key is None:
        yield Violation("--data.other_answer_key", None, "it is required: a preference is between two answers")


def the_terminal_has_no_address(config: AssessConfig, explicit: Explicit) -> Iterator[Violation]:
    idle = {"host", "port"} if config.tui else {"assess.rater"}
    why = "it is of the page; leave it out with --tui" if config.tui else "it is for --tui; each rater has a link"
    yield from (Violation(f"--{path}", None, why) for path in sorted(idle & explicit))
    raters = config.assess.raters
    if config.tui and config.assess.rater is None and len(raters) > 1:
        yield Violation("--assess.rater", None, f"it is required with --tui: name one of {', '.join(raters)}")


def a_file_is_named(config: AssessExportConfig, explicit: Explicit) -> Iterator[Violation]:
    export = config.export
    if export.judgements is None and export.preferences is None:
        yield Violation(
            "--export.judgements", None, "it is required: the file for judgements (or name --export.preferences)"
        )
    for name in ("judgements", "preferences"):
        path = getattr(export, name)
        if path is not None and not path.endswith(".jsonl"):
            yield Violation(f"--export.{name}", path, "no command would read it; give a name that ends in .jsonl")
    if export.judgements is not None and export.judgements == export.preferences:
        yield Violation("--export.preferences", export.preferences, "--export.judgements is the same file; name two")
    if export.with_references and export.preferences is None:
        yield Violation("--export.with_references", None, "it has no effect without --export.preferences; leave it out")


_ALL: tuple[Rule, ...] = (refused_flags, values_in_range, a_folder_is_named)
ASSESS_RULES: tuple[Rule, ...] = (
    *_ALL, answers_come_from_one_place, a_preference_has_two_models, the_terminal_has_no_address
)  # fmt: skip
ASSESS_REPORT_RULES: tuple[Rule, ...] = _ALL
ASSESS_EXPORT_RULES: tuple[Rule, ...] = (*_ALL, a_file_is_named)
