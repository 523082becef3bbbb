"""How long a step takes: a roofline of every part, divided by the share of it that programs reach.

A roofline is the least time in which a device can do the arithmetic, read the memory and send the bytes of a part:
the largest of the three where they overlap (Williams et al. 2009, doi 10.1145/1498765.1498785). Parts have the names
under which a run logs their seconds (`seconds/<part>`), so that a finished run tells their shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from openrlhf_ext.config.judge import questions_of_a_prompt
from openrlhf_ext.cores import usable_cores
from openrlhf_ext.plan.answers import answers_of
from openrlhf_ext.plan.arithmetic import rows_per_step, sequences_per_row
from openrlhf_ext.plan.disk import checkpoint_bytes
from openrlhf_ext.plan.engines import engine_memory
from openrlhf_ext.plan.flops import block_parameters, forward_flops, train_flops
from openrlhf_ext.plan.parameters import total_parameters, trainable_parameters
from openrlhf_ext.plan.setup_supervised import reference_strategy
from openrlhf_ext.plan.states import states_bytes
from openrlhf_ext.plan.types import BYTES, SCORERS, Arithmetic, EngineRun, ModelRun, Pass, Setup, Time

EFFICIENCY: dict[str, float] = {
    # Training with kernels that are not fused: 30 to 50 % of the dense peak is what large runs report (Chowdhery et
    # al. 2022, arXiv:2204.02311, section 4.1, with custom kernels 46 %); micro-batches of uneven length lose more.
    "update": 0.35,
    # A forward pass alone waits for no gradient, but its micro-batches are as uneven.
    "infer": 0.40,
    "score": 0.40,
    "reference": 0.40,
    "evaluate": 0.40,
    # Decoding reads at 60 to 80 % of the memory's bandwidth; sampling and scheduling stand between its steps.
    "generate": 0.50,
    # Collectives reach about 80 % of a link, and buckets are packed before and unpacked after.
    "publish": 0.50,
    # Files are written by one process for each rank, and checked.
    "save": 0.50,
}
"""Share of the roofline by part, where no run has been measured. On a GPU; estimates, not measurements."""

FP32_SHARE = 1 / 8
"""Of the 16-bit rate: float32 without tensor cores has from 1/16 (A100) to 1/2 of it (GeForce)."""
NETWORK = 12.5e9
"""Bytes/s between machines for each GPU: 100 Gbit/s."""
HOST_LINK = 32e9
"""Bytes/s between a GPU and its machine's memory, at most: PCIe 4.0 x16."""
HOST_MEMORY = 100e9
"""Bytes/s of a machine's memory, where the optimizer runs there: four channels of DDR4-3200."""
DISK = 2e9
"""Bytes/s that a checkpoint is written at by a machine: one NVMe disk, half of what it is sold with."""
ADAM_BYTES = 28
"""Read and written for each parameter by an Adam step: master weight and two moments (24), gradient and weight (4)."""
CORE_FLOPS = {"fp32": 115e9, "amx_bf16": 500e9, "avx512_bf16": 230e9, "bf16": 25e9}
"""Of one core's matrix products. float32, and bf16 without instructions for it: measured with PyTorch 2.13 on one core
of a Xeon of 2.5 GHz with AVX-512 (111 to 123e9, and 25e9); the others are what such instructions would make of it."""
CORE_MEMORY = 10e9
"""Bytes/s of one core, read and written: measured on the same."""
CPU_EFFICIENCY = 0.25
"""Of those figures, which are those of large matrices. Updates of a model of 10e6 parameters reach 0.2 to
0.4 of them (computed from the times in docs/benchmarks.md)."""
LAYER_LAUNCH = 150e-6
"""Seconds in which a GPU is told to run one layer forward or backward, kernel by kernel: no pass is shorter."""
ENGINE_STEP = 2e-3
"""Seconds between two steps of an engine on a GPU: scheduling, sampling, what comes of it. With the share below 1 of
both it is about twice as long."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """What one rank has: FLOP/s, bytes/s of its memory, of the link to the other ranks, to the host's memory."""

    flops: float
    memory: float
    link: float
    host: float


def time_of(setup: Setup, arithmetic: Arithmetic, efficiency: Mapping[str, float] | None = None) -> Time:
    """Seconds by part of a full step, evaluations and checkpoints spread over all steps, and of the whole run.

    Where no tokens are known, rows are taken to be as long as they may get. `efficiency`: shares of the roofline that
    a finished run reached (`plan.calibrate`), by part; what it does not say is as on any machine.
    """
    ideal = roofline(setup)
    share = {part: (efficiency or {}).get(part) or _default(setup, part) for part in ideal}
    seconds = {part: ideal[part] / share[part] for part in ideal}
    steps = full_steps(setup, arithmetic)
    for part, times in (("evaluate", arithmetic.evals), ("save", arithmetic.saves)):
        if part in seconds:
            seconds[part] = seconds[part] * (times or 0) / steps if steps else 0.0
    step = sum(seconds.values())
    if setup.command == "rl" and setup.config.train.async_enable:
        drawn = seconds["generate"] + seconds["score"]
        step -= min(drawn, sum(seconds[part] for part in ("infer", "update")))  # one goes on beside the other
    total = step * steps if steps is not None else None
    return Time(seconds, step, total, share, calibrated=bool(efficiency))


def full_steps(setup: Setup, arithmetic: Arithmetic) -> float | None:
    """Steps of the run, a short one as the part of a step that it is."""
    if arithmetic.steps_total is None or arithmetic.steps_per_epoch is None or arithmetic.leftover_rows is None:
        return None
    cfg = setup.config
    dropped = setup.command == "rl" and cfg.data.drop_last
    short = 0.0 if dropped else arithmetic.leftover_rows / rows_per_step(setup)
    passes = cfg.train.num_episodes if setup.command == "rl" else cfg.train.max_epochs
    return (arithmetic.steps_per_epoch + short) * passes


def roofline(setup: Setup) -> dict[str, float]:
    """Least seconds of each part of one full step; of one evaluation and one checkpoint."""
    work = _Work(setup)
    return work.of_rl() if setup.command == "rl" else work.supervised()


def speeds(setup: Setup, run: ModelRun | EngineRun, ranks: int) -> Speeds:
    """Of one rank, or of one GPU of an engine. Ranks share a CPU's cores; in a node with fewer GPUs, GPUs."""
    card = setup.hardware.card
    if card is None:
        cores = usable_cores() * setup.hardware.nodes / max(ranks, 1)
        memory = cores * CORE_MEMORY
        return Speeds(cores * core_flops(run.dtype), memory, memory, memory)
    link = card.link_bandwidth if setup.hardware.nodes == 1 else min(card.link_bandwidth, NETWORK)
    flops = card.flops * (FP32_SHARE if run.dtype == "fp32" else 1.0)
    return Speeds(flops, card.memory_bandwidth, link, min(card.link_bandwidth, HOST_LINK))


@lru_cache(maxsize=4)
def core_flops(dtype: str) -> float:
    """FLOP/s of one core of this machine, as far as its instructions tell."""
    if dtype == "fp32":
        return CORE_FLOPS["fp32"]
    try:
        known = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        known = ""
    return next((CORE_FLOPS[name] for name in ("amx_bf16", "avx512_bf16") if name in known), CORE_FLOPS["bf16"])


def _default(setup: Setup, part: str) -> float:
    return EFFICIENCY[part] if setup.hardware.on_gpu else CPU_EFFICIENCY


class _Work:
    """The rooflines of one setup."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.data, self.config = setup, setup.data, setup.config
        self.models = {model.role: model for model in setup.models}
        rows = rows_per_step(setup)
        self.rows = rows if self.data.rows is None else min(rows, max(self.data.rows, 1))
        self.sequences = self.rows * sequences_per_row(setup)
        self.length = float(self.data.mean_tokens or self.data.max_tokens)

    # --- sft, rm, dpo -----------------------------------------------------------------------

    def supervised(self) -> dict[str, float]:
        model = self.models["model"]
        parts = {"update": self.update(model, self.sequences, self.length, 1)}
        if self.setup.command == "dpo":
            parts["reference"] = self._reference(model)
        if self.data.eval_rows:
            parts["evaluate"] = self.forward(model, self.data.eval_rows * sequences_per_row(self.setup), self.length)
            if model.answers is not None:
                parts["evaluate"] += self._answers(model, model.answers, self.data.eval_rows)
        return parts | {"save": self._save()}

    def _answers(self, model: ModelRun, prompts: Pass, eval_rows: int) -> float:
        """By the model in training: prompts, then token by token, the longest of a batch taken to reach the limit."""
        answers = answers_of(self.config, eval_rows)
        batches = math.ceil(answers / model.ranks / prompts.rows)
        token = max(self._read(model) / self._speeds(model).memory, self._launch(model))
        return self.forward(model, answers, self.length) + batches * self.config.eval.max_new_tokens * token

    def _reference(self, model: ModelRun) -> float:
        """A second model, or the base under the adapters, in every step; or once over all pairs, before the first."""
        seconds = self.forward(self.models.get("reference", model), self.sequences, self.length)
        return seconds / self.config.train.max_epochs if reference_strategy(self.config) == "cached" else seconds

    def _save(self) -> float:
        return checkpoint_bytes(self.setup) / DISK / self.setup.hardware.nodes

    # --- rl ---------------------------------------------------------------------------------

    def of_rl(self) -> dict[str, float]:
        policy, critic = self.models["policy"], self.models.get("critic")
        engines = {engine.role: engine for engine in self.setup.engines}
        train = self.config.train
        steps = math.ceil(self.sequences / train.batch_size) * train.max_epochs
        learners = [policy] + ([critic] if critic else [])
        parts = {
            "generate": self.generate(engines["engines"], self.rows, self.config.rollout.n_samples_per_prompt),
            "score": self._score(engines.get("judge")),
            "infer": self._infer(policy, steps),
            "update": sum(self.update(run, self.sequences * train.max_epochs, self.length, steps) for run in learners),
            "publish": self._publish(policy, engines["engines"]),
        }
        if self.data.eval_rows:
            parts["evaluate"] = self.generate(
                engines["engines"], self.data.eval_rows, self.config.eval.n_samples_per_prompt
            )
        return parts | {"save": self._save()}

    @property
    def prompt(self) -> float:
        """Tokens of a prompt; half of a sequence where nothing is known of it."""
        known = self.data.mean_prompt_tokens
        return min(known if known is not None else self.length / 2, max(self.length - 1, 1.0))

    @property
    def answer(self) -> float:
        return max(self.length - self.prompt, 1.0)

    def _score(self, judge: EngineRun | None) -> float:
        seconds = 0.0
        for scorer in SCORERS & self.models.keys():
            seconds += self.forward(self.models[scorer], self.sequences, self.length)
        if judge is not None:
            most = self.config.judge.max_new_tokens
            questions = self.config.rollout.batch_size * questions_of_a_prompt(self.config) / judge.count
            seconds += self._sampling(judge, questions, self.length, most, most, 1)
        return seconds

    def _infer(self, policy: ModelRun, steps: int) -> float:
        """Log-probs before the update, where it moves away from them, those of the reference, the critic's values."""
        kl = self.config.algo.kl
        asked = [policy] if steps > 1 or (kl.init_coef > 0 and not kl.use_loss) else []
        if kl.init_coef > 0:
            asked.append(self.models.get("reference", policy))
        asked += [self.models["critic"]] if "critic" in self.models else []
        moved = sum(2 * states_bytes(run) / self._speeds(run).host for run in self.setup.models if run.sleeps)
        return moved + sum(self.forward(run, self.sequences, self.length) for run in asked)

    def _publish(self, policy: ModelRun, engine: EngineRun) -> float:
        """Weights gathered from their shards, then handed to the engines: on one GPU a copy, else over the link."""
        whole, at = total_parameters(policy) * BYTES[policy.dtype], self._speeds(policy)
        gathered = whole / at.link if policy.zero_stage == 3 and policy.ranks > 1 else 0.0
        return gathered + (2 * whole / at.memory if engine.pool == policy.pool else whole / at.link)

    def generate(self, engine: EngineRun, prompts: float, samples: int) -> float:
        """Sampling by all engines at once; the longest answer is taken to reach the limit."""
        longest = max(engine.tokens_each - engine.prompt_tokens, self.answer)
        seconds = self._sampling(engine, prompts * samples / engine.count, self.prompt, self.answer, longest, samples)
        if engine.sleeps:
            weights = engine_memory(engine, self.setup.hardware).weights
            seconds += 2 * weights / self._speeds(engine).host
        return seconds

    def _sampling(
        self, engine: EngineRun, requests: float, prompt: float, answer: float, longest: float, samples: int
    ) -> float:
        """Prompts first, bound by arithmetic; then token by token, each step reading the weights once and the keys
        and values of all its sequences. As many are under way as an engine takes and its cache holds."""
        memory, at = engine_memory(engine, self.setup.hardware), self._speeds(engine)
        model = _as_model(engine)
        parts = engine.tensor_parallel
        cached = self.config.vllm.enable_prefix_caching and engine.role == "engines"
        filled = requests / samples if cached else requests
        prefill = forward_flops(model, filled, prompt, 1) / parts / at.flops
        token = memory.token  # bytes of keys and values, on one GPU
        held = max(memory.cache, 0) / max(token * (prompt + answer / 2), 1)
        together = max(min(requests, engine.sequences, held), 1.0)
        steps = max(longest, requests * answer / together)
        read = steps * memory.weights + requests * answer * (prompt + answer / 2) * token
        flops = forward_flops(model, requests, answer, answer) / parts
        between = steps * ENGINE_STEP if self.setup.hardware.on_gpu else 0.0
        return prefill + max(read / at.memory, flops / at.flops) + between

    # --- one model --------------------------------------------------------------------------

    def _speeds(self, run: ModelRun | EngineRun) -> Speeds:
        return speeds(self.setup, run, run.ranks if isinstance(run, ModelRun) else run.count * run.tensor_parallel)

    def forward(self, run: ModelRun, sequences: float, length: float) -> float:
        at, selected = self._speeds(run), self._selected(run, length)
        count = self._micro_batches(run, sequences, length, backward=False)
        compute = forward_flops(run, sequences / run.ranks, length, selected) / at.flops
        gathered = self._gathered(run) / (at.host if run.param_offload else at.link)
        least = max(self._read(run) / at.memory, self._launch(run), gathered)
        return max(compute, count * least)

    def update(self, run: ModelRun, sequences: float, length: float, steps: int) -> float:
        """Micro-batches, the reduction of gradients, and so many optimizer steps."""
        at, selected = self._speeds(run), self._selected(run, length)
        count = self._micro_batches(run, sequences / steps, length, backward=True) * steps
        compute = train_flops(run, sequences / run.ranks, length, selected) / at.flops
        passes = 2 + run.gradient_checkpointing
        least = max(
            passes * self._read(run) / at.memory, (passes + 1) * self._launch(run), 2 * self._gathered(run) / at.link
        )
        passed = max(compute, count * least)
        return passed + self._reduced(run, count, steps) / at.link + steps * self._optimizer(run, at)

    def _selected(self, run: ModelRun, length: float) -> float:
        if run.kind == "reward":
            return 1.0
        return min(self.answer, length) if self.setup.command == "rl" else length

    def _micro_batches(self, run: ModelRun, sequences: float, length: float, *, backward: bool) -> int:
        """Of one rank."""
        of = next((each for each in run.passes if each.backward == backward), None)
        if of is None:
            return 1
        by_rows = sequences / run.ranks / max(of.rows, 1)
        return max(
            math.ceil(by_rows if of.tokens <= of.rows * of.length else sequences * length / run.ranks / of.tokens), 1
        )

    def _launch(self, run: ModelRun) -> float:
        return run.shape.layers * LAYER_LAUNCH if self.setup.hardware.on_gpu else 0.0

    def _read(self, run: ModelRun) -> float:
        """Bytes of weights that one pass reads; quantised ones are written out whole and read again."""
        blocks = block_parameters(run.shape)
        packed = {4: 0.5, 8: 1.0, None: None}[run.bits]
        each = BYTES[run.dtype] if packed is None else packed + 2 * BYTES[run.dtype]
        return blocks * each + run.shape.vocab * run.shape.hidden * BYTES[run.dtype]

    def _gathered(self, run: ModelRun) -> float:
        """Bytes of others' shards that a rank gets in one pass; of parameters on the host, all of them."""
        if run.zero_stage != 3:
            return 0.0
        others = 1.0 if run.param_offload else (run.ranks - 1) / run.ranks
        return total_parameters(run) * BYTES[run.dtype] * others

    def _reduced(self, run: ModelRun, micro_batches: int, steps: int) -> float:
        """Bytes of gradients and updated weights over the link: from stage 2 on gradients go with every micro-batch."""
        if run.ranks == 1:
            return 0.0
        each = trainable_parameters(run) * BYTES[run.dtype] * (run.ranks - 1) / run.ranks
        back = steps if run.zero_stage in (1, 2) else 0
        gradients = micro_batches if run.zero_stage >= 2 else 2 * steps
        return each * (gradients + back)

    def _optimizer(self, run: ModelRun, at: Speeds) -> float:
        parameters = trainable_parameters(run)
        if not run.adam_offload or not self.setup.hardware.on_gpu:
            shards = run.ranks if run.zero_stage else 1
            return parameters / shards * ADAM_BYTES / at.memory
        moved = parameters / run.ranks * 2 * BYTES[run.dtype] / at.host
        return moved + parameters / self.setup.hardware.nodes * ADAM_BYTES / HOST_MEMORY


def _as_model(engine: EngineRun) -> ModelRun:
    return ModelRun(engine.role, engine.shape, "causal_lm", False, engine.tensor_parallel, engine.pool, engine.dtype)
