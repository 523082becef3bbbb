"""What fails while a run trains: a reward for some prompts, an engine, a worker's process."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from engine_scenarios import build_model
from jobs import job, run
from scenario import FLAGS, Record, output_to

from openrlhf_ext.track.rollouts import rollout_path

BAD_PROMPT = "train5:"
FUSSY = f'''\
def reward_func(queries, prompts, labels, **kwargs):
    if any(prompt.startswith("{BAD_PROMPT}") for prompt in prompts):
        raise KeyError("no grade for this one")
    return [float(len(query) % 3) for query in queries]
'''
ONE_EPISODE = ["--train.num_episodes", "1", "--eval.dataset", "None", "--reward.max_retries", "1"]
FAILING = [*FLAGS, *ONE_EPISODE, "--reward.remote_url", "fussy.py"]


@pytest.fixture(autouse=True)
def fussy(workshop: Path) -> None:
    (workshop / "fussy.py").write_text(FUSSY)


def test_groups_that_cannot_be_scored_are_dropped_and_counted(workshop: Path):
    output = run("rl", [*FAILING, "--reward.on_error", "drop_group", *output_to("dropped")], workshop)
    record = Record(workshop / "dropped")
    failed = {line["step"]: line["rollout/failed_groups"] for line in record.metrics()}
    assert sorted(failed) == [1, 2, 3]
    (step,) = [step for step, count in failed.items() if count]
    assert failed[step] == 1
    assert record.metrics()[step - 1]["rollout/failed/exception"] == 1
    groups = record.rollouts(step)
    assert len(groups) == record.metrics()[step - 1]["rollout/prompts"] - 1
    assert not any(group.prompt.text.startswith(BAD_PROMPT) for group in groups)
    kept = [row for row in pq.read_table(rollout_path(record.folder / "rollouts", step)).to_pylist() if row["failure"]]
    assert len(kept) == 4
    assert all(row["prompt"].startswith(BAD_PROMPT) and row["reward"] is None for row in kept)
    assert all("KeyError" in row["failure"] for row in kept)
    assert "step 3/3" in output


def test_a_reward_that_fails_ends_the_run_with_a_sentence(workshop: Path):
    output = run("rl", [*FAILING, *output_to("aborted")], workshop, exit_code=2)
    told = output[output.index("reward ") :]
    assert "fussy.py failed 2 times (exception:" in told
    assert "KeyError: 'no grade for this one'" in told
    assert told.rstrip().endswith("mend it, or give --reward.on_error drop_group.")
    assert not (workshop / "aborted/result.json").exists()


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run_with_a_sentence(workshop: Path):
    record = Record(workshop / "widowed")
    with job("rl", [*FLAGS, "--train.num_episodes", "100", *output_to("widowed")], workshop) as started:
        started.until(lambda: len(record.steps()) > 1, "step 1")
        (engine,) = [process for process in started.processes() if process.name().startswith("ray::Vllm")]
        engine.kill()
        killed = time.monotonic()
        output = started.wait(exit_code=2)
        assert time.monotonic() - killed < 60
    assert "A process died while we waited for" in output
    assert output.rstrip().splitlines()[-1].endswith("then continue with --ckpt.load_enable.")


@pytest.mark.slow
def test_an_engine_that_raises_ends_the_run_at_once(workshop: Path):
    """vLLM on a CPU has no kernel for heads of 8, and notices when it samples."""
    build_model(workshop / "narrow", tied=True)
    with job("rl", [*FLAGS, "--actor.model_name_or_path", "narrow", *output_to("narrow_out")], workshop) as started:
        started.until(lambda: "head_dim=8" in started.output, "the engine's error")
        raised = time.monotonic()
        output = started.wait(exit_code=1)
        assert time.monotonic() - raised < 40
    assert "RuntimeError: Unsupported CPU attention configuration: head_dim=8" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "to_all", "exit_code", "word"),
    [(signal.SIGINT, True, 130, "Interrupted."), (signal.SIGTERM, False, 143, "Terminated.")],
    ids=["ctrl-c", "kill"],
)
def test_a_run_that_is_stopped_ends_in_order(
    sent: signal.Signals, to_all: bool, exit_code: int, word: str, workshop: Path
):
    """Ctrl-C reaches every process of a terminal, `kill` the driver alone."""
    record = Record(workshop / sent.name)
    flags = [*FLAGS, "--train.num_episodes", "100", *output_to(sent.name)]
    with job("rl", flags, workshop) as started:
        started.until(lambda: len(record.steps()) > 1, "step 1")
        (os.killpg if to_all else os.kill)(started.driver.pid, sent)
        output = started.wait(exit_code, seconds=60)
    assert output.rstrip().splitlines()[-1] == word
    assert "Traceback" not in output
