#!/usr/bin/env bash
# A training command on this machine: on the Ray cluster that runs here, or one started for it alone.
#
#   launchers/local.sh rl --config rl.yaml ...        a private Ray, ended with the run
#   launchers/local.sh --keep rl ...                  start a Ray that stays, or join it: later runs start faster
#   launchers/local.sh --stop                         end the Ray that stayed, and every other of this user here
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launchers/common.sh
source "$root/launchers/common.sh"

keep=no
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage ;;
    --keep) keep=yes ;;
    --stop) "$(dirname "$PYTHON")/ray" stop; exit 0 ;;
    *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || die "name a command, such as rl; -h says more."
if [ "$keep" = yes ]; then
  token=$HOME/.ray/auth_token
  if [ ! -s "$token" ]; then
    mkdir -p "$(dirname "$token")"
    (umask 077 && "$PYTHON" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$token")
  fi
  export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
  if ! "$(dirname "$PYTHON")/ray" status >/dev/null 2>&1; then
    "$(dirname "$PYTHON")/ray" start --head --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 --num-cpus=64
  fi
  set -- "$@" --ray.address auto
fi
exec "$PYTHON" -m openrlhf_ext.cli.main "$@"
