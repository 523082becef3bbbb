"""The values the planner works with. Bytes are integers, times seconds; GB are 1e9 bytes and only for printing.

A `Setup` says what runs where, made from a command's flags; terms of memory are made from it, phase by phase.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["policy", "reference", "critic", "reward", "student", "judge", "engines", "model", "driver"]
"""`model` is the one model of a supervised command; `driver` the processes around the models."""
SCORERS: frozenset[Role] = frozenset({"reward", "student"})
"""The models that compute in `score`."""

Phase = Literal["load", "generate", "score", "train", "publish", "save", "evaluate"]
"""`train` holds inference, forward, backward and the optimizer: roles do not sleep between them."""

Place = Literal["gpu", "host"]
Kind = Literal["causal_lm", "value", "reward"]
Dtype = Literal["bf16", "fp16", "fp32"]
BYTES: dict[str, int] = {"bf16": 2, "fp16": 2, "fp32": 4}
"""Of one number of a format."""


@dataclass(frozen=True, slots=True)
class VisionTower:
    """The numbers of a SigLIP encoder and of the projection behind it (to the text's hidden size)."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    image: int
    patch: int
    channels: int = 3


@dataclass(frozen=True, slots=True)
class ModelShape:
    """An architecture's numbers, from a model's config.json (of its text tower, where it has others).

    `windows`: the sliding window of each layer, None where a layer sees everything.
    `norms_per_layer`: norms over the hidden size in a block; `qk_norm`: norms over the head size of queries and keys.
    `gated`: an MLP of three matrices (gate, up, down). `tower`: what is loaded beside the text model, and
    `other_parameters` how many weights that is; it sees no text, so it computes nothing in training.
    """

    name: str
    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    positions: int
    tied: bool
    activation: str = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norms_per_layer: int = 2
    windows: tuple[int | None, ...] = ()
    logit_softcap: float | None = None
    attention_softcap: float | None = None
    tower: VisionTower | None = None
    other_parameters: int = 0


@dataclass(frozen=True, slots=True)
class Lora:
    rank: int
    alpha: int
    targets: tuple[str, ...] = ("all-linear",)
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class Pass:
    """The largest micro-batch that one rank sends through a model.

    `rows` sequences of at most `length` tokens, `tokens` in all (padding included unless packed), of which
    `selected` go through the head. `backward`: with gradients. `extra_columns`: float32 numbers per position that
    travel with the micro-batch (old log-probs, advantages, ...). `tempered`: logits are divided by a temperature.
    """

    rows: int
    length: int
    tokens: int
    selected: int
    backward: bool
    entropy: bool = False
    extra_columns: int = 0
    tempered: bool = False


@dataclass(frozen=True, slots=True)
class ModelRun:
    """One model on its ranks: a worker group of a run, or the one model of a supervised command.

    `zero_stage` is the stage that runs (`engine.deepspeed_config.effective_stage`); a frozen model runs at 3 or 0.
    `eight_bit`: the optimizer's moments have 8 bits. `passes` are what it is asked to compute, each in its phase;
    `answers` the prompts that its evaluation answers. `sleeps`: its state leaves the GPU outside `train`. `awake`: the
    phases in which it is on the GPU. `gpu`: its kernels are a GPU's. `accumulates`: a step has several micro-batches.
    """

    role: Role
    shape: ModelShape
    kind: Kind
    trainable: bool
    ranks: int
    pool: str
    dtype: Dtype = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = 0
    lora: Lora | None = None
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    eight_bit: bool = False
    adam_offload: bool = False
    param_offload: bool = False
    zpg: int = 1
    overlap_comm: bool = False
    grad_accum_dtype: Dtype | None = None
    gradient_checkpointing: bool = False
    reentrant: bool = False
    packing: bool = False
    attention: str = "sdpa"
    logprob_chunk: int = 1024
    head_dim: int = 1
    passes: tuple[Pass, ...] = ()
    answers: Pass | None = None
    sleeps: bool = False
    awake: frozenset[Phase] = frozenset({"train"})
    gpu: bool = False
    accumulates: bool = True

    @property
    def bits(self) -> Literal[4, 8] | None:  # of its quantised weights
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None


@dataclass(frozen=True, slots=True)
class EngineRun:
    """vLLM engines: the policy's, or the judge's.

    `utilization` is the part of a GPU's memory each may take (on a CPU: `kv_cache_bytes` of cache instead).
    `sequences` and `tokens_each`: how many requests one engine gets at a time and the longest of them.
    """

    role: Role
    shape: ModelShape
    count: int
    pool: str
    tensor_parallel: int = 1
    dtype: Dtype = "bf16"
    utilization: float = 0.9
    kv_cache_bytes: int | None = None
    enforce_eager: bool = False
    sleeps: bool = False
    awake: frozenset[Phase] = frozenset({"generate"})
    sequences: int = 1
    prompt_tokens: int = 0
    tokens_each: int = 2
    bucket_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Card:
    """What one GPU is. `bytes`: its memory as the driver reports it; `context`: what one process takes of it.

    FLOP/s are dense bf16 tensor-core figures (`fp16` where the card has no bf16), bytes/s of memory and of the link
    between the GPUs of a machine. `source` says where the figures are from.
    """

    name: str
    bytes: int
    context: int
    flops: float
    memory_bandwidth: float
    link_bandwidth: float
    bf16: bool = True
    source: str = ""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a run has: `count` GPUs on each of `nodes` machines (0: it runs on CPUs), and each machine's memory.

    `host_bytes` None: not known, so nothing is refused because of it.
    """

    card: Card | None
    count: int
    nodes: int = 1
    host_bytes: int | None = None

    @property
    def on_gpu(self) -> bool:
        return self.card is not None


@dataclass(frozen=True, slots=True)
class DataSize:
    """How many rows there are, and tokens in them (prompt and response together, cut at data.max_len).

    Tokens are those of one sequence: a pair of PM or DPO has two. `max_tokens` is the longest that may come. `how` says
    where the figures are from: `given`, `estimated` from a sample by bytes, `counted` by the tokenizer, or `unknown`
    (rows None).
    """

    rows: int | None
    mean_tokens: float | None
    max_tokens: int
    mean_prompt_tokens: float | None = None
    eval_rows: int | None = None
    how: Literal["given", "estimated", "counted", "unknown"] = "unknown"


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything a plan is made from. `config` is the command's checked config tree.

    `pools` maps each pool to the number of GPUs it has; roles of one pool share its GPUs.
    """

    command: Literal["sft", "rm", "dpo", "rl"]
    config: Any
    hardware: Hardware
    data: DataSize
    models: tuple[ModelRun, ...]
    engines: tuple[EngineRun, ...] = ()
    pools: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Term:
    """Some bytes of one role on one GPU of its pool (`gpu`) or, over all processes of a machine, on the `host`."""

    role: Role
    name: str
    bytes: int
    where: Place
    pool: str
    phases: frozenset[Phase]


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """What one GPU of a pool holds in a phase, and what the phase's biggest machine holds."""

    phase: Phase
    pool: str
    gpu_bytes: int
    host_bytes: int


@dataclass(frozen=True, slots=True)
class Memory:
    """All terms and their peaks. `kv_tokens`, `kv_sequences`: what the engines' cache has room for.

    `misfits`: sentences on what cannot be placed whatever the peaks are (too few GPUs, an engine's share that does
    not hold its weights and one sequence).
    """

    terms: tuple[Term, ...]
    peaks: tuple[PhasePeak, ...]
    gpu_limit: int | None
    host_limit: int | None
    kv_tokens: int | None = None
    kv_sequences: int | None = None
    misfits: tuple[str, ...] = ()

    @property
    def gpu_peak(self) -> int:
        return max((peak.gpu_bytes for peak in self.peaks), default=0)

    @property
    def host_peak(self) -> int:
        return max((peak.host_bytes for peak in self.peaks), default=0)

    @property
    def fits(self) -> bool:
        on_gpu = self.gpu_limit is None or self.gpu_peak <= self.gpu_limit
        return not self.misfits and on_gpu and (self.host_limit is None or self.host_peak <= self.host_limit)


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Steps: optimizer steps in SFT, PM and DPO, rollout steps in RL. None where the number of rows is not known."""

    effective_batch: int
    steps_per_epoch: int | None
    leftover_rows: int | None
    steps_total: int | None
    optimizer_steps: int | None
    warmup_steps: int | None
    saves: int | None
    evals: int | None
    logs: int | None
    tokens_per_step: float | None


@dataclass(frozen=True, slots=True)
class Time:
    """Seconds of one step by part, and of the whole run. `efficiency` is the part of the roofline assumed for each."""

    parts: dict[str, float]
    step_seconds: float
    total_seconds: float | None
    efficiency: dict[str, float]
    calibrated: bool = False


@dataclass(frozen=True, slots=True)
class Warning:
    """Something that is allowed and probably not meant. `code` names it for programs, `text` is a sentence."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Change:
    """A flag's other value: the bytes of the peak it saves, what it costs in words, and whether the same is trained."""

    flag: str
    value: str
    saves: int
    costs: str
    same_result: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole answer. `changes`: the cheapest that make it fit, in order (empty where it fits, or none do)."""

    setup: Setup
    trainable_params: int
    total_params: int
    states_bytes: int
    memory: Memory
    arithmetic: Arithmetic
    time: Time | None
    warnings: tuple[Warning, ...]
    changes: tuple[Change, ...]
    verdict: str
