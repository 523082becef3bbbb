# shellcheck shell=bash disable=SC2154 # root
# What the launchers share. Sourced, with `root` set to the repository.
die() { echo "$(basename "$0" .sh): $*" >&2; exit 2; }
usage() { sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0; }

# The installation of quick_start.sh, or the one of the shell.
if [ -n "${VENV:-}" ]; then
  PYTHON=$VENV/bin/python
elif [ -x "$root/.venv/bin/python" ]; then
  PYTHON=$root/.venv/bin/python
else
  PYTHON=$(command -v python3) || die "no Python was found: run ./quick_start.sh --setup-only first."
fi
[ -x "$PYTHON" ] || die "$PYTHON is not there: run ./quick_start.sh --setup-only, or name an installation: VENV=/path."
