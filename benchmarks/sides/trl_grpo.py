"""TRL's side: its GRPOTrainer, held at the start of every step until it is its turn."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from measure import Turn

from sides.gate import Gate
from sides.reward import reward_of
from sides.workload import Workload

if TYPE_CHECKING:
    from trl import GRPOConfig

STEPS = 1_000_000
"""More than anyone will wait for: the gate ends the run."""

GENERATE = ("transformers.generate", "transformers.generate_batch", "vLLM.generate")
PREPARE, SCORE, PUBLISH = "_prepare_inputs", "_calculate_rewards", "sync_weights"
"""TRL's own names of what it times; PREPARE holds the others."""


class NoMoreTurns(Exception):
    pass


def serve(workload: Workload, gate: Gate) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import GRPOTrainer
    from trl.extras.profiling import ProfilingContext

    torch.set_num_threads(workload.threads)
    timed: dict[str, float] = defaultdict(float)
    lengths: list[int] = []

    def note(context: Any, duration: float) -> None:
        timed[context.name.partition(".")[2]] += duration

    def reward(completions: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return [reward_of(answer) for answer in completions]

    class Held(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if gate.running:
                seconds = gate.seconds()
                gate.finish(Turn(seconds, phases_of(timed, seconds), tuple(lengths)))
            if (given := gate.wait()) is None:
                raise NoMoreTurns
            if trainer.args.use_vllm is False:
                trainer.generation_config.max_new_tokens = given.get("max_new_tokens", workload.max_new_tokens)
            timed.clear()
            lengths.clear()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            timed["step"] = gate.seconds()

    ProfilingContext._log_metrics = note  # type: ignore[method-assign]  # else it tells only its trackers
    trainer = GRPOTrainer(
        model=str(workload.model),
        reward_funcs=reward,
        args=config_of(workload),
        train_dataset=Dataset.from_list([{"prompt": text} for text in workload.texts()]),
        processing_class=AutoTokenizer.from_pretrained(workload.model),
        callbacks=[Held()],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    with suppress(NoMoreTurns):
        trainer.train()


def config_of(workload: Workload) -> GRPOConfig:
    """The same step in TRL's words. What is not here has TRL's default."""
    from trl import GRPOConfig

    on_gpu: dict[str, Any] = {}
    if workload.device != "cpu":
        on_gpu = {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": workload.memory_share,
            "vllm_max_model_length": workload.max_len,
            # Ours does not correct the sampler's log-probs here: neither does TRL, which saves it a forward.
            "vllm_importance_sampling_correction": False,
        }
    return GRPOConfig(
        output_dir=str(workload.folder / "trl"),
        max_steps=STEPS,
        per_device_train_batch_size=workload.micro_batch,
        gradient_accumulation_steps=workload.rows // workload.micro_batch,
        num_generations=workload.samples,
        max_completion_length=workload.max_new_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=workload.kl_coef,
        use_bias_correction_kl=False,
        loss_type="grpo",
        scale_rewards="group",
        epsilon=0.2,
        learning_rate=workload.lr,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        max_grad_norm=1.0,
        seed=workload.seed,
        use_cpu=workload.device == "cpu",
        bf16=workload.dtype == "bfloat16",
        model_init_kwargs={"dtype": "float32"},  # on a GPU under autocast to bf16, TRL's own way
        gradient_checkpointing=False,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        **on_gpu,
    )


def phases_of(timed: Mapping[str, float], seconds: float) -> dict[str, float]:
    """TRL's own times by our names; a forward of the reference is in `estimate, split`."""
    times = defaultdict(float, timed)
    found = {"generate": sum(times[name] for name in GENERATE), "score": times[SCORE], "publish": times[PUBLISH]}
    found["estimate, split"] = times[PREPARE] - sum(found.values())
    found["update"] = times["step"] - times[PREPARE]
    found["rest"] = seconds - times["step"]
    return found
