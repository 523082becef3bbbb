"""rl with agents: several turns, a tool, OpenRLHF's documented file, episodes that fail."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from jobs import job
from scenario import Record, output_to, prepare, write_jsonl

from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.track.rollouts import read_step, rollout_path
from openrlhf_ext.types import Outcome, Rollout, ScoreFailure

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).resolve().parents[2] / "examples/agents"
STEPS = 2
FLAGS = shlex.split("""
--device cpu --ds.param_dtype fp32 --actor.model_name_or_path model --data.prompt_dataset questions.jsonl
--data.input_key question --data.label_key answer --data.max_len 230 --rollout.max_new_tokens 10
--rollout.batch_size 4 --rollout.n_samples_per_prompt 4 --rollout.micro_batch_size 8 --train.batch_size 16
--train.micro_batch_size 8 --actor.adam.lr 3e-3 --algo.advantage.estimator reinforce --ckpt.save_steps -1
""")

# Answer, tool, answer: every episode whose label is 3 fails, each in another way.
TROUBLED = """
import asyncio
from openrlhf_ext.rollout.agents.contract import Agent

class Troubled(Agent):
    async def play(self, task, talks):
        talk = talks[""]
        talk.tell(task.prompt)
        first = await talk.sample(stop=["0"])
        talk.reward(0.25)
        talk.tell(f" [{task.columns['hint']}] ")
        await talk.sample(max_new_tokens=5)
        if task.label == "3":
            await asyncio.sleep(600) if task.sample else int("x")
        talk.reward(float(len(first.text)))
        return {"label": task.label}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("agents"))
    rows = [{"question": f"What is {i} + {i}?", "answer": str(i), "hint": f"hint {i}"} for i in range(4 * STEPS)]
    write_jsonl(folder / "questions.jsonl", rows)
    (folder / "troubled.py").write_text(TROUBLED)
    return folder


def play(folder: Path, file: Path, name: str, *flags: str) -> tuple[Record, str]:
    with job("rl", [*FLAGS, *output_to(name), "--train.agent_func_path", str(file), *flags], folder) as started:
        return Record(folder / name), started.wait()


@pytest.fixture(scope="module")
def troubled(folder: Path) -> tuple[Record, str]:
    return play(folder, folder / "troubled.py", "troubled", "--reward.on_error", "drop_group", "--agent.timeout_s", "5")


def trained(record: Record) -> list[Rollout]:
    return [m.rollout for step in range(1, STEPS + 1) for group in record.rollouts(step) for m in group.members]


def test_a_run_learns_from_turns_and_counts_what_failed(troubled: tuple[Record, str], folder: Path):
    record, output = troubled
    lines = record.metrics()
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert sum(line["rollout/prompts"] for line in lines) == 4 * STEPS
    assert sum(line["rollout/failed_groups"] for line in lines) == 1
    assert sum(line.get("rollout/failed_episodes/timeout", 0) for line in lines) == 3
    assert sum(line.get("rollout/failed_episodes/exception", 0) for line in lines) == 1
    for line in lines:
        assert line["mismatch/abs_max"] < 1e-4, "every action is masked right, or the trainer would see other tokens"
        assert line["reward"] == pytest.approx(line["reward/part/environment"])
        assert line["policy/optimizer_steps"] == 1
    failed = [group for step in (1, 2) for group in read_step(rollout_path(record.folder / "rollouts", step)).failed]
    outcomes = [rollout.outcome for rollout in failed[0].rollouts]
    assert [one.reason for one in outcomes if isinstance(one, ScoreFailure)] == ["exception"] + ["timeout"] * 3
    assert "Traceback" not in output, "a failed episode is a figure, not an error of ours"


def test_what_was_trained_on_token_by_token(troubled: tuple[Record, str], folder: Path):
    tokenizer = load_tokenizer(folder / "model")
    rollouts = trained(troubled[0])
    assert len(rollouts) == 4 * (4 * STEPS - 1)
    for rollout in rollouts:
        assert isinstance(rollout.outcome, Outcome)
        (first, quarter), (last, length) = rollout.outcome.turns
        label = rollout.outcome.info["label"]
        parts = [f"What is {label} + {label}?", f" [hint {label}] "]
        opened, told = (tokenizer(part, add_special_tokens=False).input_ids for part in parts)
        mask = [False] * len(opened) + [True] * (first + 1 - len(opened))
        mask += [False] * len(told) + [True] * (last - first - len(told))
        assert list(rollout.action_mask) == mask
        assert list(rollout.token_ids[: len(opened)]) == opened
        assert list(rollout.token_ids[first + 1 : first + 1 + len(told)]) == told
        said = tokenizer.decode(rollout.token_ids[len(opened) : first + 1], skip_special_tokens=True)
        assert (quarter, length) == (0.25, float(len(said)))
        assert "0" not in said[:-1], "a stop string ends a turn"


def test_a_file_that_is_no_agent_is_refused_before_anything_loads(folder: Path):
    (folder / "broken.py").write_text("import no_such_module\n")
    with job("rl", [*FLAGS, *output_to("broken"), "--train.agent_func_path", "broken.py"], folder) as started:
        output = started.wait(exit_code=2)
    assert "--train.agent_func_path" in output and "no_such_module" in output


@pytest.mark.parametrize("name", ["openrlhf_agent", "two_turn", "calculator"])
def test_the_examples_train(folder: Path, name: str):
    longer = ("--data.max_len", "250", "--agent.max_turns", "4")
    record, _ = play(folder, EXAMPLES / f"{name}.py", name, *longer)
    assert [line["step"] for line in record.metrics()] == list(range(1, STEPS + 1))
    for line in record.metrics():
        assert line["rollout/failed_groups"] == 0
        assert line["mismatch/abs_max"] < 1e-4
    several = [rollout for rollout in trained(record) if len(_starts(rollout)) > 1]
    assert name == "calculator" or several, "episodes of several turns"


def _starts(rollout: Rollout) -> list[int]:
    mask = rollout.action_mask
    return [t for t in range(1, len(mask)) if mask[t] and not mask[t - 1]]
