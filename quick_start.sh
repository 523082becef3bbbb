#!/usr/bin/env bash
# Set up .venv from the lock file, then run the main job: RL on Ray, DeepSpeed and vLLM, rewarded by a judge.
#
#   ./quick_start.sh                 set up and run (the CPU without a GPU, the GPU with one)
#   ./quick_start.sh --reward rule   rewards from a rule instead of the judge, which is quicker
#   ./quick_start.sh --setup-only    set up and stop
#   ./quick_start.sh --json OUT      write the result to OUT as well
#   ./quick_start.sh --actor.model_name_or_path Qwen/Qwen3-0.6B --train.seed 7
#                                    any other flag goes to the RL command
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$root/.venv

die() { echo "quick_start: $*" >&2; exit 2; }

# Debian packages, where they may be installed without a question; 1 where they may not.
apt_install() {
  command -v apt-get >/dev/null || return 1
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || return 1
    as_root=(sudo -n)
  fi
  echo "quick_start: installing $* with apt-get"
  "${as_root[@]}" apt-get install -y -q --no-install-recommends "$@" >/dev/null 2>&1 || {
    "${as_root[@]}" apt-get update -q >/dev/null 2>&1
    "${as_root[@]}" apt-get install -y -q --no-install-recommends "$@" >/dev/null 2>&1
  }
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

lock_name() { if nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then echo gpu; else echo cpu; fi; }

install() { # LOCK
  local lock=$1 python tag wheels torch_from=()
  python=$(find_python) || die "no Python 3.10, 3.11 or 3.12 was found; install one, or name it: PYTHON=/path/to/python3 $0"
  if [ "$lock" = cpu ] && ! "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null; then
    apt_install libnuma1 || die "vLLM needs the library libnuma.so.1, which this machine lacks; install it (Debian, Ubuntu: apt-get install libnuma1) and run this again."
  fi
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    apt_install python3-venv || die "$python has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv) and run this again."
  fi

  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  [ -x "$venv/.uv/bin/uv" ] || "$venv/bin/python" -m pip install -q --disable-pip-version-check --target "$venv/.uv" uv

  # torch's CPU build: from a folder of wheels that holds it, else from PyTorch's own index.
  wheels=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
  tag=$("$venv/bin/python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  [ -z "$wheels" ] || export UV_FIND_LINKS=${wheels// /,}
  if [ "$lock" = cpu ] && ! compgen -G "${wheels%%[ ,]*}/torch-*+cpu-$tag-*.whl" >/dev/null; then
    torch_from=(--torch-backend cpu)
  fi

  echo "quick_start: installing requirements/$lock.lock into .venv (about 3 GB for a CPU, more for a GPU)"
  export VIRTUAL_ENV=$venv UV_NO_CONFIG=1
  "$venv/.uv/bin/uv" pip sync -q --compile-bytecode ${torch_from[@]+"${torch_from[@]}"} "$root/requirements/$lock.lock"
  "$venv/.uv/bin/uv" pip install -q --no-deps --no-build-isolation --editable "$root"
}

setup_only=no
arguments=()
for argument in "$@"; do
  case $argument in
    --setup-only) setup_only=yes ;;
    -h | --help) sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) arguments+=("$argument") ;;
  esac
done

# One stamp per content of the lock and of setup.py: a second run starts at once.
lock=$(lock_name)
stamp=$venv/.installed-$lock-$(cat "$root/requirements/$lock.lock" "$root/setup.py" | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ]; then
  install "$lock"
  rm -f "$venv"/.installed-*
  touch "$stamp"
fi

if [ "$setup_only" = yes ]; then
  echo "quick_start: ready; activate it with: source $venv/bin/activate"
  exit 0
fi
exec "$venv/bin/python" "$root/examples/quick_start/run.py" ${arguments[@]+"${arguments[@]}"}
