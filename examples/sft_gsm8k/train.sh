#!/usr/bin/env bash
# SFT on GSM8K (Cobbe et al. 2021, arXiv:2110.14168). MODEL, TRAIN and TEST may be named by the environment; flags
# are added at the end:
#   MODEL=Qwen/Qwen3-1.7B-Base examples/sft_gsm8k/train.sh --adam.lr 2e-5
# On a CPU, with a tiny model (docs/supervised.md says what comes of it):
#   openrlhf-ext tiny-model --output outputs/tiny --corpus TRAIN.jsonl --vocab 2048
#   MODEL=outputs/tiny examples/sft_gsm8k/train.sh --device cpu --ds.param_dtype fp32 --data.max_samples 1024 \
#     --train.max_epochs 1 --train.batch_size 32 --adam.lr 3e-3 --ckpt.save_steps 8
# TRAIN and TEST: files of {"question", "answer"} rows (JSON Lines, gzip too), or a hub name.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

openrlhf-ext sft --config "$here/sft.yaml" \
  --model.model_name_or_path "${MODEL:-Qwen/Qwen3-0.6B-Base}" \
  --data.dataset "${TRAIN:-data/gsm8k/train.jsonl}" \
  --eval.dataset "${TEST:-data/gsm8k/test.jsonl}" --eval.steps 50 \
  --ckpt.output_dir outputs/sft_gsm8k --ckpt.path outputs/sft_gsm8k/checkpoints "$@"
