"""GSM8K's rows to those of a teacher: a prompt that holds question and solution, and both by themselves.

    python examples/rlt/convert.py data/gsm8k/train.jsonl data/rlt/train.jsonl

GSM8K: Cobbe et al. 2021, arXiv:2110.14168; {"question", "answer"} rows, gzip too.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PROMPT = """\
You are a teacher. Below are a question and its solution. Write down how one comes to think of the solution, step by
step, for a student who sees the question and your explanation, and not the solution.
Put the explanation between <explanation> and </explanation>.

Question: {question}

Solution: {solution}"""

CALCULATOR = re.compile(r"<<.*?>>")
"""GSM8K's notes for a calculator, which stand within the solutions."""


def rows_of(problems: Iterable[Mapping[str, str]]) -> Iterator[dict[str, str]]:
    for problem in problems:
        question, solution = problem["question"].strip(), CALCULATOR.sub("", problem["answer"]).strip()
        prompt = PROMPT.format(question=question, solution=solution)
        yield {"prompt": prompt, "question": question, "solution": solution}


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        print("usage: convert.py GSM8K.jsonl[.gz] OUT.jsonl", file=sys.stderr)
        return 2
    source, target = map(Path, argv)
    if not source.is_file():
        print(f"{source} is not there: name a file of GSM8K.", file=sys.stderr)
        return 2
    opened = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file if line.strip()]
    wrong = next((i for i, row in enumerate(problems, 1) if not {"question", "answer"} <= row.keys()), None)
    if wrong is not None or not problems:
        where = f"row {wrong} has no question and answer" if wrong else "it has no rows"
        print(f"{source} is no file of GSM8K: {where}.", file=sys.stderr)
        return 2
    rows = list(rows_of(problems))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows in {target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
