#!/usr/bin/env bash
# Print the Debian mirror that this machine's own apt uses; nothing where it is not a Debian (mmdebstrap then knows its default).
# COLDFRAME_DEBIAN_MIRROR, if set, is that mirror.
set -euo pipefail
if [ -n "${COLDFRAME_DEBIAN_MIRROR:-}" ]; then
  echo "$COLDFRAME_DEBIAN_MIRROR"
  exit 0
fi
command -v apt-get >/dev/null || exit 0
# shellcheck disable=SC1091
. /etc/os-release
[ "${ID:-}" = debian ] || exit 0
# apt expands these itself.
# shellcheck disable=SC2016
apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
  awk -v suite="${VERSION_CODENAME:-}" '$2 == suite && $3 == "main" { print $1; exit }'
