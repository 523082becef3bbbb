"""The setup of rl: its roles, who shares whose GPUs, who sleeps when, and what each is asked to compute."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from openrlhf_ext.config.judge import longest_judgement, questions_of_a_prompt
from openrlhf_ext.plan.placing import Cut, forward_options, frozen_options, training_options
from openrlhf_ext.plan.shapes import find_shape, text_shape
from openrlhf_ext.plan.types import SCORERS, DataSize, EngineRun, Hardware, Kind, ModelRun, Pass, Phase, Role, Setup

Section = Literal["actor", "critic", "ref", "reward", "student"]
"""A role by the name of its flags."""
ROLES: dict[Section, Role] = {
    "actor": "policy",
    "critic": "critic",
    "ref": "reference",
    "reward": "reward",
    "student": "student",
}
RANK_OWNERS: tuple[Section, ...] = ("actor", "critic")

ALL: frozenset[Phase] = frozenset({"load", "generate", "score", "train", "publish", "save"})
"""Evaluation generates and scores as training does, and writing the policy's files has the same roles awake as
`publish`; `save` is where the critic's are written."""
AWAKE: dict[Role, frozenset[Phase]] = {
    "policy": frozenset({"load", "train", "publish"}),
    "reference": frozenset({"load", "train"}),
    "critic": frozenset({"load", "train", "save"}),
    "reward": frozenset({"load", "score"}),
    "student": frozenset({"load", "score"}),
    "engines": frozenset({"generate", "publish", "save"}),
    "judge": frozenset({"score"}),
}
"""Of the roles that sleep (`cluster.phases`). Models are loaded all at once, beside engines that are asleep."""

MOST_SEQUENCES = 256
"""Requests in one step of an engine (`rollout.engine_start.EngineSettings.max_num_seqs`)."""


def rl_setup(config: Any, explicit: frozenset[str], hardware: Hardware, data: DataSize) -> Setup:
    roles = _Roles(config, explicit, hardware, data)
    models = [roles.trained("actor")]
    # The base under a policy's adapters is its reference; it needs no processes of its own.
    if config.algo.kl.init_coef > 0 and not config.ds.lora.rank:
        models.append(roles.frozen("ref"))
    if config.has_critic:
        models.append(roles.trained("critic"))
    if config.has_reward_model:
        models.append(roles.frozen("reward"))
    if config.student.model_name_or_path is not None:
        models.append(roles.frozen("student"))
    engines = [roles.engines()]
    if config.judge.model_name_or_path is not None:
        engines.append(roles.judge())
    pools: dict[str, int] = {}
    for pool, gpus in [(m.pool, m.ranks) for m in models] + [(e.pool, e.count * e.tensor_parallel) for e in engines]:
        pools[pool] = max(pools.get(pool, 0), gpus)
    return Setup("rl", config, hardware, data, tuple(models), tuple(engines), pools)


def ranks_of(config: Any, role: Section, explicit: frozenset[str], hardware: Hardware) -> int:
    """Ranks of a role: as asked for, or what the default becomes where there are fewer GPUs."""
    pools = pools_of(config)
    if role in pools:  # the roles of a shared GPU have the same ranks, those of the first of them
        role = next(other for other in RANK_OWNERS if pools.get(other) == pools[role])
    section = getattr(config, role)
    per_node: int = section.num_gpus_per_node
    if f"{role}.num_gpus_per_node" not in explicit and config.ray.address is None:
        per_node = min(per_node, max(hardware.count, 1))
    return int(section.num_nodes) * per_node


def pools_of(config: Any) -> dict[str, str]:
    """Which roles share GPUs with which, by the names of their flags; a role that is not named has its own."""
    train = config.train
    if train.colocate_all:
        shared = ("actor", "ref", "critic", "reward", "student")
        return dict.fromkeys(shared if train.async_enable else (*shared, "vllm", "judge"), "all")
    pools: dict[str, str] = {}
    if train.colocate_actor_ref:
        pools |= {"actor": "actor_ref", "ref": "actor_ref"}
    if train.colocate_critic_reward:
        pools |= {"critic": "critic_reward", "reward": "critic_reward"}
    return pools


def model_name(config: Any, role: Section) -> str:
    """The model that a role loads; the critic starts from the reward model where all rewards are that model's."""
    policy, reward = config.actor.model_name_or_path, config.reward.model_name_or_path
    if role == "reward":
        name = reward
    elif role == "student":
        name = config.student.model_name_or_path
    elif role == "critic":
        name = config.critic.model_name_or_path or (reward if config.reward.remote_url is None else policy)
    else:
        name = policy
    return str(name or policy)  # a plan is made also where no rewards are named yet


@dataclass(frozen=True, slots=True)
class _Roles:
    config: Any
    explicit: frozenset[str]
    hardware: Hardware
    data: DataSize

    def trained(self, role: Section) -> ModelRun:
        config = self.config
        kind: Kind = "value" if role == "critic" else "causal_lm"
        run = replace(self._model(role, kind), **training_options(config.ds, getattr(config, role)))
        asked = (self._inference(run),) if role == "critic" or self._asks_policy else ()
        accumulates = self._train_cut(run).accumulates(config.train.batch_size, run.ranks)
        return replace(run, passes=(self._train(run), *asked), accumulates=accumulates)

    def frozen(self, role: Section) -> ModelRun:
        kind: Kind = "reward" if role == "reward" else "causal_lm"
        options = frozen_options(self.config.ds, offload=getattr(self.config, role).offload)
        run = replace(self._model(role, kind), **options)
        return replace(run, passes=(self._inference(run),))

    def _model(self, role: Section, kind: Kind) -> ModelRun:
        config, name = self.config, ROLES[role]
        overlapping = config.train.async_enable and ROLES[role] in SCORERS
        sleeps = config.ds.enable_sleep and self.hardware.on_gpu and not overlapping
        return ModelRun(
            role=name,
            shape=text_shape(model_name(config, role)),
            kind=kind,
            trainable=False,
            ranks=ranks_of(config, role, self.explicit, self.hardware),
            pool=pools_of(config).get(role, role),
            sleeps=sleeps,
            awake=AWAKE[name] if sleeps else ALL,
            # All models compute as the policy's flags say.
            **forward_options(config.ds, config.actor, self.hardware),
        )

    def _train(self, run: ModelRun) -> Pass:
        batch, of_policy = self.config.train.batch_size, run.role == "policy"
        entropy = of_policy and self.config.actor.entropy_coef is not None
        columns = self._policy_columns if of_policy else 2
        cut = self._train_cut(run)
        tempered = self._tempered(run)
        return cut.largest(batch, run.ranks, backward=True, entropy=entropy, columns=columns, tempered=tempered)

    def _inference(self, run: ModelRun) -> Pass:
        rollout, train = self.config.rollout, self.config.train
        budget = (rollout.max_tokens_per_gpu or train.max_tokens_per_gpu) if train.dynamic_batch_enable else None
        cut = self._cut(run.kind, rollout.micro_batch_size, budget)
        sequences = rollout.batch_size * rollout.n_samples_per_prompt
        return cut.largest(sequences, run.ranks, tempered=self._tempered(run))

    def _train_cut(self, run: ModelRun) -> Cut:
        train = self.config.train
        budget = train.max_tokens_per_gpu if train.dynamic_batch_enable else None
        return self._cut(run.kind, train.micro_batch_size, budget)

    def _tempered(self, run: ModelRun) -> bool:
        return run.kind == "causal_lm" and self.config.rollout.temperature != 1.0

    @property
    def _needs_old(self) -> bool:
        """Whether the policy's log-probs before the update are asked for (`trainers.experience.infer`)."""
        rollout, train, kl = self.config.rollout, self.config.train, self.config.algo.kl
        steps = train.max_epochs * math.ceil(rollout.batch_size * rollout.n_samples_per_prompt / train.batch_size)
        return steps > 1 or (kl.init_coef > 0 and not kl.use_loss)

    @property
    def _asks_policy(self) -> bool:
        """Whether the policy answers without learning: for itself, or as the reference under its adapters."""
        return self._needs_old or (self.config.algo.kl.init_coef > 0 and self.config.ds.lora.rank > 0)

    @property
    def _policy_columns(self) -> int:
        """Advantages and the sampler's log-probs; the policy's before the update and the reference's where needed."""
        kl = self.config.algo.kl
        return 2 + self._needs_old + (kl.init_coef > 0 and kl.use_loss)

    def _cut(self, kind: Kind, rows: int, budget: int | None) -> Cut:
        selected = 1 if kind == "reward" else self.answer
        return Cut(self.length, selected, rows, None) if budget is None else Cut(self.length, selected, None, budget)

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return min(self.config.data.max_len, self.data.max_tokens)

    @property
    def answer(self) -> int:
        """Tokens of the longest answer."""
        return min(self.config.rollout.max_new_tokens or self.length, max(self.length - 1, 1))

    def engines(self) -> EngineRun:
        config, vllm = self.config, self.config.vllm
        pool = pools_of(config).get("vllm", "vllm")
        run = self._engine("engines", config.actor.model_name_or_path, vllm, pool)
        round_size = min(config.rollout.vllm_generate_batch_size or config.rollout.batch_size, _or_all(self.data.rows))
        # A prompt's samples go to one engine.
        prompts = math.ceil(round_size / vllm.num_engines)
        return replace(
            run,
            enforce_eager=vllm.enforce_eager or not self.hardware.on_gpu,
            kv_cache_bytes=None if self.hardware.on_gpu else int(vllm.kv_cache_gb * 2**30),
            sequences=min(prompts * config.rollout.n_samples_per_prompt, MOST_SEQUENCES),
            prompt_tokens=max(self.length - self.answer, 1),
            tokens_each=self.length,
            bucket_bytes=vllm.sync_bucket_mb * 1_000_000,
        )

    def judge(self) -> EngineRun:
        config, judge = self.config, self.config.judge
        pool = pools_of(config).get("judge", "judge")
        run = self._engine("judge", judge.model_name_or_path, judge, pool)
        answers = math.ceil(config.rollout.batch_size * questions_of_a_prompt(config) / judge.num_engines)
        longest = longest_judgement(config, run.shape.positions)
        return replace(
            run,
            kv_cache_bytes=None if self.hardware.on_gpu else int(judge.kv_cache_gb * 2**30),
            enforce_eager=judge.enforce_eager or not self.hardware.on_gpu,
            sequences=min(answers, MOST_SEQUENCES),
            prompt_tokens=max(longest - judge.max_new_tokens, 1),
            tokens_each=longest,
        )

    def _engine(self, role: Role, name: str, section: Any, pool: str) -> EngineRun:
        config = self.config
        shares = pool == pools_of(config).get("actor", "actor")
        sleeps = section.enable_sleep and shares and self.hardware.on_gpu
        return EngineRun(
            role=role,
            shape=find_shape(name),
            count=section.num_engines,
            pool=pool,
            tensor_parallel=section.tensor_parallel_size,
            dtype=config.ds.param_dtype,
            utilization=section.gpu_memory_utilization,
            sleeps=sleeps,
            awake=AWAKE[role] if sleeps else ALL,
        )


def _or_all(rows: int | None) -> float:
    return math.inf if rows is None else rows
