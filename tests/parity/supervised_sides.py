"""What the two processes of tests/parity/test_trl_supervised.py do: five optimizer steps of each task, theirs and ours.

Both read the same folder: `model` (a causal LM), `scored` (the same with a head of one number), `sft.jsonl`,
`pairs.jsonl`. Both go through the rows in the order of the file.
"""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS, BATCH = 5, 8
LR, BETAS, EPS, DECAY, MAX_NORM, BETA = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0, 0.1


@dataclass(frozen=True, slots=True)
class Taken:
    """Of each step its loss and the norm of its gradient before clipping; of each row what the side trained on."""

    losses: list[float]
    norms: list[float]
    rows: list[Any]


def write_rows(folder: Path) -> None:
    """Rows of unequal lengths; the better answers of pairs are no longer or shorter than the worse ones."""
    draw = random.Random(7)
    words = ["fever", "no", "cough", "since", "two", "days:", "give", "nothing,", "ask", "again", "(at", "9)"]

    def said(most: int) -> str:
        return "".join(f" {word}" for word in draw.choices(words, k=draw.randint(1, most)))

    prompts = [f"Question {number}:{said(12)}?\nAnswer:" for number in range(STEPS * BATCH)]
    sft = [{"prompt": prompt, "completion": said(14)} for prompt in prompts]
    pairs = [{"prompt": prompt, "chosen": f"{said(14)}.", "rejected": f"{said(14)}!"} for prompt in prompts]
    for name, rows in (("sft", sft), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def both_sides(folder: Path) -> tuple[dict[str, Taken], dict[str, Taken]]:
    """Ours and theirs by task, from a process each: neither library sees what the other changed."""
    import torch

    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_run, args=(side, folder)) for side in (ours, theirs)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=110)
    stuck = [process for process in processes if process.is_alive()]
    for process in stuck:
        process.kill()
    assert not stuck and not any(p.exitcode for p in processes), f"exit codes {[p.exitcode for p in processes]}"
    found = [torch.load(folder / f"{name}.pt", weights_only=False) for name in ("ours", "theirs")]
    return found[0], found[1]


def _run(side: Callable[[Path], dict[str, Taken]], folder: Path) -> None:
    import torch

    torch.set_num_threads(1)
    torch.save(side(folder), folder / f"{side.__name__}.pt")


# --- ours --------------------------------------------------------------------------------------------------


def ours(folder: Path) -> dict[str, Taken]:
    """Micro-batches of three rows or pairs."""
    from openrlhf_ext.batch.pad import token_batch
    from openrlhf_ext.batch.partition import SplitSettings
    from openrlhf_ext.data.preferences import PreferenceSettings, load_preferences
    from openrlhf_ext.data.sft import SftSettings, load_sft
    from openrlhf_ext.data.tokenizer import load_tokenizer
    from openrlhf_ext.ops.preference_loss import DpoLossSettings
    from openrlhf_ext.trainers.objectives import SftObjective
    from openrlhf_ext.trainers.pairs import pair_batch, pair_step
    from openrlhf_ext.trainers.preference import DpoObjective, ScoreObjective
    from openrlhf_ext.trainers.supervised import sft_step

    tokenizer, split = load_tokenizer(str(folder / "model")), SplitSettings(rows=3)
    texts = SftSettings(str(folder / "sft.jsonl"), input_key="prompt", output_key="completion")
    examples = load_sft(texts, tokenizer).examples
    pairs = load_preferences(PreferenceSettings(str(folder / "pairs.jsonl"), prompt_key="prompt"), tokenizer).pairs
    answers = [(list(pair.prompt_ids), list(pair.chosen_ids), list(pair.rejected_ids)) for pair in pairs]
    batches = [pair_batch(part, tokenizer.pad_token_id) for part in _parts(pairs)]

    steps = [sft_step(token_batch(part, tokenizer.pad_token_id), split, 1) for part in _parts(examples)]
    shown = [(list(row.token_ids), list(row.action_mask)) for row in examples]
    taken = {"sft": _train(_role(folder / "model"), steps, SftObjective(), shown)}

    steps = [pair_step(batch, {}, split, 1) for batch in batches]
    scorer = _role(folder / "scored", kind="reward", new_head=True)
    taken["rm"] = _train(
        scorer, steps, ScoreObjective(), [(p + chosen, p + rejected) for p, chosen, rejected in answers]
    )

    model = _role(folder / "model")  # its own reference as long as it has learned nothing
    steps = [pair_step(batch, {"ref_logp": model.logprobs(batch)}, split, 1) for batch in batches]
    taken["dpo"] = _train(model, steps, DpoObjective(DpoLossSettings(beta=BETA)), answers)
    return taken


def _role(path: Path, **model: Any) -> Any:
    from openrlhf_ext.batch.partition import SplitSettings
    from openrlhf_ext.device import choose_device
    from openrlhf_ext.device.rendezvous import free_port
    from openrlhf_ext.engine.process import init_process
    from openrlhf_ext.engine.spec import EngineSpec
    from openrlhf_ext.models.spec import ModelSpec
    from openrlhf_ext.trainers.local import LocalRole

    device = choose_device("cpu")
    init_process(device, 0, 1, 0, "127.0.0.1", free_port("127.0.0.1"))
    from openrlhf_ext.engine.deepspeed_engine import DeepSpeedEngine

    spec = EngineSpec(
        zero_stage=0, dtype="fp32", lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, max_norm=MAX_NORM,
        lr_scheduler="constant", warmup_ratio=0.0, total_steps=STEPS,
    )  # fmt: skip
    engine: Any = DeepSpeedEngine(ModelSpec(str(path), dtype="fp32", **model), spec, device)
    return LocalRole(engine, SplitSettings(rows=BATCH))


def _train(role: Any, steps: Sequence[Any], objective: Any, rows: list[Any]) -> Taken:
    reports = [role.update([step], objective) for step in steps]
    return Taken([r["loss"].value for r in reports], [r["grad_norm"].value for r in reports], rows)


def _parts(rows: Sequence[Any]) -> list[Sequence[Any]]:
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


# --- theirs ------------------------------------------------------------------------------------------------


def theirs(folder: Path) -> dict[str, Taken]:
    """Two micro-batches of four rows or pairs a step."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

    shared = {
        "output_dir": str(folder / "trl"), "max_steps": STEPS, "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": BATCH // 2, "gradient_accumulation_steps": 2, "max_length": None,
        "learning_rate": LR, "lr_scheduler_type": "constant", "adam_beta1": BETAS[0], "adam_beta2": BETAS[1],
        "adam_epsilon": EPS, "weight_decay": DECAY, "max_grad_norm": MAX_NORM, "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "model_init_kwargs": {"dtype": "float32"}, "logging_steps": 1,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip

    def train(kind: Any, config: Any, model: str, rows: str) -> Any:
        lines = (folder / f"{rows}.jsonl").read_text(encoding="utf-8").splitlines()
        trainer = kind(
            model=str(folder / model),
            args=config,
            train_dataset=Dataset.from_list([json.loads(line) for line in lines]),
            processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        )
        trainer.train()
        return trainer

    def taken(trainer: Any, row: Callable[[Any], Any]) -> Taken:
        log = [line for line in trainer.state.log_history if "loss" in line]
        return Taken(
            *([line[name] for line in log] for name in ("loss", "grad_norm")), [*map(row, trainer.train_dataset)]
        )

    sft = train(SFTTrainer, SFTConfig(**shared), "model", "sft")
    rm = train(RewardTrainer, RewardConfig(**shared), "scored", "pairs")
    dpo = train(DPOTrainer, DPOConfig(beta=BETA, loss_type=["sigmoid"], **shared), "model", "pairs")
    return {
        "sft": taken(sft, lambda row: (row["input_ids"], [label != -100 for label in row["labels"]])),
        "rm": taken(rm, lambda row: (row["chosen_ids"], row["rejected_ids"])),
        "dpo": taken(dpo, lambda row: (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])),
    }
