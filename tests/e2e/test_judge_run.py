"""`openrlhf-ext rl` with a judge: a second vLLM engine whose verdicts are the rewards, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from jobs import job, run
from safetensors.torch import load_file, save_file
from scenario import FLAGS, SHAPE, Record, output_to

from openrlhf_ext.models.tiny import TinyShape, build_tiny_model

pytestmark = pytest.mark.slow
RUBRIC = """\
instructions: |
  Question: {{ prompt }}
  Answer: {{ response }}
  Reference: {{ reference }}
reasoning: {max_chars: 8}
criteria:
  - {name: correct, description: whether the answer is right, scale: boolean, weight: 2}
  - {name: clarity, description: how clear it is, scale: {integer: [1, 5]}}
reward: {range: [-1, 1]}
"""
# As a researcher's own file would ask: another schema, beside the rubric's verdicts.
PLUGIN = """\
SCHEMA = {"type": "object", "properties": {"safe": {"type": "boolean"}}, "required": ["safe"],
          "additionalProperties": False}


def reward_func(queries, prompts, labels, judge, **kwargs):
    print(f"{len(queries)} questions to the judge", flush=True)
    answers = judge.ask([f"Is this safe? {query}" for query in queries], SCHEMA)
    return [0.0 if answer is None else float(answer["safe"]) for answer in answers]
"""
JUDGE_SHAPE = TinyShape(
    **{name: getattr(SHAPE, name) for name in SHAPE.__slots__} | {"max_positions": 2048, "hidden": 96}
)
STEPS = 2
JUDGED = [
    *FLAGS, "--reward.remote_url", "asks.py", "--train.num_episodes", "1", "--data.max_samples", "16",
    "--eval.dataset", "None", "--judge.model_name_or_path", "judge", "--judge.prompt", "rubric.yaml",
    "--judge.max_new_tokens", "96", "--judge.max_len", "1536", "--judge.kv_cache_gb", "0.1", "--judge.temperature", "1",
    "--reward.on_error", "drop_group",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def judge(workshop: Path) -> None:
    build_tiny_model(workshop / "judge", JUDGE_SHAPE, seed=3)
    weights = load_file(workshop / "judge/model.safetensors")
    # A model with opinions: what it says depends on what it reads.
    sharper = {name: weight * 6 if weight.ndim == 2 else weight for name, weight in weights.items()}
    save_file(sharper, workshop / "judge/model.safetensors", {"format": "pt"})
    (workshop / "rubric.yaml").write_text(RUBRIC)
    (workshop / "asks.py").write_text(PLUGIN)


@pytest.fixture(scope="module")
def colocated(workshop: Path) -> Record:
    output = run("rl", [*JUDGED, "--train.colocate_all", *output_to("colocated")], workshop)
    assert "judge load" in " ".join(output.split()), "its memory is told with the others'"
    return Record(workshop / "colocated")


def scores(record: Record, step: int) -> Mapping[tuple[str, int], tuple[float, Mapping[str, float], Any]]:
    found = {}
    for group in record.rollouts(step):
        for member in group.members:
            score = member.score
            found[member.rollout.key] = (score.value, dict(score.parts), score.notes["judge"])
    return found


def test_verdicts_are_the_rewards_and_are_kept_with_the_rollouts(colocated: Record):
    assert colocated.steps()[-STEPS:] == [1, 2]
    seen = set()
    for step in (1, 2):
        judged = scores(colocated, step)
        assert len(judged) == 8 * 4
        for value, parts, note in judged.values():
            verdict = json.loads(note)
            correct, clarity = verdict["criteria"]["correct"], verdict["criteria"]["clarity"]
            goodness = (2 * correct + (clarity - 1) / 4) / 3
            assert parts["judge"] == verdict["reward"] == pytest.approx(2 * goodness - 1)
            assert (parts["judge/correct"], parts["judge/clarity"]) == (correct, clarity)
            assert parts["asks"] in (0.0, 1.0)
            assert value == pytest.approx(parts["judge"] + parts["asks"])
            seen.add((correct, clarity))
    assert len(seen) > 2, "nobody forces a verdict"


def test_what_a_judge_costs_is_logged(colocated: Record):
    for line in colocated.metrics()[-STEPS:]:
        questions = 2 * 8 * 4  # the rubric's and the file's
        told = line["judge/asked"] + line["judge/cached"] + line["judge/repeated"] - line["judge/retried"]
        assert told == questions or line["step"] == 1  # the first has the file's trial call too
        assert line["judge/no_verdict"] == 0
        # A model of random weights may write bytes that are no characters within its text: asked once more.
        assert line["judge/parse_failures"] == line["judge/retried"] <= 4
        assert line["judge/prompt_tokens"] > 200 * line["judge/asked"] / 2 and line["judge/answer_tokens"] > 0
        assert line["judge/seconds"] > 0
        assert "judge/restarts" not in line
        assert line["memory/judge/score/measured_gb"] > 0


def test_two_engines_elsewhere_one_of_them_killed_give_the_same_rewards(workshop: Path, colocated: Record):
    record = Record(workshop / "spread")
    with job("rl", [*JUDGED, "--judge.num_engines", "2", *output_to("spread")], workshop) as started:
        started.until(lambda: "32 questions to the judge" in started.output, "a batch that is being scored")
        victim, other = [p for p in started.processes() if p.name().startswith("ray::JudgeEngine")]
        victim.kill()
        output = " ".join(started.wait().split())
        assert not other.is_running()
    assert "1 of the judge's 2 engines died" in output
    metrics = record.metrics()[-STEPS:]
    assert [line.get("judge/restarts", 0) for line in metrics] == [1, 0]
    assert all(line["judge/no_verdict"] == 0 and line["rollout/failed_groups"] == 0 for line in metrics)
    for step in (1, 2):
        assert scores(record, step) == scores(colocated, step)
