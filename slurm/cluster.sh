# shellcheck shell=bash disable=SC2034 # read by job.sh
# What differs between clusters; the job scripts read this file and nothing else of the kind. Edit it, or keep your own
# beside it and name that one: CLUSTER=slurm/mine.sh. What the environment names already stands.

VENV=${VENV:-$ROOT/.venv}              # where quick_start.sh installed this; on every node
MODULES=${MODULES:-}                   # loaded first, with spaces between: "cuda/12.8 gcc/13"
CONTAINER=${CONTAINER:-}               # an image that holds the installation instead of VENV (apptainer, singularity)
BINDS=${BINDS:-}                       # what CONTAINER sees beside this repository and SCRATCH: "/models,/data:/data:ro"
NETWORK=${NETWORK:-}                   # interface that ranks meet over (ib0); empty: where the nodes' names lead
SCRATCH=${SCRATCH:-$PWD/outputs}       # shared between the nodes: checkpoints, models, logs

# How slurm/submit.sh asks for GPUs: gpus-per-node (--gpus-per-node=N or TYPE:N) or gres (--gres=gpu:TYPE:N).
GPU_REQUEST=${GPU_REQUEST:-gpus-per-node}
GPU_TYPE=${GPU_TYPE:-}                 # rtx4090, a100, ...; empty: any
SBATCH_FLAGS=${SBATCH_FLAGS:-}         # of every job: "--partition=gpu --account=mine --mem=0"
