#!/bin/sh
# Prints the name of the image that this recipe makes for a suite of Debian; another recipe has another name.
#
#   name.sh SUITE
set -eu

cd "$(dirname "$0")"
hash=$( (echo "$1 $(uname -m)"; cat rootfs.sh customize.sh init) | sha256sum | cut -c1-12)
echo "coldframe/machine:$1-$hash"
