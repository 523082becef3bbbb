"""`annotate`: asks the judge for the subjects of the rows that have none yet, and keeps them batch by batch."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from openrlhf_ext.cli.annotate_rows import AnnotatedFile, Columns
from openrlhf_ext.cli.judge_model import OpenJudge, open_judge
from openrlhf_ext.cli.judge_report import PIPE_WIDTH
from openrlhf_ext.cli.rl_judge import name_of_weights
from openrlhf_ext.cli.specs import model_path
from openrlhf_ext.config.annotate import AnnotateConfig
from openrlhf_ext.config.judge_command import JudgeModelFields
from openrlhf_ext.data.tables import Row, load_rows, require_columns
from openrlhf_ext.device import Device, choose_device
from openrlhf_ext.errors import DataError, ResourceError
from openrlhf_ext.evaluation.annotation import FORM, Annotation, count_repairs, prompt_of, read_annotation, schema_of
from openrlhf_ext.evaluation.subjects import Taxonomy, load_taxonomy, roll_up
from openrlhf_ext.rewards.judge.asking import Asking, NoVerdict
from openrlhf_ext.rewards.judge.types import Question
from openrlhf_ext.track.progress import console
from openrlhf_ext.types import derive_seed

Ask = Callable[[Sequence[Row]], list[Any]]


def run(cfg: AnnotateConfig) -> int:
    """0 where every row has its subjects, else 1. Raises UserError before a model is loaded where the input cannot be
    used.
    """
    assert cfg.data.dataset is not None and cfg.annotate.taxonomy is not None and cfg.annotate.output is not None
    taxonomy = load_taxonomy(cfg.annotate.taxonomy)
    columns = Columns(cfg.annotate.column)
    rows = _rows(cfg, columns)
    device = choose_device(cfg.device.type)
    about = _about(cfg, taxonomy)
    with closing(AnnotatedFile(Path(cfg.annotate.output), columns, rows, about)) as file:
        missing = file.missing()
        if file.torn:
            _say(f"{cfg.annotate.output}: its last line was torn and is cut off; its row is asked for again")
        if len(missing) < len(rows):
            _say(f"{len(rows) - len(missing)} of {len(rows)} rows have their subjects in {cfg.annotate.output} already")
        lost, costs = _asked(cfg, file, missing, taxonomy, device) if missing else ([], {})
        result = _result(cfg, file, columns, taxonomy, len(rows), lost, costs)
        file.describe({**about, "result": result})
    if cfg.json:
        print(json.dumps(result))
    else:
        _show(result, taxonomy)
    return 1 if lost else 0


def _rows(cfg: AnnotateConfig, columns: Columns) -> list[Row]:
    assert cfg.data.dataset is not None
    rows = load_rows(cfg.data.dataset, split=cfg.data.split, max_samples=cfg.data.max_samples)
    require_columns(rows, dict.fromkeys(cfg.data.shown_keys, "--data.shown_keys"))
    taken = next((name for row in rows for name in columns.all if name in row.values), None)
    if taken is not None:
        raise DataError(
            f"the rows of {cfg.data.dataset} have a column {taken!r} already: give another --annotate.column."
        )
    return rows


def _texts(cfg: AnnotateConfig, row: Row) -> dict[str, str]:
    """What is no text, such as the options of a question, is shown as JSON."""
    values = {name: row[name] for name in cfg.data.shown_keys}
    return {name: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str)
            for name, v in values.items()}  # fmt: skip


def _about(cfg: AnnotateConfig, taxonomy: Taxonomy) -> dict[str, Any]:
    """What makes annotations others, in the words of a message."""
    content = json.dumps([[each.id, each.name, each.parent] for each in taxonomy])
    return {
        "judge": _judge_name(cfg.judge),
        "taxonomy": hashlib.blake2b(content.encode(), digest_size=8).hexdigest(),
        "set of columns shown": list(cfg.data.shown_keys),
        "form of the question": FORM,
    }


def _judge_name(flags: JudgeModelFields) -> str:
    """An endpoint's address may change; its model is who answers."""
    if flags.model_name_or_path is None:
        assert flags.served_model_name is not None, "the rules ask for it"
        return flags.served_model_name
    return name_of_weights(model_path(flags.model_name_or_path), "auto")


def _asked(
    cfg: AnnotateConfig, file: AnnotatedFile, missing: Sequence[tuple[str, Row]], taxonomy: Taxonomy, device: Device
) -> tuple[list[NoVerdict], dict[str, float]]:
    """The failures, and what it cost. What is answered is in the file."""
    with open_judge(cfg.judge, device) as opened:
        asking = Asking(opened.cache)
        asking.connect(opened.model)
        lost = _annotate(cfg, file, missing, _asker(cfg, opened, asking, taxonomy))
        return lost, {name: metric.value for name, metric in asking.take_report().items()}


def _asker(cfg: AnnotateConfig, opened: OpenJudge, asking: Asking, taxonomy: Taxonomy) -> Ask:
    schema, special = schema_of(taxonomy), tuple(opened.special_tokens)

    def ask(rows: Sequence[Row]) -> list[Any]:
        prompts = [prompt_of(_texts(cfg, row), taxonomy, special) for row in rows]
        questions = [
            Question(
                [{"role": "user", "content": prompt}], schema, cfg.judge.max_new_tokens, cfg.judge.temperature,
                derive_seed("annotate", prompt),
            )
            for prompt in prompts
        ]  # fmt: skip
        return asking.answers(questions, lambda text: read_annotation(text, taxonomy))

    return ask


def _annotate(
    cfg: AnnotateConfig, file: AnnotatedFile, missing: Sequence[tuple[str, Row]], ask: Ask
) -> list[NoVerdict]:
    """The failures. Raises ResourceError where a whole batch has no answer: what was answered before is kept."""
    lost: list[NoVerdict] = []
    for start in range(0, len(missing), cfg.annotate.batch_size):
        batch = missing[start : start + cfg.annotate.batch_size]
        answers = ask([row for _, row in batch])
        told = [(key, row, a) for (key, row), a in zip(batch, answers, strict=True) if isinstance(a, Annotation)]
        failed = [answer for answer in answers if isinstance(answer, NoVerdict)]
        file.keep(told)
        lost += failed
        if not told:
            raise ResourceError(
                f"the judge gave no subjects to any of {len(batch)} rows ({failed[0].reason}: {failed[0].detail}); "
                f"{len(file.rows)} rows are in {cfg.annotate.output}, and the same command goes on with the others."
            )
        _say(f"{start + len(batch)} of {len(missing)} rows asked for, {len(lost)} without an answer")
    return lost


def _result(
    cfg: AnnotateConfig, file: AnnotatedFile, columns: Columns, taxonomy: Taxonomy, rows: int,
    lost: Sequence[NoVerdict], costs: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Of all that is in the file, whichever run asked for it; costs are of this one."""
    repairs = [row[columns.repairs] for row in file.rows.values()]
    mended, unknown = count_repairs(repairs)
    counted = roll_up([row[columns.subjects] for row in file.rows.values()], taxonomy)
    return {
        "output": cfg.annotate.output,
        "rows": rows,
        "annotated": len(file.rows),
        "as_given": sum(not each for each in repairs),
        "mended": mended,
        "unknown_ids": unknown,
        "without_subject": len(counted.without),
        "subjects": {id: len(places) for id, places in counted.places.items()},
        "no_answer": [f"{each.reason}: {each.detail}" for each in lost],
        "costs": dict(costs),
    }


def _show(result: Mapping[str, Any], taxonomy: Taxonomy) -> None:
    out = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    table = Table()
    for name in ("subject", "rows"):
        table.add_column(name, justify="left" if name == "subject" else "right")
    for id, n in result["subjects"].items():
        name = f"{'  ' * (taxonomy.depth(id) - 1)}{id} {taxonomy.subjects[id].name}"
        table.add_row(name.replace("[", "\\["), str(n))
    table.add_row("(none of them)", str(result["without_subject"]))
    out.print(table)
    lines = [f"{result['annotated']} of {result['rows']} rows with subjects, in {result['output']}"]
    lines.append(f"as the judge gave them {result['as_given']}; mended: {_listed(result['mended']) or 'none'}")
    if result["unknown_ids"]:
        lines.append(f"ids that the taxonomy does not have, left out: {_listed(result['unknown_ids'])}")
    if result["costs"]:
        costs = {name.removeprefix("judge/"): f"{n:,.0f}" for name, n in result["costs"].items()}
        told = ("asked", "cached", "parse_failures", "prompt_tokens", "answer_tokens", "seconds")
        lines.append(f"the judge: {', '.join(f'{name} {costs[name]}' for name in told)}")
    if result["no_answer"]:
        lines.append(
            f"{len(result['no_answer'])} rows have no subjects ({result['no_answer'][0]}): the same command asks for "
            "them again"
        )
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def _say(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)
