#!/usr/bin/env bash
# Write coldframe/requirements.lock: every Python package of the FL image with its version and the hashes of all its files.
#   scripts/lock.sh            after a change of coldframe/requirements.txt, or to take newer versions of what these packages need
# torch and torchvision are not in it: each index has its own builds of the same version. Nor is what only builds for GPUs need.
set -euo pipefail
cd "$(dirname "$0")/.."
lock=coldframe/requirements.lock
part=$(mktemp)
trap 'rm -f "$part"' EXIT
# pip installs the others in the image, so it is one of them.
{ grep -E '^[a-z]' coldframe/requirements.txt; grep -E '^pip==' requirements.txt; } |
  .venv/bin/uv pip compile --quiet - --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
    --no-emit-package torch --no-emit-package torchvision --no-header --no-annotate --no-emit-index-url >"$part"
{
  echo "# Every Python package of the FL image but torch and torchvision, with the hashes of its files. Made by scripts/lock.sh."
  awk '/^[a-z]/ { left_out = /^(nvidia-|cuda-|triton==)/ } !left_out' "$part"
} >"$lock.part"
mv "$lock.part" "$lock"
echo "$lock: $(grep -cE '^[a-z]' "$lock") packages, $(grep -c -- --hash= "$lock") hashes"
