#!/usr/bin/env bash
# Programs that tests want, from the distribution, where they are not there and may be installed without a question:
#   tests/install.sh PROGRAM:PACKAGE ...
set -euo pipefail
missing=()
for pair in "$@"; do
  PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
# What cannot be installed stops nothing: the tests that want it skip, and say why.
leave() { echo "not installed ($1): ${missing[*]}; tests that need them skip"; exit 0; }
command -v apt-get >/dev/null || leave "there is no apt-get here"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  sudo -n true 2>/dev/null || leave "sudo asks for a password"
  as_root=(sudo -n)
fi
echo "installing ${missing[*]} with apt-get"
apt() { said=$("${as_root[@]}" apt-get "$@" 2>&1 >/dev/null) || leave "apt-get $1: ${said##*$'\n'}"; }
apt update -q
apt install -y -q --no-install-recommends "${missing[@]}"
