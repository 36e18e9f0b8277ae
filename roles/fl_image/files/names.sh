#!/usr/bin/env bash
# Print the content tags of the three images, a line each: Debian, base (with the Python packages), FL image.
#   names.sh REPOSITORY SUITE "PACKAGES"
set -euo pipefail
cd "$1"
architecture=$(uname -m)
hash() { sha256sum | cut -c1-12; }
debian=$( { echo "$2 $3 $architecture"; cat roles/fl_image/files/make_base.sh; } | hash)
base=$( { echo "$debian"; cat coldframe/requirements.txt coldframe/requirements.lock roles/fl_image/files/make_wheelhouse.sh roles/fl_image/files/install_packages.sh; } | hash)
fl=$( { echo "$base"; cat coldframe/Dockerfile; find coldframe \( -path coldframe/controller -o -path coldframe/machine \) -prune -o -name '*.py' -print | LC_ALL=C sort | while read -r file; do echo "$file"; cat "$file"; done; } | hash)
printf '%s-%s\n' "$debian" "$architecture" "$base" "$architecture" "$fl" "$architecture"
