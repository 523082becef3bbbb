#!/usr/bin/env bash
# DPO with ZeRO-3 on 8 GPUs: micro-batch 2 x accumulation 4 x 8 GPUs = 64 pairs a step. The reference's log-probs are
# computed once and kept on disk, or come from the base under adapters (--ds.lora.rank).
#
#   MODEL=outputs/sft/model DATA=pairs.jsonl sbatch slurm/train_dpo.sh --data.prompt_key prompt
#
# Environment: MODEL, DATA, TEST (files or hub names), BATCH, MICRO, ACCUMULATION (checked, not needed), GPUS_PER_NODE,
# DEVICE (cuda, cpu), RUN_NAME (go on from the run of this name), SWEEP with --array; slurm/cluster.sh has the rest.
#SBATCH --job-name=dpo
#SBATCH --nodes=1
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
MODEL=${MODEL:?names the model, a folder or hub name} DATA=${DATA:?names the pairs to train on}
prepare 64 "$@"
train_ranks dpo --ds.zero_stage 3 --model.model_name_or_path "$MODEL" --data.dataset "$DATA" \
  ${TEST:+--eval.dataset "$TEST"} --ckpt.save_steps 100 "$@"
