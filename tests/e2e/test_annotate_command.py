"""From questions to a comparison by subject: a judge gives subjects, two models answer, `--compare` holds them up."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import MODULES, run
from statsmodels.stats.contingency_tables import mcnemar

from openrlhf_ext.cli.annotate import main as annotate
from openrlhf_ext.cli.eval import main as evaluate
from openrlhf_ext.evaluation.subjects import UNKNOWN, load_taxonomy
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit/rewards/judge"))
from openai_server import OpenAIServer, split

MODULES.setdefault("annotate", "openrlhf_ext.cli.annotate")

TAXONOMY = "1: Sums\n1.1: Small sums\n1.2: Large sums\n1.2.1: Sums of two digits\n2: Other\n"
SUMS = [(a, b) for a in range(8) for b in range(5)]


def subjects(prompt: str) -> Any:
    """The judge: a trial question is answered by its schema."""
    _, inside = split(prompt)
    if not inside:
        return {"ready": True}
    a, b = (int(number) for number in inside[0].rstrip("?").split(" + "))
    id = "1.1" if a + b < 5 else "1.2" if a + b < 10 else "1.2.1"
    return {"reason": "its sum", "subjects": [id], "primary": id}


class Adder:
    """Adds well below a limit; a tenth of its answers are wrong there all the same."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, question: str) -> Any:
        if "+" not in question:
            return "ready"
        a, b = (int(number) for number in question.rstrip("?").split(" + "))
        return f"The sum.\n#### {a + b + (a + b >= self.limit or (a, b) in ((0, 0), (1, 3)))}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"question": f"{a} + {b}?", "answer": str(a + b)}) + "\n" for a, b in SUMS]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    (tmp_path / "taxonomy.yaml").write_text(TAXONOMY)
    return tmp_path


@pytest.fixture
def servers() -> Iterator[list[OpenAIServer]]:
    opened = [OpenAIServer(rule).start() for rule in (subjects, Adder(4), Adder(20))]
    for server in opened:
        server.models = ["judge", "weak", "strong"]
    yield opened
    for server in opened:
        server.close()


def test_subjects_answers_and_a_comparison(
    folder: Path, servers: list[OpenAIServer], capsys: pytest.CaptureFixture[str]
) -> None:
    judge, weak, strong = (server.url for server in servers)
    flags = f"--judge.url {judge} --judge.served_model_name judge --data.dataset rows.jsonl --data.shown_keys question"
    assert annotate(f"{flags} --annotate.taxonomy taxonomy.yaml --annotate.output known.jsonl".split()) == 0
    for name, url in (("weak", weak), ("strong", strong)):
        flags = (
            f"--model.url {url} --model.served_model_name {name} --data.dataset known.jsonl --data.input_key question"
        )
        flags += " --data.label_key answer --eval.scorer number_after:#### --eval.subject_column subjects"
        assert evaluate(f"{flags} --eval.taxonomy taxonomy.yaml --eval.output {name}".split()) == 0
    capsys.readouterr()
    assert evaluate(["--compare", "weak", "strong", "--eval.output", "compared"]) == 0
    shown = capsys.readouterr().out

    found = json.loads(Path("compared/comparison.json").read_text())["compared"]
    right = {limit: [str(a + b) == str(Adder(limit)(f"{a} + {b}?").rpartition(" ")[2]) for a, b in SUMS]
             for limit in (4, 20)}  # fmt: skip
    only_strong = sum(s and not w for w, s in zip(right[4], right[20], strict=True))
    p = mcnemar([[0, 0], [only_strong, 0]], exact=False, correction=False).pvalue
    assert (found["rate"]["only_a"], found["rate"]["only_b"]) == (0, only_strong)
    assert found["rate"]["p"] == pytest.approx(p)
    nodes = {node["id"]: node["rate"] for node in found["subjects"]["nodes"]}
    assert {id: cell["n"] for id, cell in nodes.items()} == {"1": 40, "1.1": 15, "1.2": 25, "1.2.1": 3}
    assert nodes["1.2"]["told"] and not nodes["1.2.1"]["told"]
    assert "    1.2.1 Sums of two digits" in shown and "more than chance, B is better." in shown
    assert Path("compared/comparison.png").is_file() and Path("weak/subjects.png").is_file()


@pytest.mark.slow
def test_an_engine_of_its_own_gives_subjects_of_the_taxonomy_alone(folder: Path) -> None:
    """A model of random weights: decoding alone makes its answers ids of the taxonomy."""
    build_tiny_model(folder / "judge", TinyShape(hidden=64, layers=1, heads=2, kv_heads=1, intermediate=64))
    (folder / "rows.jsonl").write_text("".join((folder / "rows.jsonl").read_text().splitlines(keepends=True)[:6]))
    flags = "--judge.model_name_or_path judge --judge.kv_cache_gb 0.05 --device cpu --data.dataset rows.jsonl"
    flags += " --data.shown_keys question answer --annotate.taxonomy taxonomy.yaml --annotate.output out.jsonl"
    output = run("annotate", [*flags.split(), "--annotate.batch_size", "4"], folder)
    assert "6 of 6 rows with subjects, in out.jsonl" in output and "parse_failures 0" in output, output
    taxonomy = load_taxonomy("taxonomy.yaml")
    for line in Path("out.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert 1 <= len(row["subjects"]) <= 3 and row["subjects_primary"] in row["subjects"]
        assert all(id in taxonomy or id == UNKNOWN for id in row["subjects"])
        assert not [repair for repair in row["subjects_repairs"] if repair.startswith(("odd_id", "unknown_id"))]
