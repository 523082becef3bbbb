#!/usr/bin/env bash
# Self-play on MEDEC's notes, converted by convert.py. The environment may name other models and rows:
#   MODEL=Qwen/Qwen3-4B JUDGE=google/medgemma-4b-it TRAIN=data/medical_selfplay/train.jsonl \
#     examples/medical_selfplay/train.sh
# Without MODEL a tiny one is made and warmed up, which needs no GPU; without JUDGE the rows' labels decide alone.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;; esac
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${OUT:-outputs/medical_selfplay}
train=${TRAIN:-data/medical_selfplay/train.jsonl}
flags=(--config "$here/rl.yaml")
judge=()

if [ -z "${MODEL:-}" ]; then
  "${PYTHON:-python}" "$here/warm_up.py" "$train" "$out/warm_up.jsonl"
  openrlhf-ext tiny-model --output "$out/tiny" --corpus "$out/warm_up.jsonl" --vocab 2048
  openrlhf-ext sft --config "$here/warm_up.yaml" --device cpu \
    --model.model_name_or_path "$out/tiny" --data.dataset "$out/warm_up.jsonl" \
    --ckpt.output_dir "$out/sft" --ckpt.path "$out/sft/checkpoints"
  MODEL=$out/sft/model
  flags+=("$here/tiny.yaml" --device cpu)
elif [ -n "${JUDGE:-}" ]; then
  judge=(--judge.gpu_memory_utilization 0.3 --judge.enable_sleep)
fi
if [ -n "${JUDGE:-}" ]; then
  judge+=(--judge.model_name_or_path "$JUDGE")
fi

openrlhf-ext rl "${flags[@]}" \
  --actor.model_name_or_path "$MODEL" \
  --data.prompt_dataset "$train" \
  --train.agent_func_path "$here/game.py" --agent.timeout_s 60 --agent.max_turns 2 \
  --reward.remote_url "$here/reward.py" \
  --ckpt.output_dir "$out/rl" --ckpt.path "$out/rl/checkpoints" "${judge[@]}" "$@"
