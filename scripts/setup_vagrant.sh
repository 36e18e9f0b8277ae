#!/usr/bin/env bash
# Install Vagrant and its plugin for libvirt from Debian's packages, where they are not there yet.
set -euo pipefail
as_root=""
[ "$(id -u)" = 0 ] || as_root=sudo

missing=()
command -v vagrant >/dev/null || missing+=(vagrant)
# A Vagrant of HashiCorp's has plugins of its own; Debian's come as packages.
if ! dpkg -s vagrant-libvirt >/dev/null 2>&1 && ! vagrant plugin list 2>/dev/null | grep -q vagrant-libvirt; then
  missing+=(vagrant-libvirt)
fi
[ ${#missing[@]} -gt 0 ] || exit 0
printf '\033[1m==>\033[0m Debian packages: %s\n' "${missing[*]}" >&2
$as_root apt-get update -qq
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || {
  echo "setup_vagrant: apt has no ${missing[*]}; take Vagrant from https://developer.hashicorp.com/vagrant/install," \
    "then type: vagrant plugin install vagrant-libvirt" >&2
  exit 1
}
