"""The flags of `openrlhf-ext rl`, with the names, types and defaults of OpenRLHF 0.11.2's train_ppo_ray."""

# ruff: noqa: RUF009 (`flag` and `section` are dataclasses.field with a help text)

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from openrlhf_ext.config.agent import AgentSection
from openrlhf_ext.config.fields import declined, flag, section
from openrlhf_ext.config.judge import JudgeSection
from openrlhf_ext.config.sections import (
    AdamSection,
    AnsweringEvalSection,
    DataFields,
    DeviceSection,
    LoggerSection,
    MemorySection,
    OptimizerFields,
    PlanSection,
    RaySection,
    RewardSourceFields,
    RLCkptSection,
    RLDsSection,
    TrainFields,
)
from openrlhf_ext.config.student import StudentSection

AdvantageEstimator = Literal[
    "gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo", "flash_reinforce"
]
KLEstimator = Literal["k1", "k2", "k3"]
LossAggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"]

VISION = declined("vision-language training")
EMA = declined("the moving average of weights")
MOE_LOSS = declined("the mixture-of-experts balancing loss")


@dataclass(frozen=True, slots=True)
class ActorSection(OptimizerFields):
    model_name_or_path: str | None = flag(None, "the policy: a Hugging Face folder or hub name", common=True)
    num_nodes: int = flag(1, "machines the policy trains on")
    num_gpus_per_node: int = flag(8, "ranks of the policy on each machine (on a CPU: processes)", common=True)
    gradient_checkpointing_enable: bool = flag(False, "recompute activations in the backward pass", common=True)
    gradient_checkpointing_reentrant: bool = flag(False, "the reentrant kind of it")
    policy_loss_type: Literal["ppo", "gspo", "cispo"] = flag("ppo", "policy loss", common=True)
    loss_agg_mode: LossAggregation = flag(
        "token-mean",
        "what weighs the same: every token (norm: over a constant length) or every sequence (gspo: always)",
    )
    eps_clip: float = flag(0.2, "the probability ratio is clipped to 1 - eps .. 1 + eps")
    eps_clip_low_high: tuple[float, float] | None = flag(None, "the two sides of the clip apart (not set: eps_clip)")
    dual_clip: float | None = flag(None, "bound of the ratio where the advantage is negative (above 1; ppo and gspo)")
    entropy_coef: float | None = flag(None, "weight of the entropy bonus (0: entropy is only logged)")
    aux_loss_coef: float = flag(0.0, "weight of the balancing loss", refused=MOE_LOSS)
    freeze_visual_encoder: bool = flag(False, "train the language model only", refused=VISION)


@dataclass(frozen=True, slots=True)
class CriticSection(OptimizerFields):
    adam: AdamSection = section(partial(AdamSection, lr=9e-6), "AdamW")
    model_name_or_path: str | None = flag(
        None, "what it starts from (not set: the reward model without remote_url, else the policy)"
    )
    num_nodes: int = flag(1, "machines the critic trains on")
    num_gpus_per_node: int = flag(8, "ranks of the critic on each machine (on a CPU: processes)")
    value_clip: float = flag(0.5, "a value moves at most this far from the old one in a step")
    freezing_steps: int = flag(-1, "first rollout steps in which the critic learns and the policy does not")
    save_value_network: bool = flag(False, "export the critic too")


@dataclass(frozen=True, slots=True)
class RefSection:
    num_nodes: int = flag(1, "machines of the reference")
    num_gpus_per_node: int = flag(8, "ranks of the reference on each machine (on a CPU: processes)", common=True)
    offload: bool = flag(False, "keep the reference's parameters in host memory")
    sync_steps: int = flag(0, "rollout steps after which the reference moves towards the policy (0: it never does)")
    sync_mixup: float = flag(0.9, "part of the policy in it then: (1 - mixup) * reference + mixup * policy")


@dataclass(frozen=True, slots=True)
class RewardSection(RewardSourceFields):
    remote_url: str | None = flag(
        None,
        "reward source: a Python file with reward_func, a URL, rule:format, rule:length, verify:exact or verify:math; "
        "several with commas",
        common=True,
    )
    weights: tuple[float, ...] = flag(
        (),
        "one weight for each source of remote_url, then for environment, reward model, student and judge where there "
        "are any (not set: 1 each)",
    )
    normalize: tuple[str, ...] = flag(
        (), "each source's rewards to mean 0 and deviation 1: none, batch or group, one for each source or one for all"
    )
    on_error: Literal["abort", "drop_group"] = flag(
        "abort", "after the last retry: stop the run, or drop the prompt's group and count it"
    )
    clip_range: tuple[float, float] = flag((-10.0, 10.0), "rewards are clipped to low .. high")
    model_name_or_path: str | None = flag(None, "reward model: a Hugging Face folder or hub name", common=True)
    normalize_enable: bool = flag(False, "normalise its scores by the mean and deviation that it knows")
    num_nodes: int = flag(1, "machines of the reward model")
    num_gpus_per_node: int = flag(8, "ranks of the reward model on each machine (on a CPU: processes)")
    offload: bool = flag(False, "keep the reward model's parameters in host memory")
    overlong_buffer_len: float | None = flag(None, "last tokens of the limit over which the overlong penalty grows")
    overlong_penalty_factor: float = flag(1.0, "the overlong penalty at the limit")
    stop_properly_penalty_coef: float | None = flag(
        None, "the score of an answer that was cut off is multiplied by it, or, below 0, replaced by it"
    )


@dataclass(frozen=True, slots=True)
class AdvantageSection:
    estimator: AdvantageEstimator = flag("gae", "how rewards become advantages (gae: with a critic)", common=True)
    gamma: float = flag(1.0, "discount of later rewards (gae, reinforce)")
    lambd: float = flag(1.0, "lambda of gae: 1 is unbiased, 0 trusts the critic alone")
    norm: Literal["auto", "none", "mean", "std"] = flag(
        "auto", "advantages of a batch: as they are, centred, or divided by their deviation too (auto: the estimator's)"
    )
    no_std_norm: bool = flag(False, "an estimator that normalises by itself centres only")
    is_correction_level: Literal["off", "token", "seq"] = flag(
        "off", "correct the mismatch of trainer and sampler for each token or sequence"
    )
    is_correction_mode: Literal["mask", "clip"] = flag(
        "mask", "what is out of bounds is left out, or its weight is cut to the bounds"
    )
    is_correction_gating: Literal["ratio", "binary_kl", "tv"] = flag("ratio", "what is held against the bounds")
    is_correction_threshold: tuple[float, ...] = flag((0.5, 5.0), "the bounds: high, or low and high")


@dataclass(frozen=True, slots=True)
class KLSection:
    init_coef: float = flag(0.01, "weight of the KL to the reference (0: no reference model)", common=True)
    estimator: KLEstimator = flag("k1", "estimator of the KL (Schulman 2020)", common=True)
    use_loss: bool = flag(False, "add the KL to the loss instead of taking it from the reward", common=True)
    target: float | None = flag(None, "adapt the weight towards this KL")
    horizon: int = flag(10000, "samples over which it adapts")
    unbiased_gradient: bool = flag(False, "in the loss: the reverse KL's own gradient, whatever the estimator")


@dataclass(frozen=True, slots=True)
class AlgoSection:
    advantage: AdvantageSection = section(AdvantageSection, "advantage estimation")
    kl: KLSection = section(KLSection, "distance to the reference")
    dynamic_filtering_enable: bool = flag(False, "replace groups whose mean score is not within the range", common=True)
    dynamic_filtering_range: tuple[float, float] = flag((0.0, 1.0), "mean scores between these are kept")


@dataclass(frozen=True, slots=True)
class RolloutSection:
    batch_size: int = flag(1024, "prompts in one rollout step", common=True)
    n_samples_per_prompt: int = flag(1, "answers sampled for each prompt", common=True)
    max_new_tokens: int | None = flag(
        None, "tokens of the longest answer (not set: what data.max_len leaves)", common=True
    )
    temperature: float = flag(1.0, "sampling temperature", common=True)
    top_p: float = flag(1.0, "nucleus sampling")
    top_k: int = flag(-1, "sample from the k likeliest tokens (-1: all)")
    min_p: float = flag(0.0, "least probability, as a part of the likeliest token's")
    stop: tuple[str, ...] = flag((), "strings that end an answer")
    micro_batch_size: int = flag(1, "sequences in one forward pass for log-probs")
    max_tokens_per_gpu: int | None = flag(
        None, "token budget of it under train.dynamic_batch_enable (not set: train.max_tokens_per_gpu)"
    )
    vllm_generate_batch_size: int | None = flag(
        None, "prompts of one generation round, several steps' worth (not set: rollout.batch_size)"
    )


@dataclass(frozen=True, slots=True)
class RLTrainSection(TrainFields):
    num_episodes: int = flag(1, "passes over the prompts", common=True)
    max_epochs: int = flag(1, "passes over each batch of rollouts")
    dynamic_batch_enable: bool = flag(False, "micro-batches by a budget of tokens instead of a number of sequences")
    max_tokens_per_gpu: int = flag(16192, "that budget, for each rank")
    colocate_all: bool = flag(False, "all models and engines share the same GPUs and take turns", common=True)
    colocate_actor_ref: bool = flag(False, "policy and reference share the same GPUs")
    colocate_critic_reward: bool = flag(False, "critic and reward model share the same GPUs")
    async_enable: bool = flag(False, "generate while training", common=True)
    async_queue_size: int = flag(1, "batches that generation may be ahead")
    partial_rollout_enable: bool = flag(False, "answers under way go on over a change of weights")
    agent_func_path: str | None = flag(None, "Python file of an agent: answers of several turns, in an environment")
    enable_ema: bool = flag(False, "keep a moving average of the weights", refused=EMA)
    ema_beta: float = flag(0.992, "its decay", refused=EMA)


@dataclass(frozen=True, slots=True)
class RLDataSection(DataFields):
    input_key: str = flag("input", "column of the prompt", common=True)
    prompt_dataset: str | None = flag(None, "prompts: files, folders or hub names; several with commas", common=True)
    prompt_probs: str | None = flag(None, "share of each of them, with commas (not set: all rows of all)")
    prompt_split: str = flag("train", "their split")
    label_key: str | None = flag(None, "column handed to the reward function as the label", common=True)
    max_samples: int = flag(int(1e8), "at most this many prompts")
    overlong_prompt: Literal["refuse", "drop", "truncate_left"] = flag(
        "drop", "a prompt that leaves no room for an answer: error, left out, or cut at the left (counted)"
    )
    drop_last: bool = flag(False, "leave out the last short batch of an epoch")
    image_key: str = flag("images", "column of images", refused=VISION)
    max_images_per_prompt: int = flag(0, "images of one prompt", refused=VISION)


@dataclass(frozen=True, slots=True)
class VllmSection:
    num_engines: int = flag(1, "inference engines", common=True)
    tensor_parallel_size: int = flag(1, "GPUs of one engine")
    gpu_memory_utilization: float = flag(0.95, "part of a GPU's memory an engine may take", common=True)
    enable_sleep: bool = flag(
        False, "give the GPU's memory back between generations (with train.colocate_all)", common=True
    )
    enable_prefix_caching: bool = flag(False, "reuse the cache of a shared prefix")
    enforce_eager: bool = flag(False, "no compiled graphs")
    sync_backend: str = flag(
        "nccl",
        "how weights travel to engines",
        refused="how weights travel follows from the device and the placement",
    )
    sync_with_ray: bool = flag(
        False, "Ray's collectives for it", refused=declined("sending weights through Ray's collectives")
    )
    sync_bucket_mb: int = flag(512, "MB of weights sent at a time")
    kv_cache_gb: float = flag(0.25, "GB of an engine's cache on a CPU")
    threads: int | None = flag(None, "threads of an engine on a CPU (not set: the cores shared evenly)")


@dataclass(frozen=True, slots=True)
class RLEvalSection(AnsweringEvalSection):
    temperature: float = flag(0.6, "sampling temperature of evaluation")
    n_samples_per_prompt: int = flag(4, "answers for each prompt, the k of pass@k")
    remote_url: str | None = flag(
        None, "rewards of evaluation, as reward.remote_url, such as a rule beside a judge (not set: those of training)"
    )


@dataclass(frozen=True, slots=True)
class RLLoggerSection(LoggerSection):
    rollout_dir: str | None = flag(None, "rollouts, one file a step (not set: rollouts in ckpt.output_dir)")


@dataclass(frozen=True, slots=True)
class RLConfig:
    """`openrlhf-ext rl`: reinforcement learning from reward functions and a reward model."""

    actor: ActorSection = section(ActorSection, "the policy: model, ranks, loss, optimizer")
    ref: RefSection = section(RefSection, "the frozen reference")
    critic: CriticSection = section(CriticSection, "the critic (algo.advantage.estimator gae)")
    reward: RewardSection = section(RewardSection, "where rewards come from")
    algo: AlgoSection = section(AlgoSection, "advantages and KL")
    rollout: RolloutSection = section(RolloutSection, "sampling")
    train: RLTrainSection = section(RLTrainSection, "batches, epochs, placement")
    data: RLDataSection = section(RLDataSection, "prompts")
    vllm: VllmSection = section(VllmSection, "inference engines")
    ds: RLDsSection = section(RLDsSection, "DeepSpeed, number formats, kernels")
    eval: RLEvalSection = section(RLEvalSection, "held-out evaluation")
    ckpt: RLCkptSection = section(RLCkptSection, "checkpoints and exports")
    logger: RLLoggerSection = section(RLLoggerSection, "metrics and rollouts on disk")
    device: DeviceSection = section(DeviceSection, "CPU or GPU")
    ray: RaySection = section(RaySection, "the cluster")
    judge: JudgeSection = section(JudgeSection, "the judge, a language model that scores")
    student: StudentSection = section(StudentSection, "a frozen model whose log-probs reward")
    agent: AgentSection = section(AgentSection, "answers of several turns (train.agent_func_path)")
    plan: PlanSection = section(PlanSection, "the plan that is made before anything loads")
    memory: MemorySection = section(MemorySection, "what the planner may choose")
    local_rank: int = flag(
        -1, "set by the deepspeed launcher", refused=declined("starting through the deepspeed launcher")
    )
    use_ms: bool = flag(False, "ModelScope instead of the Hugging Face hub", refused=declined("ModelScope"))

    @property
    def has_critic(self) -> bool:
        return self.algo.advantage.estimator == "gae"

    @property
    def has_agent(self) -> bool:
        return self.train.agent_func_path is not None

    @property
    def has_reward_model(self) -> bool:
        return self.reward.model_name_or_path is not None

    @property
    def has_judge(self) -> bool:
        return self.judge.model_name_or_path is not None or self.judge.url is not None

    @property
    def has_judge_reward(self) -> bool:
        """Whether the judge rewards; without a rubric it only answers reward files."""
        return self.has_judge and self.judge.prompt is not None

    @property
    def has_student(self) -> bool:
        return self.student.model_name_or_path is not None or self.student.from_reference
