#!/usr/bin/env bash
# A preference model on hh-rlhf (Bai et al. 2022, arXiv:2204.05862). MODEL, TRAIN and TEST may be named by the
# environment; flags are added at the end:
#   MODEL=Qwen/Qwen3-4B examples/pm_hh_rlhf/train.sh --model.num_gpus_per_node 8 --ds.zero_stage 3
# On a CPU, with a tiny model and part of the rows in two files:
#   openrlhf-ext tiny-model --output outputs/tiny --corpus train.jsonl --vocab 4096
#   MODEL=outputs/tiny TRAIN=train.jsonl TEST=test.jsonl examples/pm_hh_rlhf/train.sh --device cpu \
#     --ds.param_dtype fp32 --data.max_len 256 --train.batch_size 32 --train.micro_batch_size 8 --adam.lr 1e-3 \
#     --eval.steps 25
# (docs/supervised.md says what comes of it; with more than one epoch it learns these few rows by heart)
# Its model is the rl command's reward model as it is: --reward.model_name_or_path outputs/pm_hh_rlhf/model
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [ -n "${TRAIN:-}" ]; then
  data=(--data.dataset "$TRAIN" --eval.dataset "${TEST:?names the rows to evaluate on, as TRAIN those to train on}")
else
  data=(--data.dataset Anthropic/hh-rlhf --eval.dataset Anthropic/hh-rlhf --eval.split test)
fi

openrlhf-ext rm --config "$here/rm.yaml" \
  --model.model_name_or_path "${MODEL:-Qwen/Qwen3-0.6B}" \
  "${data[@]}" --eval.steps 100 \
  --ckpt.output_dir outputs/pm_hh_rlhf --ckpt.path outputs/pm_hh_rlhf/checkpoints "$@"
