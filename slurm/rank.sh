#!/usr/bin/env bash
# One rank of a job script, as srun starts it:
#
#   srun ... slurm/rank.sh COMMAND...
#
# srun kills the other ranks where one ends badly, and then answers with their signal's code: the rank's own, the first
# of them, is kept in the file $ENDED. A rank that has saved and wants to come back did not end badly.
# shellcheck source=slurm/job.sh
source "$(dirname "${BASH_SOURCE[0]}")/job.sh"

case ${1:-} in -h | --help) usage ;; esac
[ $# -gt 0 ] || die "name a command; -h says more."
code=0
deaf "$@" &
rank=$!
trap 'tell_process $rank' USR1
exit_code $rank || code=$?
if [ "$code" -ne 0 ]; then
  (set -o noclobber && echo "$code" >"${ENDED:?names a file}") 2>/dev/null || true
fi
[ "$code" -ne "$COME_BACK" ] || exit 0
exit "$code"
