"""The rules of `annotate`."""

from __future__ import annotations

from collections.abc import Iterator

from openrlhf_ext.config.annotate import AnnotateConfig
from openrlhf_ext.config.rules.common import refused_flags, values_in_range
from openrlhf_ext.config.rules.judge_command import an_answer_fits, one_judge_is_named
from openrlhf_ext.config.rules.violation import Explicit, Rule, Violation, required


def rows_and_subjects_are_named(config: AnnotateConfig, explicit: Explicit) -> Iterator[Violation]:
    yield from required(
        config,
        {
            "data.dataset": "the rows",
            "data.shown_keys": "the columns that the judge reads",
            "annotate.taxonomy": "the subjects, with ids such as 1.4.2",
            "annotate.output": "the file of rows with subjects",
        },
    )


def the_file_is_read_again(config: AnnotateConfig, explicit: Explicit) -> Iterator[Violation]:
    output = config.annotate.output
    if output and not output.endswith(".jsonl"):
        yield Violation("--annotate.output", output, "give it a name that ends in .jsonl, which --data.dataset reads")


ANNOTATE_RULES: tuple[Rule, ...] = (
    refused_flags,
    values_in_range,
    one_judge_is_named,
    an_answer_fits,
    rows_and_subjects_are_named,
    the_file_is_read_again,
)
