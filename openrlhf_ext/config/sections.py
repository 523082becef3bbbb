"""The sections that several commands share. Names, types and defaults are OpenRLHF 0.11.2's, except where
tests/arch/test_flag_parity.py lists a difference with its reason."""

# ruff: noqa: RUF009 (`flag` and `section` are dataclasses.field with a help text)

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openrlhf_ext.config.fields import declined, flag, planned, section

ParamDtype = Literal["bf16", "fp16", "fp32"]
Optimizer = Literal["adam", "muon"]

MUON = declined("the Muon optimizer")
MOE = declined("mixture-of-experts training")
RING = declined("ring attention")


@dataclass(frozen=True, slots=True)
class DeviceSection:
    type: Literal["auto", "cpu", "cuda"] = flag(
        "auto", "where models run; auto takes the GPU if there is one (--device is short for it)", common=True
    )


@dataclass(frozen=True, slots=True)
class PlanSection:
    force: bool = flag(False, "start although the plan says that it cannot fit")


@dataclass(frozen=True, slots=True)
class MemorySection:
    auto: bool = flag(
        False,
        "let the planner choose micro-batch, token budget, chunk, checkpointing, sleep and offload so that it fits",
        common=True,
    )


@dataclass(frozen=True, slots=True)
class RaySection:
    address: str | None = flag(
        None, "cluster to join: 'auto' or host:port; not set: start one on this machine", common=True
    )
    bind: str = flag("127.0.0.1", "address a locally started cluster listens on (loopback: this machine only)")
    dashboard: bool = flag(False, "start Ray's dashboard with a locally started cluster")
    dashboard_port: int = flag(8265, "its port")


@dataclass(frozen=True, slots=True)
class AdamSection:
    lr: float = flag(1e-6, "learning rate", common=True)
    betas: tuple[float, float] = flag((0.9, 0.95), "decay of the first and second moment")
    eps: float = flag(1e-8, "added to the root of the second moment")
    weight_decay: float = flag(0.0, "decoupled weight decay (AdamW)")
    eight_bit: bool = flag(False, "moments in 8 bits (bitsandbytes), paged out to host memory when a GPU is full")


@dataclass(frozen=True, slots=True)
class MuonSection:
    lr: float = flag(0.02, "learning rate of the matrix parameters")
    momentum: float = flag(0.95, "momentum")
    ns_steps: int = flag(5, "Newton-Schulz iterations")
    nesterov: bool = flag(True, "Nesterov momentum (--muon.no_nesterov turns it off)")


@dataclass(frozen=True, slots=True)
class OptimizerFields:
    """Optimizer, schedule and clipping of one model (inherited, so the names sit beside the model's own)."""

    optim: Optimizer = flag("adam", "optimizer", refused_values={"muon": MUON})
    muon: MuonSection = section(MuonSection, "Muon", refused=MUON)
    adam: AdamSection = section(AdamSection, "AdamW")
    lr_scheduler: str = flag("cosine_with_min_lr", "name of a transformers learning-rate schedule")
    lr_warmup_ratio: float = flag(0.03, "part of all optimizer steps over which the rate rises from zero")
    min_lr_ratio: float = flag(0.1, "lowest rate of cosine_with_min_lr, as a part of the highest")
    max_norm: float = flag(1.0, "the gradient is scaled down to this norm (0: never)")


@dataclass(frozen=True, slots=True)
class LoraSection:
    rank: int = flag(0, "rank of the adapters (0: train all weights)", common=True)
    alpha: int = flag(16, "their scale, which is divided by the rank")
    target_modules: tuple[str, ...] = flag(("all-linear",), "linear modules that get adapters, by name")
    dropout: float = flag(0.0, "dropout before the adapters")


@dataclass(frozen=True, slots=True)
class DsSection:
    zero_stage: Literal[0, 1, 2, 3] = flag(
        2, "what DeepSpeed shards: 0 nothing, 1 optimizer, 2 + gradients, 3 + parameters", common=True
    )
    param_dtype: ParamDtype = flag("bf16", "number format of parameters and activations", common=True)
    attn_implementation: str = flag(
        "flash_attention_2", "attention kernel (sdpa, eager, flash_attention_2, torch_varlen, ...)"
    )
    packing_samples: bool = flag(False, "put several sequences in one row instead of padding")
    adam_offload: bool = flag(False, "keep optimizer state in host memory")
    zpg: int = flag(1, "ZeRO++: ranks that share a secondary copy of the parameters (stage 3)")
    overlap_comm: bool = flag(False, "overlap gradient reduction with the backward pass")
    grad_accum_dtype: ParamDtype | None = flag(
        None, "number format gradients are accumulated in (not set: DeepSpeed's)"
    )
    logprob_chunk_size: int = flag(1024, "tokens for which the LM head is evaluated at a time")
    use_liger_kernel: bool = flag(False, "Liger kernels", refused=planned("the Liger kernel"))
    use_universal_ckpt: bool = flag(
        False, "resume on another number of ranks", refused=planned("universal checkpoints")
    )
    load_in_4bit: bool = flag(False, "4-bit (NF4) weights under the adapters, QLoRA")
    load_in_8bit: bool = flag(False, "8-bit (LLM.int8) weights under the adapters")
    lora: LoraSection = section(LoraSection, "LoRA adapters")
    deepcompile: bool = flag(False, "DeepCompile", refused=declined("DeepCompile"))
    tensor_parallel_size: int = flag(
        1, "DeepSpeed tensor parallel ranks", refused=declined("DeepSpeed tensor parallelism")
    )
    ring_attn_size: int = flag(1, "ranks that share a sequence", refused=RING)
    ring_attn_head_stride: int = flag(1, "heads per ring step", refused=RING)
    experts_implementation: Literal["eager", "batched_mm", "grouped_mm", "deepgemm"] | None = flag(
        None, "kernel of mixture-of-experts layers", refused=MOE
    )


@dataclass(frozen=True, slots=True)
class ValueHeadDsSection(DsSection):
    value_head_prefix: str = flag("score", "name of the head that gives values and scores")


@dataclass(frozen=True, slots=True)
class RLDsSection(ValueHeadDsSection):
    enable_sleep: bool = flag(False, "move DeepSpeed's state to host memory while others use the GPU")


@dataclass(frozen=True, slots=True)
class CkptSection:
    output_dir: str = flag("./ckpt", "folder of the exported model, metrics and rollouts", common=True)
    path: str = flag("./ckpt/checkpoints_ppo_ray", "folder of the checkpoints", common=True)
    save_steps: int = flag(-1, "steps between checkpoints (-1: none before the end)", common=True)
    load_enable: bool = flag(False, "resume from the newest checkpoint under ckpt.path, if there is one", common=True)
    save_hf: bool = flag(False, "also export a Hugging Face folder with every checkpoint")
    disable_ds: bool = flag(False, "write no DeepSpeed checkpoints (no resuming), exports only")
    max_num: int = flag(3, "checkpoints kept; the oldest goes first")
    max_mem: float = flag(float("inf"), "GB that checkpoints may take; the oldest goes first")


@dataclass(frozen=True, slots=True)
class RLCkptSection(CkptSection):
    best_metric_key: str = flag(
        "", "evaluation metric whose best checkpoint is kept as well (not set: the first pass@1; 'none': off)"
    )


@dataclass(frozen=True, slots=True)
class WandbSection:
    key: str | None = flag(None, "W&B API key; turns W&B on (never written to disk)", secret=True)
    org: str | None = flag(None, "W&B entity")
    group: str | None = flag(None, "W&B group")
    project: str = flag("openrlhf_train_ppo", "W&B project")
    run_name: str | None = flag(None, "name of the run (not set: the command and the time it starts)")


@dataclass(frozen=True, slots=True)
class LoggerSection:
    logging_steps: int = flag(1, "steps between progress lines and lines of metrics")
    tensorboard_dir: str | None = flag(None, "TensorBoard folder; turns TensorBoard on", common=True)
    metrics_file: str | None = flag(None, "metrics as JSON lines (not set: metrics.jsonl in ckpt.output_dir)")
    wandb: WandbSection = section(WandbSection, "Weights & Biases")


@dataclass(frozen=True, slots=True)
class EvalSection:
    dataset: str | None = flag(None, "data set to evaluate on", common=True)
    split: str = flag("train", "its split")
    steps: int = flag(-1, "steps between evaluations (-1: at the end only)", common=True)


def listed(names: str | None) -> tuple[str, ...]:
    """The names of a text that has commas between them."""
    return tuple(part.strip() for part in (names or "").split(",") if part.strip())


@dataclass(frozen=True, slots=True)
class AnsweringEvalSection(EvalSection):
    """Of answers that an evaluation samples: what they are kept with, and whose figures are told apart."""

    context_key: str | None = flag(None, "column of the source that answers are to be held against, kept for people")
    group_by: str | None = flag(None, "columns whose values have figures of their own, with commas", common=True)
    subject_column: str | None = flag(None, "column of ids such as 1.4.2, which roll up to 1.4 and 1", common=True)
    taxonomy: str | None = flag(None, "names of those ids: YAML, JSON, CSV or JSONL (not set: ids alone)")


@dataclass(frozen=True, slots=True)
class TrainFields:
    """What every training command has in its `train` section."""

    batch_size: int = flag(128, "sequences in one optimizer step, over all ranks", common=True)
    micro_batch_size: int = flag(1, "sequences in one forward and backward pass of a rank", common=True)
    max_epochs: int = flag(1, "passes over the data", common=True)
    stop_when: str | None = flag(
        None, 'end as soon as a held-out figure reaches a target, such as "eval_accuracy>=0.9"', common=True
    )
    seed: int = flag(42, "every random draw derives from it")
    full_determinism_enable: bool = flag(False, "deterministic kernels, slower")


@dataclass(frozen=True, slots=True)
class DataFields:
    """What every training command has in its `data` section."""

    max_len: int = flag(2048, "tokens of the longest sequence, prompt and response together", common=True)
    input_template: str | None = flag(None, "text around the prompt, with {} where it goes")
    apply_chat_template: bool = flag(False, "format with the tokenizer's chat template", common=True)
    disable_fast_tokenizer: bool = flag(False, "use the slow tokenizer")
    dataloader_num_workers: int = flag(
        0, "processes that load data", refused=declined("loading data in processes of its own")
    )


@dataclass(frozen=True, slots=True)
class RewardSourceFields:
    """How sources of rewards are asked, and what the rules among them look for."""

    timeout_s: float = flag(180.0, "seconds one call of a source may take")
    max_retries: int = flag(2, "calls after the first that failed")
    http_batch_size: int | None = flag(None, "rows of one request to a server (not set: a batch is one request)")
    http_concurrency: int = flag(8, "requests to a server at a time")
    http_failures: int = flag(5, "failed requests in a row after which a server is left alone for a while")
    http_cooldown_s: float = flag(30.0, "seconds of that while")
    format_pattern: str | None = flag(None, "rule:format: a regular expression that matches the whole answer")
    format_tags: tuple[str, ...] = flag((), "rule:format: the answer is these tags, such as think answer, in order")
    length_range: tuple[int, int] | None = flag(None, "rule:length: tokens of an answer that gets 1, low and high")
    answer_pattern: str | None = flag(
        None, "verify: a regular expression of what is compared, its first group where it has one (not set: all)"
    )
    verify_timeout_s: float = flag(5.0, "rule:format, verify: seconds one answer may take")
