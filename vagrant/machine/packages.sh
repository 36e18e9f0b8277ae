#!/bin/sh
# Prints the packages of a machine for a suite of Debian, with commas between: systemd, sshd, and a Docker engine.
#
#   packages.sh SUITE
#
# What Coldframe's plays would install is baked in, since an `apt-get update` per machine costs more time than
# everything else a machine does. The engine is installed but left disabled: roles start it.
set -eu

packages="
 systemd systemd-sysv dbus openssh-server sudo kmod procps
 python3 python3-apt python3-requests python3-yaml python3-cryptography
 iproute2 iputils-ping iptables nftables ca-certificates curl openssl rsync tar zstd acl busybox-static
 docker.io
"
# bookworm's docker.io brings its own command line and builds with BuildKit in the engine.
case $1 in
    bookworm) packages="$packages docker-compose" ;;
    *) packages="$packages docker-cli docker-buildx docker-compose" ;;
esac
echo $packages | tr ' ' ','
