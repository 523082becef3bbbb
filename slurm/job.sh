# shellcheck shell=bash
# What every job script does around its training command. Sourced.
#
# Slurm's warning before the time limit (--signal=B:USR1@SECONDS in the scripts) reaches the batch shell; the ranks are
# told, save after their step and end with 75; the job is then put back into the queue and goes on from there.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
HERE=${SLURMD_NODENAME:-$(hostname -s)} # as Slurm calls this node; its host name may have a domain
COME_BACK=75
warned=no

say() { echo "${SLURM_JOB_NAME:-$(basename "$0" .sh)}: $*"; }
die() { say "$*" >&2; exit 2; }

# The comment at the head of a job script.
usage() { sed -n '2,/^$/{s/^# \{0,1\}//;/^SBATCH/d;p}' "$0"; exit 0; }

# PYTHON: how Python is called on every node, here in the image, which is shown what the job reads and writes.
enter_container() {
  local program
  [ -e "$CONTAINER" ] || die "CONTAINER $CONTAINER does not exist: name an image, or leave it empty and use VENV."
  program=$(command -v apptainer || command -v singularity) || die "CONTAINER needs apptainer or singularity, and neither is on this node."
  mkdir -p "$SCRATCH"
  PYTHON=("$program" exec --bind "$ROOT" --bind "$SCRATCH" ${BINDS:+--bind "$BINDS"})
  [ "$DEVICE" = cpu ] || PYTHON+=(--nv)
  PYTHON+=("$CONTAINER" python)
}

enter_cluster() {
  # shellcheck source=slurm/cluster.sh
  source "${CLUSTER:-$ROOT/slurm/cluster.sh}"
  if [ -n "$MODULES" ]; then
    # shellcheck disable=SC2086 # a list of words
    module load $MODULES
  fi
  if [ -n "$CONTAINER" ]; then
    enter_container
  else
    PYTHON=("$VENV/bin/python")
    [ -x "${PYTHON[0]}" ] || die "VENV $VENV holds no bin/python: run ./quick_start.sh --setup-only, or name another in slurm/cluster.sh."
  fi
  if [ -n "$NETWORK" ]; then
    export NCCL_SOCKET_IFNAME=$NETWORK GLOO_SOCKET_IFNAME=$NETWORK
  fi
  say "ranks meet over ${NETWORK:-the interface that NCCL and gloo choose (NETWORK names one)}"
}

# NODES, PER_NODE and RANKS: what Slurm really gave, against what was asked for.
count_ranks() {
  [ -n "${SLURM_JOB_ID:-}" ] || die "this is a job script: give it to sbatch (or to slurm/submit.sh); -h says more."
  NODES=$SLURM_JOB_NUM_NODES
  local given=${SLURM_GPUS_ON_NODE:-0}
  DEVICE=${DEVICE:-cuda}
  PER_NODE=${GPUS_PER_NODE:-$given}
  if [ "$DEVICE" != cpu ] && [ "$PER_NODE" -ne "$given" ]; then
    die "GPUS_PER_NODE is $PER_NODE and Slurm gave $given on each node: ask for as many (sbatch --gpus-per-node=$PER_NODE), or leave GPUS_PER_NODE out."
  fi
  [ "$PER_NODE" -ge 1 ] || die "Slurm gave no GPU: ask for some (sbatch --gpus-per-node=N), or give DEVICE=cpu and GPUS_PER_NODE=N for N ranks on each node."
  RANKS=$((NODES * PER_NODE))
  say "$NODES node$( ((NODES == 1)) || echo s) ($SLURM_JOB_NODELIST) x $PER_NODE ranks = $RANKS on $DEVICE"
}

# The effective batch out of micro-batch and accumulation, for the ranks that are there. $1: what the job is made for.
check_batch() {
  BATCH=${BATCH:-$1}
  MICRO=${MICRO:-2}
  local pass=$((MICRO * RANKS))
  ((BATCH % pass == 0)) || die "an effective batch of $BATCH is no multiple of $MICRO x $RANKS ranks = $pass: change BATCH, MICRO or the number of GPUs."
  local accumulation=$((BATCH / pass))
  if [ -n "${ACCUMULATION:-}" ] && [ "$ACCUMULATION" -ne "$accumulation" ]; then
    die "MICRO $MICRO x ACCUMULATION $ACCUMULATION x $RANKS ranks is $((pass * ACCUMULATION)), and BATCH asks for $BATCH: change one of them, or the number of GPUs."
  fi
  say "effective batch $MICRO x $accumulation x $RANKS = $BATCH"
}

# One value of a sweep for each task of an array: SWEEP="adam.lr=1e-6,3e-6" sbatch --array=0-1 ...
choose_sweep() {
  SWEPT=()
  [ -n "${SWEEP:-}" ] || return 0
  [ -n "${SLURM_ARRAY_TASK_ID:-}" ] || die "SWEEP needs an array: sbatch --array=0-N."
  local values
  IFS=, read -ra values <<<"${SWEEP#*=}"
  ((SLURM_ARRAY_TASK_ID < ${#values[@]})) || die "SWEEP has ${#values[@]} values and this is task $SLURM_ARRAY_TASK_ID: give --array=0-$((${#values[@]} - 1))."
  SWEPT=("--${SWEEP%%=*}" "${values[SLURM_ARRAY_TASK_ID]}")
  say "task $SLURM_ARRAY_TASK_ID of the sweep: ${SWEPT[*]}"
}

# OUTPUT: the same for a job that comes back, another for another job, RUN where the user names it to go on from it.
choose_output() {
  OUTPUT=$SCRATCH/${RUN_NAME:-$SLURM_JOB_NAME-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}
  mkdir -p "$OUTPUT/logs"
  say "output in $OUTPUT, logs by rank in $OUTPUT/logs"
  KEPT=(--ckpt.output_dir "$OUTPUT" --ckpt.path "$OUTPUT/checkpoints" --ckpt.load_enable)
}

# A flag that the scripts give themselves may not be given to them as well: one of the two would be lost unsaid.
refuse_own_flags() { # FLAGS...
  local word name
  for word in "$@" ${SWEEP:+"--$SWEEP"}; do
    name=${word%%=*}
    case $name in
      --train.batch_size | --train_batch_size | --train.micro_batch_size | --micro_train_batch_size)
        # RL has no BATCH: there they are the command's own.
        [ -z "${BATCH:-}" ] || die "$name is given by this script, for the ranks that it has: set BATCH and MICRO in the environment instead (ACCUMULATION follows)."
        ;;
      --ckpt.path | --ckpt_path | --ckpt.output_dir | --save_path | --ckpt.load_enable | --load_checkpoint)
        die "$name is given by this script, so that a job that comes back finds what it kept: set SCRATCH and RUN_NAME in the environment instead; output is in SCRATCH/RUN_NAME."
        ;;
      --device | --device.type) die "$name is given by this script: set DEVICE in the environment instead." ;;
    esac
  done
}

# All that comes before training. $1: the effective batch that the job is made for, where it has one.
prepare() { # BATCH FLAGS...
  count_ranks
  [ -z "$1" ] || check_batch "$1"
  refuse_own_flags "${@:2}"
  enter_cluster
  choose_sweep
  choose_output
}

# The exit code of a process in the background.
exit_code() { # PID
  local code last=0
  # A trapped signal interrupts the wait, not the process; 127 is the answer on what has been waited for already.
  while :; do
    if wait "$1"; then code=0; else code=$?; fi
    if [ "$code" -le 128 ] || ! kill -0 "$1" 2>/dev/null; then break; fi
  done
  if [ "$code" -gt 128 ]; then
    wait "$1" 2>/dev/null || last=$?
    [ "$last" -eq 127 ] || code=$last
  fi
  return "$code"
}

# Become a command that may be told before it listens: Python takes some seconds until it can, and would end of it.
deaf() { trap '' USR1; exec "$@"; }

# Run a command in the background, tell it when the time is nearly up, and answer with its exit code.
await() { # TELL COMMAND...
  local tell=$1 code=0 pid
  shift
  deaf "$@" &
  pid=$!
  # shellcheck disable=SC2064 # as they are now
  trap "warned=yes; say 'the time is nearly up: saving'; $tell $pid" USR1
  # shellcheck disable=SC2064
  trap "warned=yes; say 'Slurm ends this job: saving what can be saved'; $tell $pid" TERM
  exit_code "$pid" || code=$?
  trap - USR1 TERM
  return "$code"
}

tell_ranks() { scancel --signal=USR1 "$SLURM_JOB_ID"; }
# Again and again, until it has heard it and has ended.
tell_process() { # PID
  while kill -USR1 "$1" 2>/dev/null; do sleep 2; done &
}

# Back into the queue, if the run was told to stop and has got further since it last came back.
come_back() { # EXIT_CODE
  local code=$1 newest before=$OUTPUT/.came_back_from
  if [ "$warned" != yes ] || [ "$code" -ne "$COME_BACK" ]; then
    return "$code"
  fi
  newest=$(find "$OUTPUT/checkpoints" -mindepth 1 -maxdepth 1 -type d -name '*[0-9]' | sort | tail -n 1)
  if [ -e "$before" ] && [ "$(cat "$before")" = "$newest" ]; then
    die "no step since the job last came back ($newest): a longer --time is needed, or an earlier --signal."
  fi
  echo "$newest" >"$before"
  say "back into the queue; it goes on from $newest"
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60 # Slurm ends this shell
}

# One rank on each GPU of every node, of a supervised command.
train_ranks() { # COMMAND FLAGS...
  local command=$1 code=0 cpus=$((${SLURM_CPUS_ON_NODE:-0} / PER_NODE))
  shift
  ((cpus > 0)) || cpus=1
  local flags=(--model.num_nodes "$NODES" --model.num_gpus_per_node "$PER_NODE" --train.batch_size "$BATCH"
    --train.micro_batch_size "$MICRO" --device "$DEVICE" "${KEPT[@]}" ${SWEPT[@]+"${SWEPT[@]}"} "$@")
  say "openrlhf-ext $command ${flags[*]}"
  choose_host
  MASTER_PORT=${MASTER_PORT:-$(node port "$HOST")} # rank 0 is on this node
  export MASTER_ADDR=$HOST MASTER_PORT ENDED=$OUTPUT/logs/.ended
  rm -f "$ENDED"
  local log=$OUTPUT/logs/rank-0.log shown
  touch "$log"
  shown=$(stat -c %s "$log") # before the job came back
  tail -c +$((shown + 1)) -F "$log" 2>/dev/null &
  local following=$!
  await tell_ranks srun --nodes="$NODES" --ntasks="$RANKS" --ntasks-per-node="$PER_NODE" --cpus-per-task="$cpus" --overcommit \
    --kill-on-bad-exit=1 --output="$OUTPUT/logs/rank-%t.log" --error="$OUTPUT/logs/rank-%t.log" --open-mode=append \
    bash "$ROOT/slurm/rank.sh" "${PYTHON[@]}" -m "openrlhf_ext.cli.train_$command" "${flags[@]}" || code=$?
  [ ! -s "$ENDED" ] || code=$(cat "$ENDED")
  sleep 1
  kill "$following" 2>/dev/null || true
  [ "$code" -eq 0 ] || say "the ranks ended with exit code $code; what each said last is in $OUTPUT/logs"
  come_back "$code"
}

node() { "${PYTHON[@]}" "$ROOT/slurm/node.py" "$@"; }

# HOST: where the others reach this node.
choose_host() {
  local peer=
  if ((NODES > 1)); then peer=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -vxF -m 1 "$HERE"); fi
  HOST=$(node address "$NETWORK" "$peer")
}

# Ray on every node of the job, on the network that they share, for whoever has the token. RAY is its address.
start_ray() {
  choose_host
  RAY=$HOST:$(node port "$HOST")
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$OUTPUT/.ray_token
  export RAY_USAGE_STATS_ENABLED=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
  (umask 077 && "${PYTHON[@]}" -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH")
  say "Ray at $RAY: the head on $HERE, $((NODES - 1)) workers"
  STEPS=()
  ray_step --nodelist 1 --head
  if [ "$NODES" -gt 1 ]; then
    node wait "$RAY" 1
    ray_step --exclude $((NODES - 1)) --worker
  fi
  node wait "$RAY" "$NODES"
}

ray_step() { # --nodelist|--exclude COUNT --head|--worker
  srun "$1=$HERE" --nodes="$2" --ntasks="$2" --ntasks-per-node=1 --overlap --overcommit \
    --output="$OUTPUT/logs/ray-%N.log" --error="$OUTPUT/logs/ray-%N.log" --open-mode=append \
    "${PYTHON[@]}" "$ROOT/slurm/node.py" start "$3" "$RAY" "$PER_NODE" "$DEVICE" "$NETWORK" &
  STEPS+=($!)
}

# Ray, and RL's driver here on the first node; the job ends with it.
train_on_ray() { # FLAGS...
  local code=0 batch
  local flags=("$@" --device "$DEVICE" "${KEPT[@]}" ${SWEPT[@]+"${SWEPT[@]}"})
  batch=$(node batch "${flags[@]}")
  say "$batch"
  say "openrlhf-ext rl ${flags[*]}"
  start_ray
  await tell_process "${PYTHON[@]}" -m openrlhf_ext.cli.main rl "${flags[@]}" --ray.address "$RAY" || code=$?
  kill "${STEPS[@]}" 2>/dev/null || true
  wait "${STEPS[@]}" 2>/dev/null || true
  come_back "$code"
}
