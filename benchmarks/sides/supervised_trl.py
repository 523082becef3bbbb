"""TRL's side: its SFTTrainer, RewardTrainer or DPOTrainer, held at the start of every epoch until it is its turn."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from measure import Turn

from sides.gate import Gate
from sides.supervised_rows import MemoryClock, SupervisedWorkload, Task, lengths_of

EPOCHS = 100_000
"""More than anyone will wait for: the gate ends the run."""

IGNORED = -100


class NoMoreTurns(Exception):
    pass


def serve(workload: SupervisedWorkload, gate: Gate) -> None:
    """In the order that is TRL's default: at random."""
    train(workload, gate)


def train(workload: SupervisedWorkload, gate: Gate, **settings: Any) -> None:
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    class DPOTrainer(trl.DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            """The rows are tokens already, which the other two trainers see for themselves."""
            return dataset

    class Held(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if gate.wait() is None:
                raise NoMoreTurns
            memory.start()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seconds = gate.seconds()
            assert state.global_step % workload.steps == 0, "an epoch is as many steps as ours"
            gate.finish(Turn(seconds, {"train": seconds}, details=memory.read()))

    kinds = {
        "sft": (trl.SFTTrainer, trl.SFTConfig, {}),
        "rm": (trl.RewardTrainer, trl.RewardConfig, {}),
        "dpo": (DPOTrainer, trl.DPOConfig, {"beta": workload.beta, "loss_type": ["sigmoid"]}),
    }
    kind, config, own = kinds[workload.task]
    torch.set_num_threads(workload.threads)
    memory = MemoryClock()
    trainer = kind(
        model=str(workload.model),
        args=config(**common(workload), **own, **settings),
        train_dataset=Dataset.from_list([row_of(workload.task, row) for row in workload.rows()]),
        processing_class=AutoTokenizer.from_pretrained(workload.model),
        callbacks=[Held()],
    )
    with suppress(NoMoreTurns):
        trainer.train()


def row_of(task: Task, row: dict[str, Any]) -> dict[str, Any]:
    """A row as TRL has it once it is tokenized; `length` is what its sampler groups by, if it does."""
    length = max(lengths_of(row))
    if task == "sft":
        labels = [IGNORED] * row["prompt"] + row["tokens"][row["prompt"] :]
        return {"input_ids": row["tokens"], "labels": labels, "length": length}
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    if task == "rm":
        return {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected, "length": length}
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "length": length}


def common(workload: SupervisedWorkload) -> dict[str, Any]:
    """The same in TRL's words. What is not here has TRL's default."""
    return {
        "output_dir": str(workload.folder / "trl"),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": workload.micro_batch,
        "gradient_accumulation_steps": workload.batch // workload.micro_batch,
        "max_length": None,
        "learning_rate": workload.lr,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "seed": workload.seed,
        "use_cpu": True,
        "bf16": False,
        "model_init_kwargs": {"dtype": "float32"},
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
