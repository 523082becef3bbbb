#!/usr/bin/env bash
# sbatch with what slurm/cluster.sh says of this cluster: how GPUs are asked for, their type, partition and account.
#
#   slurm/submit.sh [--nodes=N] [--gpus=N] [sbatch flags] SCRIPT [flags of the training command]
#
# --gpus is for each node (not given: what the script asks for). With GPU_REQUEST=gres in slurm/cluster.sh the script's
# own --gpus-per-node gives way to --gres=gpu:TYPE:N.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
die() { echo "submit: $*" >&2; exit 2; }
case ${1:-} in -h | --help) sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "${BASH_SOURCE[0]}"; exit 0 ;; esac
# shellcheck source=slurm/cluster.sh
source "${CLUSTER:-$ROOT/slurm/cluster.sh}"

flags=() gpus=
while [ $# -gt 0 ] && [[ $1 == -* ]]; do
  case $1 in
    --gpus=*) gpus=${1#*=} ;;
    *) flags+=("$1") ;;
  esac
  shift
done
[ $# -gt 0 ] || die "name a job script, such as slurm/train_pm_hh_rlhf.sh; -h says more."
script=$1
shift
[ -f "$script" ] || die "$script does not exist: name a job script, such as slurm/train_pm_hh_rlhf.sh."
[ -n "$gpus" ] || gpus=$(sed -n 's/^#SBATCH --gpus-per-node=//p' "$script")
[ -n "$gpus" ] || die "$script asks for no GPUs: give --gpus=N."

OPENRLHF_SLURM=$(cd "$(dirname "$script")" && pwd)
export OPENRLHF_SLURM
# shellcheck disable=SC2206 # a list of words
flags=(${SBATCH_FLAGS} ${flags[@]+"${flags[@]}"})
case $GPU_REQUEST in
  gpus-per-node) exec sbatch "--gpus-per-node=${GPU_TYPE:+$GPU_TYPE:}$gpus" ${flags[@]+"${flags[@]}"} "$script" "$@" ;;
  gres)
    # A flag of the script cannot be taken back on the command line: what is submitted is the script without it.
    sed '/^#SBATCH --gpus-per-node=/d' "$script" \
      | exec sbatch "--gres=gpu:${GPU_TYPE:+$GPU_TYPE:}$gpus" ${flags[@]+"${flags[@]}"} /dev/stdin "$@"
    ;;
  *) die "GPU_REQUEST is $GPU_REQUEST in slurm/cluster.sh: it is gpus-per-node or gres." ;;
esac
