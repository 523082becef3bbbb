#!/usr/bin/env bash
# Resolve cpu.in and gpu.in into lock files for CPython 3.10 to 3.12 on Linux x86_64
# (pyproject.toml's [tool.uv] names the platform). Give --upgrade to move to the newest versions.
set -euo pipefail
cd "$(dirname "$0")/.."

# Every line of the lock is for that one platform, so the markers that say so are only noise.
strip_platform() {
  sed -e "s/ and implementation_name == 'cpython' and platform_machine == 'x86_64'//" \
    -e "s/ and platform_python_implementation != 'PyPy'//" -e "s/ and sys_platform == 'linux'//" \
    -e "s/ and python_full_version < '3.13'//" -e "s/ ; python_full_version < '3.13'$//"
}

resolve() { # NAME FLAGS... -> requirements/NAME.lock
  local name=$1 body
  shift
  body=$(uv pip compile "requirements/$name.in" --output-file "requirements/$name.lock" --universal --quiet \
    --python-version 3.10 --no-python-downloads --no-annotate --no-header --no-emit-index-url "$@" >/dev/null \
    && strip_platform <"requirements/$name.lock")
  {
    echo "# CPython 3.10 to 3.12 on Linux x86_64; written by requirements/compile.sh, not by hand."
    [ "$name" != cpu ] || echo "torch==2.13.0+cpu"
    echo "$body"
  } >"requirements/$name.lock"
}

resolve cpu --override requirements/cpu-overrides.txt "$@"
resolve gpu "$@"
