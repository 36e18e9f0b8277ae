#!/bin/sh
# Builds the root file system of a machine, as a tar or a directory. What makes it a container, or a virtual machine, is
# in a file of its own.
#
#   rootfs.sh container|virtual SUITE MIRROR OUTPUT.tar|DIRECTORY
set -eu

kind=$1
suite=$2
mirror=$3
output=$4
here=$(cd "$(dirname "$0")" && pwd)

packages=$("$here/packages.sh" "$suite")
[ "$kind" = container ] || packages="$packages,linux-image-cloud-amd64,initramfs-tools,udev,systemd-resolved"

exec mmdebstrap --verbose --mode=root --variant=minbase \
    --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="\"$here/customize.sh\" \"\$1\"" \
    --customize-hook="\"$here/$kind.sh\" \"\$1\"" \
    "$suite" "$output" "$mirror"
