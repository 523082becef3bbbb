#!/usr/bin/env bash
# The true answer over the hallucinated one: SFT, then DPO, both by QLoRA on one GPU of 12 GB. First the rows:
#   python examples/dpo_hallucination/convert.py MEDHALLU.jsonl data/medhallu/train.jsonl \
#     --held-out data/medhallu/test.jsonl
# With evaluations, a comparison and judged outputs: story.py, which docs/hallucination.md walks through.
# MODEL, TRAIN, TEST and OUT may be named by the environment; flags are added at the end of both commands:
#   examples/dpo_hallucination/train.sh --train.seed 7
# On a CPU, with a tiny model:
#   openrlhf-ext tiny-model --output outputs/tiny --corpus data/medhallu/train.jsonl --vocab 4096
#   MODEL=outputs/tiny examples/dpo_hallucination/train.sh --device cpu --ds.param_dtype fp32 --adam.lr 2e-3 \
#     --data.max_len 256 --data.max_samples 320 --eval.steps 20
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${OUT:-outputs/dpo_hallucination}
rows=(--data.dataset "${TRAIN:-data/medhallu/train.jsonl}" --eval.dataset "${TEST:-data/medhallu/test.jsonl}")

openrlhf-ext sft --config "$here/sft.yaml" \
  --model.model_name_or_path "${MODEL:-mistralai/Mistral-7B-v0.1}" "${rows[@]}" \
  --ckpt.output_dir "$out/sft" --ckpt.path "$out/sft/checkpoints" "$@"

openrlhf-ext dpo --config "$here/dpo.yaml" \
  --model.model_name_or_path "$out/sft/adapters" "${rows[@]}" \
  --ckpt.output_dir "$out/dpo" --ckpt.path "$out/dpo/checkpoints" "$@"
