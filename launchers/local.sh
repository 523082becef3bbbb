#!/usr/bin/env bash
# A training command on this machine: on a Ray that was started for it alone, or on one that stays.
#
#   launchers/local.sh rl --config rl.yaml ...        a private Ray, ended with the run
#   launchers/local.sh --keep rl ...                  start a Ray that stays, or join it: later runs start faster
#   launchers/local.sh --stop                         end the Ray that stayed, and no other
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launchers/common.sh
source "$root/launchers/common.sh"

kept=$HOME/.ray/openrlhf_ext # which process holds it, and its address
pid='' address=''
is_kept() { [ -s "$kept" ] && read -r pid address <"$kept" && grep -qs kept_ray.py "/proc/$pid/cmdline"; }

stop() {
  is_kept || die "no Ray of --keep is running here."
  kill "$pid"
  while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
}

start() {
  local starting
  rm -f "$kept"
  setsid "$PYTHON" "$root/launchers/kept_ray.py" "$kept" </dev/null >"$kept.log" 2>&1 &
  starting=$!
  until is_kept; do
    kill -0 "$starting" 2>/dev/null || die "Ray did not start: see $kept.log."
    sleep 0.2
  done
}

keep=no
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage ;;
    --keep) keep=yes ;;
    --stop) stop; exit 0 ;;
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
  # The last is Ray's own switch to the loopback address, for who joins as for who is joined.
  export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
  is_kept || start
  set -- "$@" --ray.address "$address"
fi
exec "$PYTHON" -m openrlhf_ext.cli.main "$@"
