"""The biggest moments: deep models from shallow ones, the terms they give, and how they move with what is asked."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from openrlhf_ext.plan import moments
from openrlhf_ext.plan.moments import biggest_moment, transient_terms
from openrlhf_ext.plan.types import Lora, ModelRun, ModelShape, Pass

DEEP = ModelShape("deep", "qwen3", 512, 24, 8, 2, 64, 1536, 8000, 4096, tied=False, qk_norm=True)
WINDOWS = tuple(None if layer % 6 == 5 else 64 for layer in range(32))
GEMMA = replace(DEEP, model_type="gemma3_text", layers=32, norms_per_layer=4, windows=WINDOWS, tied=True)
TRAIN = Pass(rows=4, length=256, tokens=1024, selected=600, backward=True)
RUN = ModelRun("policy", DEEP, "causal_lm", True, 1, "gpus", zero_stage=2, passes=(TRAIN,))

RUNS = {
    "full": RUN,
    "stage 0": replace(RUN, zero_stage=0, dtype="fp32"),
    "sharded": replace(RUN, zero_stage=3, ranks=8),
    "checkpointing": replace(RUN, gradient_checkpointing=True),
    "re-entrant": replace(RUN, gradient_checkpointing=True, reentrant=True),
    "adapters": replace(RUN, lora=Lora(16, 32)),
    "windows": replace(RUN, shape=GEMMA),
    "windows, checkpointing": replace(RUN, shape=GEMMA, gradient_checkpointing=True),
}


def top(run: ModelRun) -> int:
    return sum(biggest_moment(run, run.passes)[1].values())


@pytest.mark.parametrize("name", RUNS)
def test_a_deep_model_is_two_shallow_ones_continued(name):
    run = RUNS[name]
    whole = max(sum(kinds.values()) for kinds in moments._simulated(run, TRAIN, False).values())
    assert top(run) == pytest.approx(whole, rel=0.002)


def test_eighty_layers_take_no_time():
    run = replace(RUN, shape=replace(DEEP, layers=80, vocab=8001))
    start = time.perf_counter()
    transient_terms(run)
    assert time.perf_counter() - start < 0.5


def test_what_saves_memory_saves_it():
    plain = top(RUN)
    assert top(RUNS["checkpointing"]) < plain
    assert top(RUNS["checkpointing"]) <= top(RUNS["re-entrant"])
    wide = replace(RUNS["adapters"], shape=replace(DEEP, vocab=64_000), gradient_checkpointing=True)
    assert top(replace(wide, logprob_chunk=128)) < top(wide)
    assert top(replace(RUN, passes=(replace(TRAIN, rows=2, tokens=512, selected=300),))) < plain
    assert top(replace(RUN, lora=Lora(16, 32))) < plain


def test_a_frozen_model_computes_without_graph():
    frozen = replace(RUN, trainable=False, zero_stage=0, passes=(replace(TRAIN, backward=False),))
    moment, kinds = biggest_moment(frozen, frozen.passes)
    assert moment.startswith("forward") and "gradients" not in kinds
    assert 5 * sum(kinds.values()) < top(RUN)


def test_terms_are_those_of_the_phases_in_which_a_model_computes():
    evaluated = replace(RUN, role="model", passes=(TRAIN, replace(TRAIN, backward=False)))
    assert {phase for term in transient_terms(evaluated) for phase in term.phases} == {"train", "evaluate"}
    reward = replace(
        RUN, role="reward", kind="reward", trainable=False, zero_stage=0, passes=(replace(TRAIN, backward=False),)
    )
    assert {phase for term in transient_terms(reward) for phase in term.phases} == {"score"}
    assert all(term.bytes > 0 and term.where == "gpu" for term in transient_terms(evaluated))


def test_the_optimizer_step_is_the_peak_of_a_large_model_with_few_tokens():
    few = replace(TRAIN, rows=1, length=16, tokens=16, selected=8)
    assert biggest_moment(replace(RUN, passes=(few,), zero_stage=3), (few,))[0] == "step, optimizer"
    assert any(term.name == "optimizer step" for term in transient_terms(replace(RUN, passes=(few,), zero_stage=3)))
