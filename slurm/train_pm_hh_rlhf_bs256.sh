#!/usr/bin/env bash
# A preference model on hh-rlhf with ZeRO-3 on 16 GPUs: micro-batch 2 x accumulation 8 x 16 GPUs = 256 pairs a step.
#
#   sbatch slurm/train_pm_hh_rlhf_bs256.sh                        Qwen3-4B on two nodes of 8 GPUs
#   sbatch --nodes=4 --gpus-per-node=4 slurm/train_pm_hh_rlhf_bs256.sh
#
# Environment: MODEL, DATA, TEST (files or hub names), BATCH, MICRO, ACCUMULATION (checked, not needed), GPUS_PER_NODE,
# DEVICE (cuda, cpu), RUN_NAME (go on from the run of this name), SWEEP with --array; slurm/cluster.sh has the rest.
#SBATCH --job-name=pm-hh-rlhf-bs256
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
prepare 256 "$@"
train_ranks rm --preset qwen3-4b-pm-16x24gb ${MODEL:+--model.model_name_or_path "$MODEL"} \
  ${DATA:+--data.dataset "$DATA" --eval.dataset "${TEST:?names the rows to evaluate on, as DATA those to train on}" --eval.split train} "$@"
