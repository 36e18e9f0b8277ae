#!/bin/sh
# Builds the root file system of a machine in a container: Debian with systemd, sshd and a Docker engine, as a tar.
#
#   rootfs.sh SUITE MIRROR OUTPUT.tar
#
# The packages that Coldframe's plays would install are baked in, since an `apt-get update` per host costs
# more time than everything else a host does. The engine is installed but left disabled: roles start it.
set -eu

suite=$1
mirror=$2
output=$3
here=$(cd "$(dirname "$0")" && pwd)

packages="
 systemd systemd-sysv dbus openssh-server sudo kmod procps
 python3 python3-apt python3-requests python3-yaml python3-cryptography
 iproute2 iputils-ping iptables nftables ca-certificates curl openssl rsync tar zstd acl busybox-static
 docker.io
"
# bookworm's docker.io brings its own command line and builds with BuildKit in the engine.
case $suite in
    bookworm) packages="$packages docker-compose" ;;
    *) packages="$packages docker-cli docker-buildx docker-compose" ;;
esac

exec mmdebstrap --verbose --mode=root --variant=minbase --format=tar \
    --include="$(echo $packages | tr ' ' ',')" \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="\"$here/customize.sh\" \"\$1\"" \
    "$suite" "$output" "$mirror"
