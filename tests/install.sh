#!/usr/bin/env bash
# Programs that tests want, from the distribution, where they are not there and may be installed without a question:
#   tests/install.sh PROGRAM:PACKAGE ...
set -euo pipefail
missing=()
for pair in "$@"; do
  PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
command -v apt-get >/dev/null || { echo "install ${missing[*]} to run these tests"; exit 0; }
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  sudo -n true 2>/dev/null || { echo "install ${missing[*]} to run these tests"; exit 0; }
  as_root=(sudo -n)
fi
echo "installing ${missing[*]} with apt-get"
"${as_root[@]}" apt-get update -q >/dev/null
"${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
