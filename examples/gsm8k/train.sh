#!/usr/bin/env bash
# GRPO on GSM8K. MODEL, TRAIN and TEST may be named by the environment; flags are added at the end:
#   MODEL=Qwen/Qwen3-0.6B examples/gsm8k/train.sh --rollout.batch_size 64
# TRAIN and TEST: files of {"question", "answer"} rows (JSON Lines, gzip too), or a hub name.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

openrlhf-ext rl --config "$here/rl.yaml" \
  --actor.model_name_or_path "${MODEL:-Qwen/Qwen3-0.6B}" \
  --data.prompt_dataset "${TRAIN:-data/gsm8k/train.jsonl}" \
  --eval.dataset "${TEST:-data/gsm8k/test.jsonl}" --eval.steps 10 \
  --reward.remote_url "$here/reward.py" \
  --ckpt.output_dir outputs/gsm8k --ckpt.path outputs/gsm8k/checkpoints "$@"
