#!/usr/bin/env bash
# What a person with one GPU types after quick_start.sh: check everything, show the plan, train.
#
#   launchers/launch_training.sh sft|rm|dpo|rl FLAGS...
#
# Nothing is trained where the check finds an error or the plan does not fit (--plan.force goes on all the same).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launchers/common.sh
source "$root/launchers/common.sh"

case ${1:-} in
  -h | --help) usage ;;
  sft | rm | dpo | rl) ;;
  *) die "${1:-nothing} is no training command: sft, rm, dpo or rl; -h says more." ;;
esac
command=$1
shift
"$PYTHON" -m openrlhf_ext.cli.main check "$command" "$@"
# In place of this shell: who signals its process (a stop, a save before the time is up) signals the training.
exec "$PYTHON" -m openrlhf_ext.cli.main "$command" "$@"
