#!/usr/bin/env bash
# Install Vagrant from Debian's packages, where it is not there yet.
#   scripts/setup_vagrant.sh             Vagrant, and its plugin for libvirt, which checks a configuration without a libvirt
#   scripts/setup_vagrant.sh --libvirt   also libvirt, Qemu, and what makes a box for them
set -euo pipefail
as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo

missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); } # $1: a command; $2: the package that has it

need vagrant vagrant
# A Vagrant of HashiCorp's has plugins of its own; Debian's come as packages.
if ! dpkg -s vagrant-libvirt >/dev/null 2>&1 && ! vagrant plugin list 2>/dev/null | grep -q vagrant-libvirt; then
  missing+=(vagrant-libvirt)
fi
if [ "${1:-}" = --libvirt ]; then
  PATH=$PATH:/usr/sbin:/sbin
  need libvirtd libvirt-daemon-system
  need virsh libvirt-clients
  need dnsmasq dnsmasq-base
  if [ "$(uname -m)" = x86_64 ]; then
    "$(dirname "$0")/setup_kernel.sh"
  else
    need "qemu-system-$(uname -m)" "qemu-system-$(dpkg --print-architecture)"
    need qemu-img qemu-utils
  fi
fi
[ ${#missing[@]} -gt 0 ] || exit 0
printf '\033[1m==>\033[0m Debian packages: %s\n' "${missing[*]}" >&2
command -v apt-get >/dev/null || {
  echo "setup_vagrant: please install them (this machine has no apt-get), then run it again" >&2
  exit 1
}
$as_root apt-get update -qq
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || {
  echo "setup_vagrant: apt has no ${missing[*]}; take Vagrant from https://developer.hashicorp.com/vagrant/install," \
    "then type: vagrant plugin install vagrant-libvirt" >&2
  exit 1
}
