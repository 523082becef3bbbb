#!/usr/bin/env bash
# RLT with engines and training on GPUs of their own (4 + 4 unless flags say otherwise), from the YAML of one GPU.
#
#   launchers/launch_spread.sh CONFIG.yaml [FLAGS of openrlhf-ext rl ...]
#   launchers/launch_spread.sh examples/rlt/teacher_rlt.yaml --vllm.num_engines 2 --actor.num_gpus_per_node 2
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launchers/common.sh
source "$root/launchers/common.sh"

case ${1:-} in -h | --help) usage ;; esac
[ $# -gt 0 ] || die "name a config, such as examples/rlt/teacher_rlt.yaml; -h says more."
[ -f "$1" ] || die "$1 does not exist: name a config, such as examples/rlt/teacher_rlt.yaml."
config=$1
shift
exec "$root/launchers/launch_training.sh" rl --config "$config" "$root/examples/rlt/spread.yaml" "$@"
