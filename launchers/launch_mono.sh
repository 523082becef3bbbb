#!/usr/bin/env bash
# RLT on one GPU: the teacher, its reference, the student and the engine take turns on it.
#
#   launchers/launch_mono.sh CONFIG.yaml [FLAGS of openrlhf-ext rl ...]
#   launchers/launch_mono.sh examples/rlt/teacher_rlt.yaml --data.prompt_dataset rows.jsonl
#
# The same CONFIG on several GPUs, engines and training apart: launchers/launch_spread.sh.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launchers/common.sh
source "$root/launchers/common.sh"

case ${1:-} in -h | --help) usage ;; esac
[ $# -gt 0 ] || die "name a config, such as examples/rlt/teacher_rlt.yaml; -h says more."
[ -f "$1" ] || die "$1 does not exist: name a config, such as examples/rlt/teacher_rlt.yaml."
config=$1
shift
exec "$root/launchers/launch_training.sh" rl --config "$config" "$root/examples/rlt/one_gpu.yaml" "$@"
