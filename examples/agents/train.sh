#!/usr/bin/env bash
# RL of an agent: AGENT is two_turn, calculator or openrlhf_agent, MODEL and TRAIN as in examples/gsm8k; flags at the end:
#   AGENT=calculator MODEL=Qwen/Qwen3-0.6B examples/agents/train.sh --rollout.batch_size 32
# On a CPU: MODEL=a tiny model, TINY=1.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
agent=${AGENT:-two_turn}

openrlhf-ext rl --config "$here/rl.yaml" ${TINY:+"$here/tiny.yaml"} \
  --actor.model_name_or_path "${MODEL:-Qwen/Qwen3-0.6B}" \
  --data.prompt_dataset "${TRAIN:-data/gsm8k/train.jsonl}" \
  --train.agent_func_path "$here/$agent.py" --agent.max_turns 8 \
  --ckpt.output_dir "outputs/agents/$agent" --ckpt.path "outputs/agents/$agent/checkpoints" "$@"
