#!/usr/bin/env bash
# QLoRA on medical questions with their abstracts: MedHallu's true answers. First the rows:
#   python examples/dpo_hallucination/convert.py MEDHALLU.jsonl data/medhallu/train.jsonl \
#     --held-out data/medhallu/test.jsonl
# MODEL, TRAIN and TEST may be named by the environment; flags are added at the end:
#   MODEL=google/medgemma-27b-text-it examples/qlora_medical/train.sh --ds.lora.rank 64 --ds.lora.alpha 128
# On a CPU, with a tiny model:
#   openrlhf-ext tiny-model --output outputs/tiny --corpus data/medhallu/train.jsonl --vocab 4096
#   MODEL=outputs/tiny examples/qlora_medical/train.sh --device cpu --ds.param_dtype fp32 --data.max_len 256 \
#     --data.max_samples 64
# The folder "model" has the adapters merged, "adapters" has them alone. Of a MedGemma that also sees, the text
# tower is trained, and the model is a text-only one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

openrlhf-ext sft --config "$here/sft.yaml" \
  --model.model_name_or_path "${MODEL:-google/medgemma-4b-it}" \
  --data.dataset "${TRAIN:-data/medhallu/train.jsonl}" \
  --eval.dataset "${TEST:-data/medhallu/test.jsonl}" --eval.steps 100 \
  --ckpt.output_dir outputs/qlora_medical --ckpt.path outputs/qlora_medical/checkpoints "$@"
