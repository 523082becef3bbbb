"""MedHallu to preference pairs: the question with its abstract, the true answer, the hallucinated one.

    python examples/dpo_hallucination/convert.py MEDHALLU.jsonl data/medhallu/train.jsonl [--held-out TEST.jsonl]

MedHallu: Pandit et al. 2025, "MedHallu: A Comprehensive Benchmark for Detecting Medical Hallucinations in Large
Language Models", arXiv:2502.14302. Every row gives one pair; its difficulty is kept, and
question and abstract apart for those who judge answers. With --held-out every tenth row
goes there instead.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

COLUMNS = ("question", "knowledge", "ground_truth", "least_similar_answer")
HELD_OUT = 10
PROMPT = """\
Answer the question from the abstract. Say nothing that the abstract does not support.

Abstract:
{abstract}

Question: {question}

Answer:
"""


def pairs_of(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """One pair for each row whose two answers say something, and not the same."""
    for row in rows:
        chosen, rejected = row["ground_truth"].strip(), row["least_similar_answer"].strip()
        if not chosen or not rejected or chosen == rejected:
            continue
        abstract, question = abstract_of(row["knowledge"]), row["question"].strip()
        yield {
            "prompt": PROMPT.format(abstract=abstract, question=question),
            "chosen": chosen,
            "rejected": rejected,
            "difficulty": str(row.get("final_difficulty_level", "")),
            "question": question,
            "abstract": abstract,
        }


def abstract_of(knowledge: str) -> str:
    """The paragraphs of PubMedQA's `{'contexts': [...]}`, which MedHallu keeps as the text of a Python dict."""
    contexts = ast.literal_eval(knowledge)["contexts"]
    return "\n".join(paragraph.strip() for paragraph in contexts)


def read(source: Path) -> list[dict[str, Any]]:
    """The rows. Raises ValueError with one sentence for a file that is not MedHallu's."""
    rows = []
    # Not splitlines: MedHallu's texts hold line separators of Unicode's own.
    for number, line in enumerate(source.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
        where = f"{source}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not valid JSON ({error.msg}).") from None
        missing = [column for column in COLUMNS if not isinstance(row.get(column), str)]
        if missing:
            raise ValueError(f"{where}: no text in column {', '.join(missing)}; its columns are {', '.join(row)}.")
        try:
            abstract_of(row["knowledge"])
        except (ValueError, SyntaxError, KeyError, TypeError):
            raise ValueError(f"{where}: column knowledge is not the text of a dict with contexts.") from None
        rows.append(row)
    return rows


def write(target: Path, pairs: list[dict[str, str]]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
    print(f"{len(pairs)} pairs in {target}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="convert.py", description="MedHallu to prompt, chosen, rejected")
    parser.add_argument("source", type=Path, help="MedHallu's rows as JSON Lines")
    parser.add_argument("target", type=Path, help="the JSON Lines file to write")
    parser.add_argument("--held-out", type=Path, help="where every tenth pair goes")
    a = parser.parse_args(argv)
    if not a.source.is_file():
        print(f"{a.source} is not there: name MedHallu's JSON Lines file.", file=sys.stderr)
        return 2
    try:
        rows = read(a.source)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    pairs = list(pairs_of(rows))
    if not pairs:
        print(f"{a.source} has no row with two different answers: nothing to convert.", file=sys.stderr)
        return 2
    if len(pairs) < len(rows):
        print(f"{len(rows) - len(pairs)} rows left out: an answer is empty, or both are the same")
    if a.held_out is not None:
        write(a.held_out, pairs[::HELD_OUT])
        pairs = [pair for number, pair in enumerate(pairs) if number % HELD_OUT]
    write(a.target, pairs)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
