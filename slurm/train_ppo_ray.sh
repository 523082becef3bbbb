#!/usr/bin/env bash
# RL on Ray: a head on the first node, a worker on every other one, the driver on the first. All models share the GPUs
# of all nodes and take turns, with one engine on each, and what waits sleeps in the hosts' memory: Qwen3-4B fits into
# 8 GPUs of 80 GB so (`openrlhf-ext plan rl ...` says what does). Other flags place models otherwise; who turns
# --train.colocate_all off turns --vllm.enable_sleep and --ds.enable_sleep off as well.
#
#   MODEL=Qwen/Qwen3-4B DATA=prompts.jsonl REWARD=reward.py sbatch slurm/train_ppo_ray.sh --rollout.batch_size 128
#   MODEL=... DATA=... REWARD=... GPUS_PER_NODE=1 DEVICE=cpu sbatch --nodes=2 slurm/train_ppo_ray.sh
#
# Environment: MODEL, DATA (prompts), REWARD (a Python file or a URL), TEST (held-out prompts), GPUS_PER_NODE, DEVICE
# (cuda, cpu), RUN_NAME (go on from the run of this name), SWEEP with --array; slurm/cluster.sh has the rest.
#SBATCH --job-name=rl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# Slurm runs a copy of this file from its spool: job.sh is beside the file that was given to sbatch.
OPENRLHF_SLURM=${OPENRLHF_SLURM:-$(scontrol show job "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|^ *Command=\(.*\)/train_[a-z0-9_]*\.sh.*|\1|;T;p;q')}
# shellcheck source=slurm/job.sh
source "${OPENRLHF_SLURM:-$(dirname "${BASH_SOURCE[0]}")}/job.sh"

case ${1:-} in -h | --help) usage ;; esac
MODEL=${MODEL:?names the policy, a folder or hub name} DATA=${DATA:?names the prompts}
REWARD=${REWARD:?names where rewards come from, a Python file or a URL}
[ -z "${BATCH:-}${MICRO:-}${ACCUMULATION:-}" ] || die "BATCH, MICRO and ACCUMULATION are for supervised scripts: a batch of RL goes with its rollouts; give --train.batch_size and --train.micro_batch_size, and --rollout.batch_size."
prepare "" "$@"
shared=(--train.colocate_all)
[ "$DEVICE" = cpu ] || shared+=(--vllm.enable_sleep --vllm.gpu_memory_utilization 0.75 --ds.enable_sleep)
train_on_ray "${shared[@]}" --actor.num_nodes "$NODES" --actor.num_gpus_per_node "$PER_NODE" \
  --vllm.num_engines "$RANKS" --ds.zero_stage 3 --ckpt.save_steps 5 --actor.model_name_or_path "$MODEL" \
  --data.prompt_dataset "$DATA" --reward.remote_url "$REWARD" ${TEST:+--eval.dataset "$TEST"} "$@"
