"""A driver's step costs Python nothing for a token: as many bytecodes, however long the answers (caches aside)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from rl_job import SETTINGS

from openrlhf_ext.batch.packed import PackedRollouts
from openrlhf_ext.batch.pad import token_batch
from openrlhf_ext.batch.split import inference_split, scatter_rows, train_steps
from openrlhf_ext.batch.types import Signals
from openrlhf_ext.ops.advantage import AdvantageSettings
from openrlhf_ext.track.packed_step import PackedStep
from openrlhf_ext.track.rollouts import RecordedStep, read_step, write_rollouts
from openrlhf_ext.trainers.experience import estimate
from openrlhf_ext.trainers.reports import experience_report, rollout_report
from openrlhf_ext.trainers.rollouts import StepRollouts
from openrlhf_ext.types import Prompt, Rollout, RolloutGroup, Score, ScoredRollout

SPLIT = replace(SETTINGS.split, ranks=2)


def bytecodes(work: Callable[[], Any]) -> int:
    """How many Python executed, in all functions."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def groups(tokens: int) -> tuple[RolloutGroup, ...]:
    def rollout(prompt: int, sample: int) -> Rollout:
        ids = np.arange(tokens, dtype=np.int32)
        action = ids >= 2
        return Rollout(f"p{prompt}", sample, ids, action, np.where(action, -0.5, 0.0), "answer", "stop", (0, 0))

    return tuple(
        RolloutGroup(
            Prompt(f"p{i}", (0, 1), "ask"),
            tuple(ScoredRollout(rollout(i, k), Score(float(i * k))) for k in range(4)),
        )
        for i in range(4)
    )


def a_step(tokens: int, folder: Path) -> int:
    recorded = RecordedStep(0, groups(tokens))
    settings = replace(SETTINGS, advantage=AdvantageSettings(estimator="group_norm"))
    sampled = StepRollouts(recorded, last=False)

    def work() -> None:
        unpacked = list(PackedRollouts.of(sampled.rollouts))
        batch = token_batch(unpacked, 0)
        blocks = [asked.block for asked in inference_split(batch, SPLIT)]
        logp_BA = scatter_rows(blocks, [block.action_BA * -0.5 for block in blocks], *batch.action_BA.shape)
        signals = Signals(logp_BA, logp_BA)
        experience = estimate(recorded.groups, batch, signals, settings)
        rollout_report(sampled, 0)
        experience_report(recorded.groups, experience, signals, settings)
        train_steps(experience, SPLIT, batch_size=8, seed=1)
        read_step(write_rollouts(folder, 1, PackedStep.of(recorded).unpacked()))

    work()  # what is imported or cached by the first
    with torch.no_grad():
        return bytecodes(work)


def test_longer_answers_are_no_more_python(tmp_path: Path) -> None:
    short, long = a_step(16, tmp_path), a_step(256, tmp_path)
    assert abs(long - short) < 16 * 240, "one bytecode for each token of 16 rollouts would be more"


def test_a_loop_over_tokens_would_be_seen() -> None:
    short, long = (bytecodes(lambda n=n: [token + 1 for token in range(n)]) for n in (16, 256))
    assert long - short >= 240
