#!/usr/bin/env bash
# Print the Debian mirror of this machine's own apt configuration; nothing where it has none (mmdebstrap then knows its default).
set -euo pipefail
shopt -s nullglob
files=(/etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources)
cat "${files[@]}" 2>/dev/null |
  awk '$1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /^https?:/) { print $i; break } } $1 == "URIs:" { for (i = 2; i <= NF; i++) print $i }' |
  grep -E '/debian/?$' | head -n 1 || true
