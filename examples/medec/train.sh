#!/usr/bin/env bash
# REINFORCE on MEDEC's notes, converted by convert.py. MODEL and TRAIN may be named by the environment:
#   MODEL=Qwen/Qwen3-4B TRAIN=data/medec/train.jsonl examples/medec/train.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

openrlhf-ext rl --config "$here/rl.yaml" \
  --actor.model_name_or_path "${MODEL:-Qwen/Qwen3-4B}" \
  --data.prompt_dataset "${TRAIN:-data/medec/train.jsonl}" \
  --reward.remote_url "$here/reward.py" \
  --ckpt.output_dir outputs/medec --ckpt.path outputs/medec/checkpoints "$@"
