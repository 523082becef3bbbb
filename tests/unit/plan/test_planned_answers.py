"""What a plan knows of answers that a model in training samples in its evaluation."""

from __future__ import annotations

from dataclasses import replace

from planned_runs import arguments

from openrlhf_ext.plan.make import make_plan

SFT = (
    "--model.model_name_or_path Qwen/Qwen3-0.6B --data.dataset rows.jsonl --data.output_key answer --data.max_len 1024 "
    "--eval.dataset held_out.jsonl --eval.steps 10 --ds.zero_stage 0"
)
SCORER = " --eval.scorer exact --eval.max_new_tokens 256 --eval.answers_at_a_time 32"
LAYERS, HEADS, HEAD_DIM, VOCABULARY = 28, 8, 128, 151_936  # of Qwen3-0.6B: keys and values, and tokens


def planned(flags: str, eval_rows: int = 100):
    command, config, explicit, hardware, data = arguments("sft", flags, 80.0)
    return make_plan(command, config, explicit, hardware, replace(data, eval_rows=eval_rows))


def test_keys_values_and_logits_of_answers_are_counted_in_evaluations_alone() -> None:
    terms = {term.name: term for term in planned(SFT + SCORER).memory.terms if "of answers" in term.name}
    assert {phase for term in terms.values() for phase in term.phases} == {"evaluate"}
    layer = 32 * 1024 * 2 * HEADS * HEAD_DIM * 2  # of 32 sequences of 1,024 tokens, in bf16
    assert terms["keys and values of answers"].bytes == (LAYERS + 1) * layer
    assert terms["logits of answers"].bytes >= 3 * 32 * VOCABULARY * 4
    assert not [term for term in planned(SFT).memory.terms if "of answers" in term.name]


def test_answers_take_time_and_fewer_of_them_less() -> None:
    without, some, all_rows = planned(SFT), planned(SFT + SCORER + " --eval.max_samples 32"), planned(SFT + SCORER)
    times = [plan.time.parts["evaluate"] for plan in (without, some, all_rows) if plan.time is not None]
    assert times[0] < times[1] < times[2]
    assert some.time is not None and all_rows.time is not None and without.time is not None
    assert all_rows.time.parts["update"] == without.time.parts["update"]
