"""RLT from the shipped recipes, on a CPU with tiny models: everything in turns, and two engines beside training.

The YAML is the same; the flags here only make it small.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from jobs import job
from scenario import Record, output_to, write_jsonl

from openrlhf_ext.models.tiny import TinyShape, build_tiny_model
from openrlhf_ext.ops.student_reward import RewardTerms, student_reward

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "rlt"
SHAPE = TinyShape(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=96, vocab=400, max_positions=512)
STEPS = 20
PROMPT = "Explain between <explanation> and </explanation>.\nQuestion: {question}\nSolution: {solution}"

SMALL = shlex.split("""
--device cpu --ds.param_dtype fp32 --actor.model_name_or_path teacher --student.model_name_or_path student
--data.prompt_dataset train.jsonl --data.max_len 160 --rollout.max_new_tokens 12
--rollout.batch_size 2 --rollout.n_samples_per_prompt 4 --rollout.micro_batch_size 8
--train.batch_size 8 --train.micro_batch_size 4 --actor.adam.lr 1e-3 --actor.adam.eps 1e-6
--ckpt.save_steps 10 --ref.sync_steps 4
""")  # fmt: skip
SPREAD = shlex.split("--actor.num_gpus_per_node 2 --ref.num_gpus_per_node 2 --vllm.num_engines 2")

ASKED = shlex.split("""
--student.from_reference --student.teacher_logprobs policy --rollout.temperature 0.7 --data.max_samples 4
--data.input_key prompt --data.apply_chat_template --train.colocate_all --ds.zero_stage 2
--algo.advantage.estimator group_norm
""")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rlt")
    rows = []
    for i in range(2 * STEPS):
        question, solution = f"{i} + {i % 7} = ?", f"It is {i + i % 7}."
        rows.append({"prompt": PROMPT.format(question=question, solution=solution), "question": question,
                     "solution": solution})  # fmt: skip
    corpus = [row["prompt"] for row in rows]
    for seed, name in enumerate(("teacher", "student")):
        build_tiny_model(folder / name, SHAPE, corpus=corpus, seed=seed)
    write_jsonl(folder / "train.jsonl", rows)
    return folder


def command(recipe: str, name: str) -> list[str]:
    config = ["--config", str(RECIPES / "teacher_rlt.yaml"), str(RECIPES / recipe)]
    return [*config, *SMALL, *output_to(name), "--student.debug_dir", f"{name}/debug"]


@pytest.fixture(scope="module")
def mono(workshop: Path) -> Record:
    with job("rl", command("one_gpu.yaml", "mono"), workshop) as started:
        started.wait()
    return Record(workshop / "mono")


@pytest.fixture(scope="module")
def spread(workshop: Path) -> Record:
    with job("rl", [*command("spread.yaml", "spread"), *SPREAD], workshop) as started:
        started.wait()
    return Record(workshop / "spread")


@pytest.mark.parametrize("recipe", ["mono", "spread"])
def test_twenty_steps_with_every_term_of_the_reward(recipe: str, request: pytest.FixtureRequest, workshop: Path):
    record: Record = request.getfixturevalue(recipe)
    lines = [line for line in record.metrics() if line["step"]]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        for part in ("solution_mean", "solution_min", "divergence_mean", "divergence_max", "match"):
            assert f"reward/part/student/{part}" in line
        assert line["reward"] == pytest.approx(line["reward/part/student"])
        assert line["mismatch/abs_max"] < 1e-4, "the teacher's log-probs are those of the sampler"
        assert line["reward/student/tokens"] > 0
    assert any(line["policy/grad_norm"] > 0 for line in lines)
    assert json.loads((record.folder / "result.json").read_text())["steps"] == STEPS


@pytest.mark.parametrize("recipe", ["mono", "spread"])
def test_the_debug_files_hold_what_was_trained_on(recipe: str, request: pytest.FixtureRequest):
    record: Record = request.getfixturevalue(recipe)
    files = sorted((record.folder / "debug").iterdir())
    assert len(files) == STEPS
    for step, file in enumerate(files, start=1):
        rows = {(row["prompt_id"], row["sample"]): row for row in pq.read_table(file).to_pylist()}
        members = [member for group in record.rollouts(step) for member in group.members]
        assert len(rows) == len(members) == 8
        for member in members:
            row = rows[member.rollout.key]
            assert member.score.value == pytest.approx(row["reward"], abs=1e-9)
            numbers = [_tensor(row[name]) for name in ("solution_logp", "teacher_logp", "student_logp")]
            again, _ = student_reward(*numbers, matched=row["parts"]["match"] == 0, terms=RewardTerms())
            assert row["reward"] == pytest.approx(again, abs=1e-5)
            sampled = [logp for logp, action in zip(member.rollout.logprobs, member.rollout.action_mask) if action]
            if row["parts"]["match"]:  # without tags it is the answer, but for its end
                assert len(row["teacher_logp"]) in (len(sampled) - 1, len(sampled))
                assert row["teacher_logp"] == pytest.approx(sampled[: len(row["teacher_logp"])], abs=1e-6)


def _tensor(values: list[float]):
    import torch

    return torch.tensor(values, dtype=torch.float64)


def test_one_yaml_gives_the_same_first_rewards_however_it_is_spread(mono: Record, spread: Record):
    for ours, theirs in zip(mono.rollouts(1), spread.rollouts(1), strict=True):
        for one, other in zip(ours.members, theirs.members, strict=True):
            assert one.rollout.token_ids.tolist() == other.rollout.token_ids.tolist()
            assert one.score.value == pytest.approx(other.score.value, abs=1e-4)


def test_the_reference_as_the_student_and_a_teacher_that_is_asked(workshop: Path):
    """Two steps with nothing but policy and reference; the trainer's forward agrees with the sampler."""
    own = list(SMALL)
    for name in ("--student.model_name_or_path", "--ref.sync_steps"):
        del own[(at := own.index(name)) : at + 2]
    argv = [*own, *ASKED, *output_to("asked"), "--student.debug_dir", "asked/debug"]
    with job("rl", argv, workshop) as started:
        started.wait()
    record = Record(workshop / "asked")
    assert [line["step"] for line in record.metrics() if line["step"]] == [1, 2]
    for step, file in enumerate(sorted((record.folder / "debug").iterdir()), start=1):
        rows = {(row["prompt_id"], row["sample"]): row for row in pq.read_table(file).to_pylist()}
        for member in (member for group in record.rollouts(step) for member in group.members):
            row = rows[member.rollout.key]
            sampled = [logp for logp, action in zip(member.rollout.logprobs, member.rollout.action_mask) if action]
            if row["parts"]["match"]:
                assert row["teacher_logp"] == pytest.approx(sampled[: len(row["teacher_logp"])], abs=1e-4)
            assert member.score.value == pytest.approx(row["reward"], abs=1e-9)


@pytest.mark.parametrize("recipe", ["mono", "spread"])
def test_the_reference_followed_and_is_in_the_checkpoints(recipe: str, request: pytest.FixtureRequest):
    record: Record = request.getfixturevalue(recipe)
    followed = [line["step"] for line in record.metrics() if line.get("reference/followed")]
    assert followed == [4, 8, 12, 16, 20]
    saved = sorted((record.folder / "checkpoints").glob("*/reference/model.safetensors"))
    assert len(saved) == 2
    assert saved[0].read_bytes() != saved[1].read_bytes()


def test_a_run_resumed_from_between_is_the_uninterrupted_one(workshop: Path, spread: Record):
    import shutil

    shutil.copytree(workshop / "spread/checkpoints", workshop / "again/checkpoints")
    newest = max((workshop / "again/checkpoints").glob("*20*"))
    shutil.rmtree(newest)
    argv = [*command("spread.yaml", "again"), *SPREAD, "--ckpt.load_enable"]
    with job("rl", argv, workshop) as started:
        started.wait()
    resumed = Record(workshop / "again")
    unlike = ("reward/student/seconds",)
    cut = [[{k: v for k, v in line.items() if k not in unlike} for line in record.repeatable(11)]
           for record in (resumed, spread)]  # fmt: skip
    assert cut[0] == cut[1]
    reference = [
        next((workshop / name / "checkpoints").glob("*20*/reference/model.safetensors")).read_bytes()
        for name in ("again", "spread")
    ]
    assert reference[0] == reference[1]
