#!/usr/bin/env bash
# Slurm, munge and shellcheck from the distribution, where they are not there and may be installed without a question.
set -euo pipefail
missing=()
for pair in sbatch:slurm-wlm munged:munge shellcheck:shellcheck ip:iproute2; do
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
