"""`eval` of adapters, of what a training left, by a reward model, and by a reward file that asks a judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import MODULES, run
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from openrlhf_ext.evaluation.answers import AnswerRow, read_answers
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model

pytestmark = pytest.mark.slow
MODULES.setdefault("eval", "openrlhf_ext.cli.eval")

SHAPE = TinyShape(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=96)
ROWS = [{"input": f"Is {n} even?", "label": "yes" if n % 2 == 0 else "no, it is odd"} for n in range(6)]
FLAGS = (
    "--data.dataset rows.jsonl --data.label_key label --data.apply_chat_template --vllm.kv_cache_gb 0.05 --device cpu"
)
PLUGIN = """
def reward_func(queries, prompts, labels, judge, **kwargs):
    schema = {"type": "object", "properties": {"good": {"type": "boolean"}}, "required": ["good"],
              "additionalProperties": False}
    answers = judge.ask(["Is this good? " + query for query in queries], schema=schema, max_new_tokens=16)
    return [float("nan") if answer is None else float(answer["good"]) for answer in answers]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and what a training leaves: adapters, and the model with adapters merged, in `trained`."""
    folder = tmp_path_factory.mktemp("eval_models")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "reward.py").write_text(PLUGIN)
    build_tiny_model(folder / "base", SHAPE)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    base.save_pretrained(folder / "base")
    lora = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32), lora)
    adapted.save_pretrained(folder / "trained/adapters")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(folder / "trained/model")
    AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / "trained/model")
    AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=1).save_pretrained(folder / "rm")
    AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / "rm")
    return folder


def evaluated(folder: Path, model: str, output: str, flags: str) -> tuple[list[AnswerRow], dict[str, Any]]:
    run("eval", f"--model.model_name_or_path {model} {FLAGS} --eval.output {output} {flags}".split(), folder)
    return read_answers(folder / output)[1], json.loads((folder / output / "result.json").read_text())


def plain_logprob(model: Any, tokenizer: Any, row: dict[str, str]) -> float:
    """Of the reference behind the prompt, by transformers, written out plainly."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": row["input"]}], tokenize=False, add_generation_prompt=True
    )
    asked, told = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, row["label"]))
    with torch.no_grad():
        logp_TV = model(torch.tensor([asked + told])).logits[0, :-1].log_softmax(-1)
    places = range(len(asked) - 1, len(asked) + len(told) - 1)
    return sum(float(logp_TV[place, token]) for place, token in zip(places, told, strict=True))


def test_adapters_and_the_merged_model_of_a_training_are_one(folder: Path) -> None:
    said, _ = evaluated(folder, "trained/adapters", "said", "--eval.scorer none --eval.max_new_tokens 8")
    adapters, of_adapters = evaluated(folder, "trained/adapters", "a", "--eval.perplexity")
    whole, of_whole = evaluated(folder, "trained", "b", "--eval.perplexity --eval.scorer none --eval.max_new_tokens 8")
    assert [row.answer for row in said] == [row.answer for row in whole], "vLLM puts adapters on their base"
    assert of_adapters["answerer"]["name"] == "trained/adapters"
    assert of_adapters["answerer"]["fingerprint"] != of_whole["answerer"]["fingerprint"]
    model = AutoModelForCausalLM.from_pretrained(folder / "trained/model", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    expected = [plain_logprob(model, tokenizer, row) for row in ROWS]
    # vLLM may compute in bf16
    assert [row.reference_logprob for row in whole] == pytest.approx(expected, rel=2e-3)
    assert [row.reference_logprob for row in adapters] == pytest.approx(expected, rel=2e-3)
    others = [plain_logprob(base, tokenizer, row) for row in ROWS]
    assert max(abs(a - b) for a, b in zip(expected, others, strict=True)) > 0.1, "the adapters change something"
    assert all(row.outcome == "ungraded" and row.answer == "" for row in adapters)
    tokens = sum(row.reference_tokens for row in whole)
    mean = torch.tensor(sum(expected) / tokens)
    assert of_whole["perplexity"]["perplexity"]["value"] == pytest.approx(float((-mean).exp()), rel=1e-2)


def test_a_reward_model_scores_and_without_a_threshold_nobody_is_right(folder: Path) -> None:
    flags = "--eval.scorer reward_model --reward.model_name_or_path rm --ds.param_dtype fp32 --eval.max_new_tokens 8"
    rows, result = evaluated(folder, "base", "c", flags)
    tokenizer = AutoTokenizer.from_pretrained(folder / "rm")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "rm", dtype=torch.float32).eval()
    for row in rows:
        asked = [{"role": "user", "content": row.prompt}]
        text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) + row.answer
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            expected = float(model.score(model.model(torch.tensor([ids])).last_hidden_state[0, -1])[0])
        if row.finish == "length":
            assert row.score == pytest.approx(expected, rel=2e-3)
    assert any(row.finish == "length" for row in rows)
    assert result["figures"]["all"]["outcomes"]["ungraded"] == 6
    assert result["figures"]["all"]["accuracy"]["value"] is None
    assert result["figures"]["all"]["score"]["value"] == pytest.approx(sum(row.score or 0 for row in rows) / 6)


def test_a_reward_file_asks_a_judge_that_runs_after_the_model(folder: Path) -> None:
    flags = "--eval.scorer reward.py --judge.model_name_or_path base --judge.kv_cache_gb 0.05 --eval.max_new_tokens 8"
    rows, result = evaluated(folder, "base", "d", flags)
    assert {row.outcome for row in rows} <= {"right", "wrong", "truncated", "unanswered"} and len(rows) == 6
    assert all(row.score in (0.0, 1.0) for row in rows)
    assert result["rule"].startswith("reward.py ")


def test_a_task_of_the_harness(folder: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval-harness is an extra (pip install openrlhf-ext[lm-eval])")
    (folder / "task").mkdir()
    (folder / "task/even.yaml").write_text(f"""\
task: even_numbers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "rows.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{input}}}}\\nAnswer:"
doc_to_choice: ["yes", "no, it is odd"]
doc_to_target: "{{{{['yes', 'no, it is odd'].index(label)}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
""")
    flags = "--model.model_name_or_path base --eval.lm_eval task/even.yaml --eval.output lm --device cpu"
    run("eval", flags.split(), folder)
    result = json.loads((folder / "lm/lm_eval.json").read_text())
    assert 0 <= result["tasks"]["even_numbers"]["acc,none"] <= 1
