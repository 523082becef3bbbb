"""Held-out rows that cannot be used are answered before a model is read, as those to train on are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openrlhf_ext.cli.supervised_tasks import dpo_task, rm_task, sft_task
from openrlhf_ext.config import parse
from openrlhf_ext.errors import DataError
from openrlhf_ext.models.tiny import build_tokenizer

ROWS = {
    "sft": {"input": "a question", "output": "an answer"},
    "rm": {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
}
ROWS["dpo"] = ROWS["rm"]
COLUMNS = {"sft": ["--data.output_key", "output"], "rm": [], "dpo": []}


def task_of(command: str, folder: Path, held_out: list[dict[str, str]]) -> Any:
    for name, rows in (("train", [ROWS[command]]), ("held", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [*COLUMNS[command], "--eval.dataset", str(folder / "held.jsonl"), "--eval.split", "train"]
    flags += ["--eval.steps", "1", "--model.model_name_or_path", "m", "--data.dataset", str(folder / "train.jsonl")]
    cfg, tokenizer = parse(command, flags).config, build_tokenizer()
    if command == "sft":
        return sft_task(cfg, tokenizer, None)
    return rm_task(cfg, tokenizer) if command == "rm" else dpo_task(cfg, tokenizer, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("command", ["sft", "rm", "dpo"])
def test_held_out_rows_are_needed_where_they_are_named(command: str, tmp_path: Path):
    with pytest.raises(DataError, match=r"held.jsonl has no rows: give a data set with at least one"):
        task_of(command, tmp_path, [])
    empty = dict.fromkeys(ROWS[command], "\n\nHuman: a\n\nAssistant: " if command != "sft" else " ")
    said = r"none of the 1 rows of .*held.jsonl can be .*\(1 (empty_response|identical)\)"
    with pytest.raises(DataError, match=said):
        task_of(command, tmp_path, [empty])
    assert sum(batch.rows for batch in task_of(command, tmp_path, [ROWS[command]] * 2).held_out) in (2, 4)
