"""The flat flags of OpenRLHF 0.6 to 0.9 and the flags they are now."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from openrlhf_ext.config.fields import flags_of

_NO_LONGER = "OpenRLHF has it no longer; leave it out"
_FORK = "it is a fork's flag, not OpenRLHF's; leave it out"

GONE = {
    "actor_init_on_gpu": _NO_LONGER,
    "perf": _NO_LONGER,
    "ptx_coef": _NO_LONGER,
    "custom_configs": _FORK,
    "actor_loss_coef": _FORK,
}

# The prompt's limit, the response's, and the old default of the latter: data.max_len is their sum.
OLD_LENGTHS = ("prompt_max_len", "generate_max_len", 1024)

_EVERYWHERE = """
adam_offload ds.adam_offload
apply_chat_template data.apply_chat_template
attn_implementation ds.attn_implementation
ckpt_path ckpt.path
deepcompile ds.deepcompile
disable_ds_ckpt ckpt.disable_ds
disable_fast_tokenizer data.disable_fast_tokenizer
ds_tensor_parallel_size ds.tensor_parallel_size
eval_dataset eval.dataset
eval_split eval.split
eval_steps eval.steps
full_determinism train.full_determinism_enable
grad_accum_dtype ds.grad_accum_dtype
input_key data.input_key
input_template data.input_template
load_checkpoint ckpt.load_enable
load_in_4bit ds.load_in_4bit
logging_steps logger.logging_steps
lora_alpha ds.lora.alpha
lora_dropout ds.lora.dropout
lora_rank ds.lora.rank
max_ckpt_mem ckpt.max_mem
max_ckpt_num ckpt.max_num
max_epochs train.max_epochs
max_len data.max_len
max_samples data.max_samples
micro_train_batch_size train.micro_batch_size
overlap_comm ds.overlap_comm
packing_samples ds.packing_samples
param_dtype ds.param_dtype
ring_attn_size ds.ring_attn_size
ring_head_stride ds.ring_attn_head_stride
save_hf_ckpt ckpt.save_hf
save_path ckpt.output_dir
save_steps ckpt.save_steps
seed train.seed
target_modules ds.lora.target_modules
train_batch_size train.batch_size
use_ds_universal_ckpt ds.use_universal_ckpt
use_liger_kernel ds.use_liger_kernel
use_tensorboard logger.tensorboard_dir
use_wandb logger.wandb.key
wandb_group logger.wandb.group
wandb_org logger.wandb.org
wandb_project logger.wandb.project
wandb_run_name logger.wandb.run_name
zero_stage ds.zero_stage
zpg ds.zpg
"""

_RL = """
actor_learning_rate actor.adam.lr
actor_num_gpus_per_node actor.num_gpus_per_node
actor_num_nodes actor.num_nodes
adam_betas actor.adam.betas critic.adam.betas
advantage_estimator algo.advantage.estimator
agent_func_path train.agent_func_path
async_queue_size train.async_queue_size
async_train train.async_enable
aux_loss_coef actor.aux_loss_coef
best_metric_key ckpt.best_metric_key
colocate_actor_ref train.colocate_actor_ref
colocate_all_models train.colocate_all
colocate_critic_reward train.colocate_critic_reward
critic_learning_rate critic.adam.lr
critic_num_gpus_per_node critic.num_gpus_per_node
critic_num_nodes critic.num_nodes
critic_pretrain critic.model_name_or_path
deepspeed_enable_sleep ds.enable_sleep
dual_clip actor.dual_clip
dynamic_filtering algo.dynamic_filtering_enable
dynamic_filtering_reward_range algo.dynamic_filtering_range
ema_beta train.ema_beta
enable_ema train.enable_ema
enable_prefix_caching vllm.enable_prefix_caching
enforce_eager vllm.enforce_eager
entropy_loss_coef actor.entropy_coef
eps_clip actor.eps_clip
eps_clip_low_high actor.eps_clip_low_high
eval_n_samples_per_prompt eval.n_samples_per_prompt
eval_temperature eval.temperature
freezing_actor_steps critic.freezing_steps
gamma algo.advantage.gamma
generate_max_len rollout.max_new_tokens
gradient_checkpointing actor.gradient_checkpointing_enable
gradient_checkpointing_use_reentrant actor.gradient_checkpointing_reentrant
init_kl_coef algo.kl.init_coef
kl_estimator algo.kl.estimator
kl_horizon algo.kl.horizon
kl_target algo.kl.target
l2 actor.adam.weight_decay critic.adam.weight_decay
label_key data.label_key
lambd algo.advantage.lambd
lr_scheduler actor.lr_scheduler critic.lr_scheduler
lr_warmup_ratio actor.lr_warmup_ratio critic.lr_warmup_ratio
max_new_tokens rollout.max_new_tokens
max_norm actor.max_norm critic.max_norm
micro_rollout_batch_size rollout.micro_batch_size
n_samples_per_prompt rollout.n_samples_per_prompt
no_advantage_std_norm algo.advantage.no_std_norm
normalize_reward reward.normalize_enable
num_episodes train.num_episodes
overlong_buffer_len reward.overlong_buffer_len
overlong_penalty_factor reward.overlong_penalty_factor
partial_rollout train.partial_rollout_enable
policy_loss_type actor.policy_loss_type
pretrain actor.model_name_or_path
prompt_data data.prompt_dataset
prompt_data_probs data.prompt_probs
prompt_max_len data.max_len
prompt_split data.prompt_split
ref_num_gpus_per_node ref.num_gpus_per_node
ref_num_nodes ref.num_nodes
ref_reward_offload ref.offload reward.offload
remote_rm_url reward.remote_url
reward_clip_range reward.clip_range
reward_num_gpus_per_node reward.num_gpus_per_node
reward_num_nodes reward.num_nodes
reward_pretrain reward.model_name_or_path
rollout_batch_size rollout.batch_size
rollout_max_tokens_per_gpu rollout.max_tokens_per_gpu
save_value_network critic.save_value_network
stop_properly_penalty_coef reward.stop_properly_penalty_coef
temperature rollout.temperature
top_p rollout.top_p
train_max_tokens_per_gpu train.max_tokens_per_gpu
use_dynamic_batch train.dynamic_batch_enable
use_kl_loss algo.kl.use_loss
value_clip critic.value_clip
value_head_prefix ds.value_head_prefix
vllm_enable_sleep vllm.enable_sleep
vllm_generate_batch_size rollout.vllm_generate_batch_size
vllm_gpu_memory_utilization vllm.gpu_memory_utilization
vllm_is_truncated_threshold algo.advantage.is_correction_threshold
vllm_num_engines vllm.num_engines
vllm_sync_backend vllm.sync_backend
vllm_sync_with_ray vllm.sync_with_ray
vllm_tensor_parallel_size vllm.tensor_parallel_size
"""

_SUPERVISED = """
adam_betas adam.betas
aux_loss_coef model.aux_loss_coef
beta model.beta
chosen_key data.chosen_key
compute_fp32_loss model.compute_fp32_loss_enable
dataset data.dataset
dataset_probs data.dataset_probs
dataset_split data.dataset_split
gradient_checkpointing model.gradient_checkpointing_enable
gradient_checkpointing_use_reentrant model.gradient_checkpointing_reentrant
ipo model.ipo_enable
l2 adam.weight_decay
label_smoothing model.label_smoothing
learning_rate adam.lr
loss model.loss_type
margin_loss model.margin_loss_enable
multiturn data.multiturn
nll_loss_coef model.nll_loss_coef
output_key data.output_key
pretrain model.model_name_or_path
pretrain_mode model.pretrain_mode_enable
prompt_key data.prompt_key
ref_offload ref.offload
ref_pretrain ref.model_name_or_path
rejected_key data.rejected_key
tokenizer_chat_template data.tokenizer_chat_template
value_head_prefix ds.value_head_prefix
"""


@dataclass(frozen=True, slots=True)
class OldFlag:
    """`targets`: the flags it is now; `value`: what a switch of old sets; `translate`: values renamed.

    `gone`: values that no single flag means any more, and what to write.
    """

    targets: tuple[str, ...]
    value: str | None = None
    translate: Mapping[str, str] = field(default_factory=dict)
    gone: Mapping[str, str] = field(default_factory=dict)


_SWITCHES = {
    "bf16": OldFlag(("ds.param_dtype",), value="bf16"),
    "flash_attn": OldFlag(("ds.attn_implementation",), value="flash_attention_2"),
    "enable_vllm_is_correction": OldFlag(("algo.advantage.is_correction_level",), value="token"),
    "vllm_is_correction_type": OldFlag(
        ("algo.advantage.is_correction_mode",),
        translate={"tis": "clip", "icepop": "mask"},
        gone={"seq-mask-tis": "write --algo.advantage.is_correction_level seq instead (mask is the default mode)"},
    ),
}


@functools.cache
def old_flags_of(tree: type) -> Mapping[str, OldFlag]:
    """The old names that mean something to this command."""
    own = _RL if "actor.adam.lr" in flags_of(tree) else _SUPERVISED
    rows = [line.split() for line in (_EVERYWHERE + own).splitlines() if line]
    table = {name: OldFlag(tuple(targets)) for name, *targets in rows}
    return {name: old for name, old in (table | _SWITCHES).items() if set(old.targets) <= set(flags_of(tree))}
