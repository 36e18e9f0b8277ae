#!/usr/bin/env bash
# Install from Debian's packages, where it is not there yet, what makes the disk of a virtual machine and starts it.
set -euo pipefail
as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo
PATH=$PATH:/usr/sbin:/sbin

if [ "$(uname -m)" != x86_64 ]; then
  echo "setup_kernel: the virtual machine is made for x86_64, and this machine is $(uname -m): its tests are skipped" >&2
  exit 0
fi
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); } # $1: a command; $2: the package that has it

need qemu-system-x86_64 qemu-system-x86
need qemu-img qemu-utils
need mmdebstrap mmdebstrap
need sfdisk fdisk
need mke2fs e2fsprogs
need debugfs e2fsprogs
need zstd zstd
need setpriv util-linux
need grub-mkimage grub-common
[ -e /usr/lib/grub/i386-pc/boot.img ] || missing+=(grub-pc-bin)
[ ${#missing[@]} -gt 0 ] || exit 0
printf '\033[1m==>\033[0m Debian packages: %s\n' "${missing[*]}" >&2
command -v apt-get >/dev/null || {
  echo "setup_kernel: please install them (this machine has no apt-get), then run it again" >&2
  exit 1
}
$as_root apt-get update -qq
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
