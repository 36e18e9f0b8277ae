#!/bin/sh
# Prints the name of what this recipe makes for a suite of Debian; another recipe has another name.
#
#   name.sh container|virtual SUITE
set -eu

cd "$(dirname "$0")"
case $1 in
    container) files="container.sh init" ;;
    virtual) files="virtual.sh box.sh" ;;
esac
# shellcheck disable=SC2086  # more than one file
hash=$( (echo "$2 $(uname -m)"; cat packages.sh rootfs.sh customize.sh $files) | sha256sum | cut -c1-12)
echo "coldframe/machine:$2-$hash"
